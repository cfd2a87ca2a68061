"""What an error of the token embedding or of the output head costs the model, by the end loss.

ℓ and its labels are calibration/end_loss.py's. A row t of the head's weight, one a token, changed by d_t costs
½·r_t·d_t M d_tᵀ nats a token with r_t = E[(∂ℓ/∂z_t)²] and M = Σ ω h hᵀ / Σ ω, ω = Σ_t (∂ℓ/∂z_t)², over the head's
inputs h. A row of the embedding costs the same with M = E[g gᵀ], g = s·∂ℓ/∂x, over what the first block reads,
x = s·(its row), and r_t how often the token comes. Of a tied weight both are added.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quant.calibration.second_moments import add_outer, from_triangle, halves, mirror, row_errors, to_triangle
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import require

ROWS = 16384  # of a vocabulary at a time


class HeadSums:
    """M [d, d] by a triangle and r [vocab] of the output head."""

    def __init__(self, n_in: int, vocab: int, device: torch.device) -> None:
        self._outer = torch.zeros(n_in, n_in, device=device)
        self._rows = torch.zeros(vocab, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, h: Tensor, gradient: Tensor) -> None:
        """h [n, d] and ∂ℓ/∂z [n, vocab] of the same tokens, float32."""
        square = gradient.square()
        add_outer(self._outer, h * square.sum(1).sqrt()[:, None])
        self._rows += square.sum(0, dtype=torch.float64)
        self._count += len(h)

    def results(self) -> dict[str, Tensor]:
        """moment and rows; zeros where no token came."""
        whole = self._rows.sum()
        moment = mirror(self._outer).div_(whole.float() if whole > 0 else 1.0)
        return {"moment": to_triangle(moment), "rows": (self._rows / max(1, self._count)).float().cpu()}


class EmbeddingSums:
    """M [d, d] by a triangle and r [vocab] of the token embedding."""

    def __init__(self, weight: Tensor) -> None:
        """weight: [vocab, d]."""
        self._weight = weight
        self._outer = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)
        self._counts = torch.zeros(len(weight), dtype=torch.int64)
        self._products = torch.zeros(2, dtype=torch.float64)  # Σ x·w and Σ w·w, whose ratio is s

    def add(self, ids: Tensor, x: Tensor, gradient: Tensor) -> None:
        """ids [n]; x and ∂ℓ/∂x [n, d] of the same tokens, float32."""
        rows = self._weight[ids.to(self._weight.device)].float()
        add_outer(self._outer, gradient)
        self._counts += torch.bincount(ids.cpu(), minlength=len(self._counts))
        self._products += torch.stack([(x * rows).double().sum(), rows.double().square().sum()]).cpu()

    def results(self) -> dict[str, Tensor]:
        """moment and rows; zeros where no token came."""
        count, (product, own) = int(self._counts.sum()), self._products.tolist()
        scale = product / own if own > 0 else 1.0
        moment = mirror(self._outer).mul_(scale**2 / max(1, count))
        return {"moment": to_triangle(moment), "rows": frequencies(self._counts).float()}


def frequencies(counts: Tensor) -> Tensor:
    """How often each token comes in other text of the kind, float64 [vocab], in sum 1: tokens not seen share as much as
    those seen once have of the text (Good and Turing's estimate)."""
    n, unseen = int(counts.sum()), counts == 0
    if n == 0:
        return torch.zeros(len(counts), dtype=torch.float64)
    missing = int((counts == 1).sum()) / n if unseen.any() else 0.0
    missing = min(missing, 0.5)  # of a text of a few words
    seen = counts.double() / n * (1 - missing)
    return torch.where(unseen, missing / max(1, int(unseen.sum())), seen)


def of_module(file: tensorfile.TensorFile, name: str) -> tuple[Tensor, Tensor]:
    """M [d, d] and r [vocab] of an embedding or a head."""
    return from_triangle(file.get(f"{name}.moment")), file.get(f"{name}.rows")


def known_of(path: str, owners: list[str], made: Mapping[str, Any], device: str) -> list[tuple[Tensor, Tensor]]:
    """M and r of each module that uses a weight, of the model and tokens that `made` says."""
    with tensorfile.opened(path) as file:
        require(path, file.info("provenance"), **{key: made[key] for key in ("model_fingerprint", "token_fingerprint")})
        for name in owners:
            if f"{name}.rows" not in file.names:
                raise InputError(
                    f"{path}: says nothing of {name}, whose rows the first block does not read as they are; leave "
                    "embeddings out for this model"
                )
        return [(moment.to(device), rows.to(device)) for moment, rows in (of_module(file, name) for name in owners)]


def common_moment(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ M·Σ_t r_t over what uses a weight [d, d]: by which its rows are rounded."""
    return torch.stack([moment * rows.sum() for moment, rows in parts]).sum(0)


def predicted(difference: Tensor, parts: list[tuple[Tensor, Tensor]]) -> float:
    """½·Σ_t r_t·d_t M d_tᵀ, nats a token, summed over what uses a weight; difference: [vocab, d]."""
    total = 0.0
    for moment, rows in parts:
        lower = halves(moment)
        for some, r in zip(difference.split(ROWS), rows.split(ROWS), strict=True):
            errors = row_errors(some, [block.to(some) for block in lower])
            total += 0.5 * float((errors.double() * r.to(some).double()).sum())
    return total
