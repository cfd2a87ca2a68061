"""Grids, and a linear with the second moment of its inputs."""

import torch
from torch import Tensor

GRIDS = [(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (-1, 7, 64, 128) for symmetric in (True, False)]


def case(n_out: int, n_in: int, seed: int = 0, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """w [out, in] and the second moment of correlated inputs with loud channels and a mean, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n_in, generator=generator) @ (
        torch.eye(n_in) + 0.5 * torch.randn(n_in, n_in, generator=generator) / n_in**0.5
    )
    x = x * torch.exp(torch.randn(n_in, generator=generator)) + torch.randn(n_in, generator=generator)
    return torch.randn(n_out, n_in, generator=generator) / n_in**0.5, x.T @ x / rows
