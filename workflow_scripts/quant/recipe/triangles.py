"""The inverse of a triangular matrix by products: solvers leave most of a GPU idle and take a CPU twice as long."""

import torch
from torch import Tensor

BASE = 96  # at most so wide are the blocks on the diagonal that a solver inverts, all at once


def _diagonal(matrix: Tensor, size: int, row: int, column: int) -> Tensor:
    """Every second block along the diagonal, moved by so many rows and columns: a view [count, size, size]."""
    n, wide = len(matrix), matrix.stride(0)
    first = matrix.storage_offset() + row * wide + column
    return matrix.as_strided((n // (2 * size), size, size), (2 * size * (wide + 1), wide, 1), first)


def inverse_upper(upper: Tensor) -> Tensor:
    """U⁻¹ of an upper triangular U [n, n].

    [A B; 0 C]⁻¹ = [A⁻¹ -A⁻¹BC⁻¹; 0 C⁻¹], from blocks of at most BASE upwards, of each size all pairs at once.
    """
    n, levels = len(upper), 0
    while -(-n // 2**levels) > BASE:
        levels += 1
    size = -(-n // 2**levels)
    more = size * 2**levels - n
    matrix = torch.nn.functional.pad(upper, (0, more, 0, more)).contiguous()
    matrix.diagonal()[n:] = 1
    found = torch.zeros_like(matrix)
    count, stride = 2**levels, len(matrix)
    blocks = (count, size, size), (size * (stride + 1), stride, 1)
    identity = torch.eye(size, dtype=upper.dtype, device=upper.device).expand(count, size, size)
    found.as_strided(*blocks).copy_(torch.linalg.solve_triangular(matrix.as_strided(*blocks), identity, upper=True))
    for _ in range(levels):
        left, right = _diagonal(found, size, 0, 0), _diagonal(found, size, size, size)
        between = _diagonal(matrix, size, 0, size)
        _diagonal(found, size, 0, size).copy_((left @ between @ right).neg_())
        size *= 2
    return found[:n, :n]
