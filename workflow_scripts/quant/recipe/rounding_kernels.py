"""Triton kernels for roundings on a GPU: where every weight went, and where it may be flipped to, in one reading."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.recipe.context import Candidates
from quant.recipe.grids import Grid

LONGEST = 16384  # weights of a row, which a program of `candidates` holds
EACH = 4096  # weights of a program of `moves`; sums of ones stay exact in float32


@triton.jit
def _rint(x):
    return (x + 12582912.0) - 12582912.0  # ties to even, where |x| < 2²²; beyond, codes are out of range


@triton.jit
def _moves(
    w, scale, codes, step, zero, bins, counts, n_out, n_in, n_groups, size, parts, lowest, highest, tie, farthest,
    SCALED: tl.constexpr, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of some rows, a part of one group: no weight asks which group it is in."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    group = tl.program_id(1) // parts
    inside = (tl.program_id(1) % parts * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    columns = group * size + inside
    mask = (rows < n_out) & (inside < size) & (columns < n_in)
    place = rows.to(tl.int64) * n_in + columns
    x = tl.load(w + place, mask=mask, other=0.0)
    if SCALED:
        x *= tl.load(scale + columns, mask=columns < n_in, other=1.0)
    of_row = rows.to(tl.int64) * n_groups + group
    own = tl.load(step + of_row, mask=rows < n_out, other=1.0)
    middle = tl.load(zero + of_row, mask=rows < n_out, other=0.0)
    code = tl.load(codes + of_row * size + inside, mask=mask, other=0.0)
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
    (n_out, n_in), size = w.shape, codes.shape[2]
    columns = min(EACH, triton.next_power_of_2(size))
    rows, parts = EACH // columns, triton.cdiv(size, columns)
    blocks = triton.cdiv(n_out, rows), codes.shape[1] * parts
    bins = torch.empty(n_out, n_in, device=w.device, dtype=torch.int32)
    counts = torch.empty(*blocks, 4, device=w.device)
    w = w.contiguous()
    _moves[blocks](
        w, w if scale is None else scale.contiguous(), codes.contiguous(), step.contiguous(), zero.contiguous(),
        bins, counts, n_out, n_in, codes.shape[1], size, parts,
        float(grid.lowest), float(grid.highest), tie, farthest,
        SCALED=scale is not None, SYMMETRIC=grid.symmetric, ROWS=rows, COLUMNS=columns, num_warps=8,
        enable_fp_fusion=False,
    )  # fmt: skip
    return bins, counts.sum((0, 1), dtype=torch.float64)


@triton.jit
def _candidates(
    groups, step, zero, mean, usable, codes, moved, distance, change, error, size, n, n_groups, lowest, highest,
    SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < n
    x = tl.load(groups + row * n + at, mask=mask, other=0.0)
    own = tl.load(step + row * n_groups + at // size, mask=mask, other=1.0)
    middle = tl.load(zero + row * n_groups + at // size, mask=mask, other=0.0)
    average = tl.load(mean + at, mask=mask, other=0.0)
    near = _rint(tl.div_rn(x, own))
    near = tl.minimum(tl.maximum(near if SYMMETRIC else near + middle, lowest), highest)
    residual = x - (near - middle) * own
    direction = tl.where(residual >= 0, 1.0, -1.0)
    total = tl.sum(tl.where(mask, average * residual, 0.0), 0)
    by = average * own * direction
    next_one = tl.minimum(tl.maximum(near + direction, lowest), highest)
    possible = mask & (tl.load(usable + at, mask=mask, other=0.0) > 0) & (next_one != near)
    possible = possible & (tl.where(total < 0, -by, tl.where(total > 0, by, 0.0)) > 0)
    tl.store(codes + row * n + at, near, mask=mask)
    tl.store(moved + row * n + at, next_one, mask=mask)
    tl.store(distance + row * n + at, tl.where(possible, tl.abs(tl.div_rn(residual, own)), -1.0), mask=mask)
    tl.store(change + row * n + at, tl.where(possible, by, 0.0), mask=mask)
    tl.store(error + row, total)


def flips(groups: Tensor) -> bool:
    """Whether `candidates` takes groups [out, n_groups, g]."""
    return groups.dtype == torch.float32 and groups.shape[1] * groups.shape[2] <= LONGEST


def candidates(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, mean: Tensor, usable: Tensor) -> Candidates:
    """greedy_flip.candidates; its errors are summed in another order."""
    n_out, n_groups, size = groups.shape
    n = n_groups * size
    codes, moved = torch.empty(2, n_out, n_groups, size, device=groups.device)
    distance, change = torch.empty(2, n_out, n, device=groups.device)
    error = torch.empty(n_out, device=groups.device)
    block = triton.next_power_of_2(n)
    _candidates[(n_out,)](
        groups.contiguous(), step.contiguous(), zero.contiguous(), mean.contiguous(), usable.contiguous(),
        codes, moved, distance, change, error, size, n, n_groups, float(grid.lowest), float(grid.highest),
        SYMMETRIC=grid.symmetric, BLOCK=block, num_warps=min(16, max(1, block // 512)), enable_fp_fusion=False,
    )  # fmt: skip
    return Candidates(codes, moved, distance, change, error)
