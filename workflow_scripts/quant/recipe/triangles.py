"""The inverse of a triangular matrix by products: solvers leave most of a GPU idle and take a CPU twice as long."""

import torch
from torch import Tensor

BASE = 96  # at most so wide are the blocks on the diagonal that a solver inverts, all at once
PORTION = 1024  # rows and columns of a large block that are multiplied at once


def _diagonal(matrix: Tensor, size: int, row: int, column: int) -> Tensor:
    """Every second block along the diagonal, moved by so many rows and columns: a view [count, size, size]."""
    n, wide = len(matrix), matrix.stride(0)
    first = matrix.storage_offset() + row * wide + column
    return matrix.as_strided((n // (2 * size), size, size), (2 * size * (wide + 1), wide, 1), first)


def _enclose(left: Tensor, between: Tensor, right: Tensor) -> None:
    """-left·between·right in the place of `between`, left and right upper triangular; all [size, size].

    By rows from the first on, whose own old ones no later one asks for; products leave out what is zero.
    """
    size = len(between)
    for first in range(0, size, PORTION):
        rows = slice(first, first + PORTION)
        product = left[rows, first:] @ between[first:]
        for column in range(0, size, PORTION):
            stop = min(column + PORTION, size)
            factor = right[:stop, column:stop]
            between[rows, column:stop].addmm_(product[:, :stop], factor, beta=0, alpha=-1)


def inverse_upper(upper: Tensor, overwrite: bool = False) -> Tensor:
    """U⁻¹ of an upper triangular U [n, n], zeros below its diagonal; overwrite: where U lies by rows, in its place.

    [A B; 0 C]⁻¹ = [A⁻¹ -A⁻¹BC⁻¹; 0 C⁻¹], from blocks of at most BASE upwards, of each size all pairs at once.
    """
    n, levels = len(upper), 0
    while -(-n // 2**levels) > BASE:
        levels += 1
    size = -(-n // 2**levels)
    more = size * 2**levels - n
    if more or not overwrite or not upper.is_contiguous():
        upper = torch.nn.functional.pad(upper, (0, more, 0, more)).contiguous()
        upper.diagonal()[n:] = 1
    count, stride = 2**levels, len(upper)
    blocks = upper.as_strided((count, size, size), (size * (stride + 1), stride, 1), upper.storage_offset())
    identity = torch.eye(size, dtype=upper.dtype, device=upper.device).expand(count, size, size)
    blocks.copy_(torch.linalg.solve_triangular(blocks, identity, upper=True))
    for _ in range(levels):
        left, right = _diagonal(upper, size, 0, 0), _diagonal(upper, size, size, size)
        between = _diagonal(upper, size, 0, size)
        if size < 2 * PORTION:
            between.baddbmm_(left @ between, right, beta=0, alpha=-1)
        else:
            for each in zip(left, between, right, strict=True):
                _enclose(*each)
        size *= 2
    return upper[:n, :n]
