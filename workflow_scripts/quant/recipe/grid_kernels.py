"""Triton kernels for float32 on a GPU: the torch functions that call them, one launch instead of hundreds.

Divisions round as IEEE says, and multiply-adds are fused only where that changes no grid, so that grids are those of a
CPU to the bit.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from quant.recipe.grids import CLIP_FACTORS, Grid, n_groups

LONGEST = 16384  # inputs of a group; a program holds a group of at least one row in registers
TILE, WARPS = 2048, 8  # values and warps of a program, where its group is no longer: few values a thread
ROWS, COLUMNS, INPUTS = 256, 128, 64  # of a program's product D·H: its outputs, its inputs, and the inputs of one step
LARGEST = tl.constexpr(60000.0)  # float16 ends at 65504
AT_ONCE = 2**28  # bytes of candidates' differences at once


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
def _inverse(x):
    """1/x as IEEE rounds it; 0 where x is so small that it overflows."""
    return tl.where(x < 1e-37, 0.0, tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x))


@triton.jit
def _divide(x, by, inverse):
    """x/by as IEEE rounds it, of by > 0 and its inverse: a quotient and one correction (Markstein 1990)."""
    found = x * inverse
    return tl.fma(tl.fma(-found, by, x), inverse, found)


@triton.jit
def _round(x, step, zero, lowest, highest):
    codes = _rint(_divide(x, step, _inverse(step))) + zero
    return (tl.minimum(tl.maximum(codes, lowest), highest) - zero) * step


@triton.jit
def _clipped(
    x, low, high, step, zero, weight, factors, lowest, highest, N_FACTORS: tl.constexpr, SYMMETRIC: tl.constexpr
):
    """The range by the factor that leaves the least weighted error, as grids.fit_clipped finds it. Errors are judged by
    step·factor and its inverse, so that their last bits may differ from a CPU's."""
    inverse = _inverse(step)
    bottom, top = lowest - zero, highest - zero
    least = tl.full(step.shape, float("inf"), tl.float32)
    best = tl.full(step.shape, 1.0, tl.float32)
    for i in range(N_FACTORS):
        factor = tl.load(factors + i)
        narrow, finer = step * factor, inverse * tl.load(factors + N_FACTORS + i)
        error = tl.fma(tl.minimum(tl.maximum(_rint(x * finer), bottom), top), narrow, -x)
        error = tl.sum(error * error * weight, 1, keep_dims=True)
        best = tl.where(error < least, factor, best)
        least = tl.minimum(error, least)
    return _span(low * best, high * best, highest, SYMMETRIC)


@triton.jit
def _range(x, weight, factors, lowest, highest, N_FACTORS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Step and zero point [rows, 1] of the groups x [rows, g], clipped where there are factors."""
    low = tl.minimum(tl.min(x, 1, keep_dims=True), 0.0)
    high = tl.maximum(tl.max(x, 1, keep_dims=True), 0.0)
    step, zero = _span(low, high, highest, SYMMETRIC)
    if N_FACTORS > 0:
        step, zero = _clipped(x, low, high, step, zero, weight, factors, lowest, highest, N_FACTORS, SYMMETRIC)
    return step, zero


@triton.jit
def _differences(
    w, scales, importance, factors, moment, unit, row_weight, out, errors,
    n_out, n_in, width, group_size, lowest, highest, noise,
    N_FACTORS: tl.constexpr, SYMMETRIC: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0)  # next to each other, programs read the same weights
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    within = tl.arange(0, BLOCK)[None, :]
    columns = tl.program_id(2) * group_size + within
    real = (within < group_size) & (columns < n_in)
    mask = real & (rows < n_out)
    original = tl.load(w + rows.to(tl.int64) * n_in + columns, mask=mask, other=0.0)
    scale = tl.load(scales + which * n_in + columns, mask=real, other=1.0)
    weight = tl.load(importance + which * n_in + columns, mask=real, other=0.0) if N_FACTORS > 0 else scale
    x = original * scale
    step, zero = _range(x, weight, factors, lowest, highest, N_FACTORS, SYMMETRIC)
    found = _divide(_round(x, step, zero, lowest, highest), scale, _inverse(scale))
    difference = found - original
    own = tl.load(moment + columns.to(tl.int64) * (n_in + 1), mask=real, other=0.0)  # H's diagonal
    error = difference * difference * own + noise * (found * found)
    difference *= tl.load(unit + columns, mask=real, other=0.0)
    if WEIGHTED:
        share = tl.load(row_weight + rows, mask=rows < n_out, other=0.0)
        error, difference = error * share, difference * tl.sqrt_rn(share)
    error = tl.sum(tl.sum(tl.where(mask, error, 0.0), 1), 0)
    place = (which.to(tl.int64) * n_out + rows) * width + columns
    difference = tl.minimum(tl.maximum(difference, -LARGEST), LARGEST)
    tl.store(out + place, difference.to(tl.float16), mask=mask)
    tl.store(errors + (which * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2), error)


def judges(w: Tensor, grid: Grid) -> bool:
    """Whether `candidate_errors` takes a weight [out, in]."""
    return w.is_cuda and w.dtype == torch.float32 and _group(w, grid) <= LONGEST


def fits(groups: Tensor) -> bool:
    """Whether `fit_clipped` takes groups [out, n_groups, g]."""
    return groups.is_cuda and groups.dtype == torch.float32 and groups.shape[2] <= LONGEST


def _group(w: Tensor, grid: Grid) -> int:
    return w.shape[1] if grid.group_size == -1 else grid.group_size


def _padded(n_in: int) -> int:
    """Inputs in whole columns of a program's product."""
    return triton.cdiv(n_in, COLUMNS) * COLUMNS


def _shape(size: int) -> tuple[int, int, int]:
    """(rows, inputs, warps) of a program that holds groups of a size: the fastest of those tried on an H100."""
    block = triton.next_power_of_2(size)
    if block > TILE:
        return 2, block, 16
    return TILE // block, block, WARPS


@functools.cache
def _factors(clip: bool, device: torch.device) -> tuple[Tensor, int]:
    """What ranges are shrunk by, then the inverse of each; in float64 they become the float32 that torch multiplies a
    float32 tensor with."""
    factors = torch.tensor(CLIP_FACTORS if clip else [], dtype=torch.float64)
    return torch.cat([factors, 1 / factors]).float().to(device), len(factors)


def differences(
    w: Tensor,
    scales: Tensor,
    grid: Grid,
    importance: Tensor | None,
    moment: Tensor,
    unit: Tensor,
    row_weight: Tensor | None,
    noise: float,
) -> tuple[Tensor, Tensor]:
    """D = (Ŵ - W)·diag(unit) of each candidate Ŵ = Q(W·diag(s))·diag(1/s), rows times √row_weight, in float16
    [n, out, width]; and Σ row_weight_k ((ŵ_kj - w_kj)² H_jj + noise·ŵ_kj²), summed in float32, as float64 [n].

    w [out, in]; scales, importance [n, in]; moment [in, in]; unit [in]; width: the inputs, padded with zeros.
    """
    n_out, n_in = w.shape
    width = _padded(n_in)
    size = _group(w, grid)
    rows, block, warps = _shape(size)
    make = torch.empty if width == n_in else torch.zeros
    out = make(len(scales), n_out, width, device=w.device, dtype=torch.float16)
    blocks = triton.cdiv(n_out, rows), n_groups(n_in, grid.group_size)
    errors = torch.empty(len(scales), *blocks, device=w.device)
    scales = scales.contiguous()
    factors, n_factors = _factors(importance is not None, w.device)
    _differences[(len(scales), *blocks)](
        w.contiguous(), scales, scales if importance is None else importance.contiguous(), factors,
        moment.contiguous(), unit, unit if row_weight is None else row_weight.contiguous(), out, errors,
        n_out, n_in, width, size, float(grid.lowest), float(grid.highest), noise,
        N_FACTORS=n_factors, SYMMETRIC=grid.symmetric, WEIGHTED=row_weight is not None, ROWS=rows, BLOCK=block,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out, errors.sum((1, 2), dtype=torch.float64)


@triton.jit
def _pair_errors(
    d, pairs, errors, n_out, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr
):  # fmt: skip
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the one with most inputs before it first
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = rows < n_out
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    inputs = tl.arange(0, INPUTS)
    which = tl.program_id(2)
    own = d + (which.to(tl.int64) * n_out + tl.where(there, rows, 0))[:, None] * width
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, (block + 1) * COLUMNS, INPUTS):
        left = tl.load(own + (first + inputs)[None, :])
        right = tl.load(pairs + (first + inputs)[:, None] * width + columns[None, :])
        total = tl.dot(left, right, total)
    total *= tl.load(own + columns[None, :]).to(tl.float32)
    total = tl.sum(tl.where(there, tl.sum(total, 1), 0.0), 0)
    tl.store(errors + (which * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + block, total)


def candidate_errors(
    w: Tensor,
    scales: Tensor,
    grid: Grid,
    importance: Tensor | None,
    moment: Tensor,
    row_weight: Tensor | None,
    noise: float,
) -> Tensor:
    """Σ_k weight_k (d_k H d_kᵀ + noise·‖ŵ_k‖²) / out of each candidate, in float64 [n].

    What single inputs add is summed in float32. What pairs of them add goes through matrix units: d_kj·√H_jj, and the
    inputs' correlations H_ij/√(H_ii H_jj), in float16, with the 11 bits that TF32 has; sums in float32. Shapes as in
    `differences`.
    """
    n_out, n_in = w.shape
    unit = moment.diagonal().sqrt()
    width = _padded(n_in)
    pairs = torch.zeros(width, width, device=w.device, dtype=torch.float16)
    inverse = torch.where(unit > 0, 1 / unit, 0.0)
    size = max(1, AT_ONCE // (4 * n_in))
    for first in range(0, n_in, size):  # by rows, so that nothing as large lies beside it
        rows = slice(first, min(first + size, n_in))
        pairs[rows, :n_in] = (moment[rows] * (2 * inverse)).mul_(inverse[rows, None]).triu_(1 + first)
    # a difference is less than its weight but where a scale is of no use; a power of two rounds nothing
    largest = w.abs().amax() * unit.amax() * (1.0 if row_weight is None else row_weight.amax().sqrt())
    factor = torch.exp2(torch.floor(torch.log2(LARGEST.value / largest.clamp(min=1e-20))))
    unit, share = unit * factor, factor.double() ** -2
    found = []
    at_once = max(1, AT_ONCE // (2 * n_out * width))
    for first in range(0, len(scales), at_once):
        some = slice(first, first + at_once)
        clipped_by = None if importance is None else importance[some]
        d, own = differences(w, scales[some], grid, clipped_by, moment, unit, row_weight, noise)
        blocks = triton.cdiv(n_out, ROWS), width // COLUMNS
        errors = torch.empty(len(d), *blocks, device=w.device)
        _pair_errors[(blocks[1], blocks[0], len(d))](
            d, pairs, errors, n_out, width, ROWS=ROWS, COLUMNS=COLUMNS, INPUTS=INPUTS, num_warps=8, num_stages=4
        )
        found.append(own + errors.sum((1, 2), dtype=torch.float64) * share)
    return (found[0] if len(found) == 1 else torch.cat(found)) / n_out


@triton.jit
def _fit(
    groups, importance, factors, steps, zeros, n_groups, size, n_rows, lowest, highest,
    N_FACTORS: tl.constexpr, SYMMETRIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    within = tl.arange(0, BLOCK)[None, :]
    there = rows < n_rows
    mask = there & (within < size)
    x = tl.load(groups + rows.to(tl.int64) * size + within, mask=mask, other=0.0)
    weight = tl.load(importance + (rows % n_groups) * size + within, mask=mask, other=0.0)
    step, zero = _range(x, weight, factors, lowest, highest, N_FACTORS, SYMMETRIC)
    tl.store(steps + rows, step, mask=there)
    tl.store(zeros + rows, zero, mask=there)


def fit_clipped(groups: Tensor, grid: Grid, importance: Tensor) -> tuple[Tensor, Tensor]:
    """grids.fit_clipped for groups [out, n_groups, g] and importance [1, n_groups, g]."""
    n_out, n_groups, size = groups.shape
    rows, block, warps = _shape(size)
    step, zero = torch.empty(2, n_out, n_groups, 1, device=groups.device)
    factors, n_factors = _factors(True, groups.device)
    _fit[(triton.cdiv(n_out * n_groups, rows),)](
        groups.contiguous(), importance.contiguous(), factors, step, zero, n_groups, size, n_out * n_groups,
        float(grid.lowest), float(grid.highest),
        N_FACTORS=n_factors, SYMMETRIC=grid.symmetric, ROWS=rows, BLOCK=block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return step, zero
