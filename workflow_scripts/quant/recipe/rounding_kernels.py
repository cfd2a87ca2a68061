"""Triton kernel for `quantized.rounding_statistics`: where every weight went, in one reading."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.recipe.grids import Grid

EACH = 4096  # weights of a program; sums of ones stay exact in float32


@triton.jit
def _rint(x):
    return (x + 12582912.0) - 12582912.0  # ties to even, where |x| < 2²²; beyond, codes are out of range


@triton.jit
def _moves(
    w, scale, codes, step, zero, bins, counts, n_out, n_in, n_groups, size, lowest, highest, tie, farthest,
    SCALED: tl.constexpr, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (rows < n_out) & (columns < n_in)
    place = rows.to(tl.int64) * n_in + columns
    x = tl.load(w + place, mask=mask, other=0.0)
    if SCALED:
        x *= tl.load(scale + columns, mask=columns < n_in, other=1.0)
    group = rows.to(tl.int64) * n_groups + columns // size
    own = tl.load(step + group, mask=mask, other=1.0)
    middle = tl.load(zero + group, mask=mask, other=0.0)
    code = tl.load(codes + group * size + columns % size, mask=mask, other=0.0)
    moved = tl.div_rn((code - middle) * own - x, own)
    near = _rint(tl.div_rn(x, own))
    near = tl.minimum(tl.maximum(near if SYMMETRIC else near + middle, lowest), highest)
    distance = tl.minimum(tl.abs(moved), farthest)
    tl.store(bins + place, _rint(distance * 1000.0).to(tl.int32), mask=mask)
    at = counts + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 4
    tl.store(at, tl.sum(tl.sum(tl.where(mask & (moved > tie), 1.0, 0.0), 1), 0))
    tl.store(at + 1, tl.sum(tl.sum(tl.where(mask & (moved < -tie), 1.0, 0.0), 1), 0))
    tl.store(at + 2, tl.sum(tl.sum(tl.where(mask & (distance <= tie), 1.0, 0.0), 1), 0))
    tl.store(at + 3, tl.sum(tl.sum(tl.where(mask & (code != near), 1.0, 0.0), 1), 0))


def moves(
    w: Tensor, scale: Tensor | None, codes: Tensor, step: Tensor, zero: Tensor, grid: Grid, tie: float, farthest: float
) -> tuple[Tensor, Tensor]:
    """`quantized.moves` of float32 on a GPU."""
    n_out, n_in = w.shape
    columns = min(EACH, triton.next_power_of_2(n_in))
    rows = EACH // columns
    blocks = triton.cdiv(n_out, rows), triton.cdiv(n_in, columns)
    bins = torch.empty(n_out, n_in, device=w.device, dtype=torch.int32)
    counts = torch.empty(*blocks, 4, device=w.device)
    w = w.contiguous()
    _moves[blocks](
        w, w if scale is None else scale.contiguous(), codes.contiguous(), step.contiguous(), zero.contiguous(),
        bins, counts, n_out, n_in, codes.shape[1], codes.shape[2],
        float(grid.lowest), float(grid.highest), tie, farthest,
        SCALED=scale is not None, SYMMETRIC=grid.symmetric, ROWS=rows, COLUMNS=columns, num_warps=8,
        enable_fp_fusion=False,
    )  # fmt: skip
    return bins, counts.sum((0, 1), dtype=torch.float64)
