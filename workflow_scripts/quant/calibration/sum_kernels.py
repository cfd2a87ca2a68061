"""Triton kernels for the calibration pass on a GPU: sums of columns in one reading of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_EACH = 256  # rows that a program sums in float32 before float64 takes over


@triton.jit
def _column_sums(
    x, center, out, n, columns, SILU: tl.constexpr, ROWS_EACH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    real = column < columns
    middle = tl.load(center + column, mask=real, other=0.0)
    absolute = tl.zeros([ROWS, COLUMNS], tl.float32)
    square = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    activated = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, ROWS_EACH, ROWS):
        row = (tl.program_id(1) * ROWS_EACH + first + tl.arange(0, ROWS))[:, None]
        mask = real & (row < n)
        value = tl.load(x + row.to(tl.int64) * columns + column, mask=mask, other=0.0).to(tl.float32)
        shifted = tl.where(mask, value - middle, 0.0)
        absolute += tl.abs(value)
        square += shifted * shifted
        total += shifted
        if SILU:
            activated += tl.abs(value * tl.sigmoid(value))
    place = out + tl.program_id(1) * (4 if SILU else 3) * columns + column
    tl.store(place, tl.sum(absolute, 0, keep_dims=True), mask=real)
    tl.store(place + columns, tl.sum(square, 0, keep_dims=True), mask=real)
    tl.store(place + 2 * columns, tl.sum(total, 0, keep_dims=True), mask=real)
    if SILU:
        tl.store(place + 3 * columns, tl.sum(activated, 0, keep_dims=True), mask=real)


def column_sums(x: Tensor, center: Tensor | None, silu: bool) -> Tensor:
    """sums.column_sums for x [n, in] of any float type and center [in]; with silu also Σ|silu(x)|."""
    n, columns = x.shape
    parts = triton.cdiv(n, ROWS_EACH)
    out = torch.empty(parts, 4 if silu else 3, columns, device=x.device)
    middle = torch.zeros(columns, device=x.device) if center is None else center
    _column_sums[(triton.cdiv(columns, 128), parts)](
        x.contiguous(), middle, out, n, columns, SILU=silu, ROWS_EACH=ROWS_EACH, ROWS=16, COLUMNS=128, num_warps=4
    )
    return out.sum(0, dtype=torch.float64)
