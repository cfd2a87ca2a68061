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


@triton.jit(do_not_specialize=["seed"])
def _noisy_sums(
    x, sigma, out, seed, n, columns, draws,
    SILU: tl.constexpr, ROWS_EACH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    real = column < columns
    own = tl.load(sigma + column, mask=real, other=0.0)
    first_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    second_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, ROWS_EACH, ROWS):
        row = (tl.program_id(1) * ROWS_EACH + first + tl.arange(0, ROWS))[:, None]
        mask = real & (row < n)
        value = tl.load(x + row.to(tl.int64) * columns + column, mask=mask, other=0.0).to(tl.float32)
        place = row * columns + column
        for k in range(0, draws, 4):  # normal numbers come by four
            a, b, c, d = tl.randn4x(seed + k, place)
            for j in tl.static_range(4):
                normal = a if j == 0 else b if j == 1 else c if j == 2 else d
                noisy = tl.where(mask & (k + j < draws), value + own * normal, 0.0)
                if SILU:
                    first_sum += tl.abs(noisy * tl.sigmoid(noisy))
                else:
                    first_sum += tl.abs(noisy)
                    second_sum += noisy * noisy
    at = out + tl.program_id(1) * 2 * columns + column
    tl.store(at, tl.sum(first_sum, 0, keep_dims=True), mask=real)
    tl.store(at + columns, tl.sum(second_sum, 0, keep_dims=True), mask=real)


def noisy_sums(x: Tensor, sigma: Tensor, draws: int, seed: int, silu: bool) -> Tensor:
    """Of x [n, in] of any float type and its noise's deviation [in], over so many draws and rows, in float64 [2, in]:
    Σ|x + ε| and Σ(x + ε)²; with silu Σ|silu(x + ε)|, and nothing. One seed gives one noise."""
    n, columns = x.shape
    parts = triton.cdiv(n, ROWS_EACH)
    out = torch.empty(parts, 2, columns, device=x.device)
    _noisy_sums[(triton.cdiv(columns, 128), parts)](
        x.contiguous(), sigma.contiguous(), out, seed, n, columns, draws,
        SILU=silu, ROWS_EACH=ROWS_EACH, ROWS=16, COLUMNS=128, num_warps=4,
    )  # fmt: skip
    return out.sum(0, dtype=torch.float64)
