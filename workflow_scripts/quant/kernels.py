"""Triton kernels for float32 on a GPU: the torch functions that call them, one launch instead of hundreds.

Divisions round as IEEE says and nothing is fused into multiply-adds, so grids are those of a CPU to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.grids import CLIP_FACTORS, Grid, n_groups

LONGEST = 16384  # inputs of a group; a program holds a group of at least one row in registers
TILE = 4096  # values that a program holds, where its group is no longer
ROWS = 16  # output channels that a program of GPTQ holds, 128 columns of each


@triton.jit
def _rint(x):
    """To the nearest whole number, ties to even, where |x| < 2²²; beyond, codes are out of range whatever it gives."""
    return (x + 12582912.0) - 12582912.0  # 1.5·2²³: no bits are left for a fraction


@triton.jit
def _span(low, high, highest, SYMMETRIC: tl.constexpr):
    step = tl.div_rn(tl.maximum(-low, high) if SYMMETRIC else high - low, highest + tl.zeros_like(low))
    step = tl.where(step > 0, step, 1.0)
    zero = tl.minimum(tl.maximum(_rint(tl.div_rn(-low, step)), 0.0), highest)
    return step, tl.zeros_like(step) if SYMMETRIC else zero


@triton.jit
def _round(x, step, zero, lowest, highest):
    codes = _rint(tl.div_rn(x, step + tl.zeros_like(x))) + zero
    return (tl.minimum(tl.maximum(codes, lowest), highest) - zero) * step


@triton.jit
def _nearest_scaled(
    w, scales, importance, factors, out,
    n_out, n_in, group_size, lowest, highest,
    N_FACTORS: tl.constexpr, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    within = tl.arange(0, BLOCK)[None, :]
    columns = tl.program_id(1) * group_size + within
    which = tl.program_id(2)
    real = (within < group_size) & (columns < n_in)
    mask = real & (rows < n_out)
    scale = tl.load(scales + which * n_in + columns, mask=real, other=1.0)
    x = tl.load(w + rows.to(tl.int64) * n_in + columns, mask=mask, other=0.0) * scale
    low = tl.minimum(tl.min(x, 1, keep_dims=True), 0.0)
    high = tl.maximum(tl.max(x, 1, keep_dims=True), 0.0)
    step, zero = _span(low, high, highest, SYMMETRIC)
    if N_FACTORS > 0:
        weight = tl.load(importance + which * n_in + columns, mask=real, other=0.0)
        least = tl.full(step.shape, float("inf"), tl.float32)
        for i in range(N_FACTORS):
            factor = tl.load(factors + i)
            narrow, shifted = _span(low * factor, high * factor, highest, SYMMETRIC)
            # times 1/step: a factor's error may differ in its last bits; the range that is kept rounds as IEEE says
            codes = _rint(x * tl.div_rn(1.0 + tl.zeros_like(narrow), narrow)) + shifted
            error = (tl.minimum(tl.maximum(codes, lowest), highest) - shifted) * narrow - x
            error = tl.sum(error * error * weight, 1, keep_dims=True)
            better = error < least
            least = tl.where(better, error, least)
            step, zero = tl.where(better, narrow, step), tl.where(better, shifted, zero)
    found = tl.div_rn(_round(x, step, zero, lowest, highest), scale + tl.zeros_like(x))
    tl.store(out + (which.to(tl.int64) * n_out + rows) * n_in + columns, found, mask=mask)


def rounds(w: Tensor, grid: Grid) -> bool:
    """Whether `nearest_scaled` takes a weight [out, in]."""
    size = w.shape[1] if grid.group_size == -1 else grid.group_size
    return w.is_cuda and w.dtype == torch.float32 and size <= LONGEST


def nearest_scaled(w: Tensor, scales: Tensor, grid: Grid, importance: Tensor | None) -> Tensor:
    """grids.nearest_scaled for w [out, in], scales [n, in] and importance [n, in] → [n, out, in]."""
    n_out, n_in = w.shape
    size = n_in if grid.group_size == -1 else grid.group_size
    block = triton.next_power_of_2(size)
    rows = max(1, TILE // block)
    out = torch.empty(len(scales), n_out, n_in, device=w.device)
    scales = scales.contiguous()
    # factors in float64 become the float32 that torch multiplies a float32 tensor with
    factors = torch.tensor(CLIP_FACTORS if importance is not None else [], device=w.device)
    _nearest_scaled[(triton.cdiv(n_out, rows), n_groups(n_in, grid.group_size), len(scales))](
        w.contiguous(), scales, scales if importance is None else importance.contiguous(), factors, out,
        n_out, n_in, size, float(grid.lowest), float(grid.highest),
        N_FACTORS=len(factors), SYMMETRIC=grid.symmetric, ROWS=rows, BLOCK=block,
        num_warps=min(16, max(4, block // 512)), enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit
def _feed_back(
    w, inner, steps, zeros, codes, errors,
    n_out, w_row, w_column, steps_row, steps_column, zeros_row, zeros_column, codes_row, codes_column, lowest, highest,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < n_out
    columns = tl.arange(0, COLUMNS)
    mask = there[:, None] & (columns < WIDTH)[None, :]
    block = tl.load(w + rows[:, None] * w_row + columns[None, :] * w_column, mask=mask, other=0.0)
    found = tl.zeros([ROWS, COLUMNS], tl.float32)
    left = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(WIDTH):
        pick = (columns == j)[None, :]
        column = tl.sum(tl.where(pick, block, 0.0), 1)
        step = tl.load(steps + rows * steps_row + j * steps_column, mask=there, other=1.0)
        zero = tl.load(zeros + rows * zeros_row + j * zeros_column, mask=there, other=0.0)
        code = tl.minimum(tl.maximum(_rint(tl.div_rn(column, step)) + zero, lowest), highest)
        error = tl.div_rn(column - (code - zero) * step, tl.load(inner + j * WIDTH + j) + tl.zeros_like(column))
        later = tl.load(inner + j * WIDTH + columns, mask=(columns > j) & (columns < WIDTH), other=0.0)
        block -= error[:, None] * later[None, :]
        found = tl.where(pick, code[:, None], found)
        left = tl.where(pick, error[:, None], left)
    tl.store(codes + rows[:, None] * codes_row + columns[None, :] * codes_column, found, mask=mask)
    tl.store(errors + rows[:, None] * WIDTH + columns[None, :], left, mask=mask)


def feed_back(
    w: Tensor, inner: Tensor, steps: Tensor, zeros: Tensor, grid: Grid, codes: Tensor, columns: int
) -> Tensor:
    """rounding.feed_back on a block of at most `columns` (a power of two), in whatever order its tensors lie."""
    n_out, width = w.shape
    errors = torch.empty(n_out, width, device=w.device)
    _feed_back[(triton.cdiv(n_out, ROWS),)](
        w, inner.contiguous(), steps, zeros, codes, errors,
        n_out, *w.stride(), *steps.stride(), *zeros.stride(), *codes.stride(),
        float(grid.lowest), float(grid.highest), WIDTH=width, ROWS=ROWS, COLUMNS=columns,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return errors
