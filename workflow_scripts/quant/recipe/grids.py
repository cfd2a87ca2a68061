"""The values a weight may take: b-bit uniform grids, per output channel or per group of inputs.

Shapes: w [out, in]; groups [out, n_groups, g], the last group padded with zeros, which changes no
range because every range includes 0; step and zero [out, n_groups, 1].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """bits per code; inputs per group (-1: one range per output channel); range symmetric about 0."""

    bits: int
    group_size: int
    symmetric: bool

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


def n_groups(n_in: int, group_size: int) -> int:
    """Groups per output channel; the last may be shorter."""
    return 1 if group_size == -1 else math.ceil(n_in / group_size)


def to_groups(w: Tensor, group_size: int) -> Tensor:
    """[out, in] → [out, n_groups, g]; a view where g divides `in`."""
    n_out, n_in = w.shape
    groups = n_groups(n_in, group_size)
    size = n_in if group_size == -1 else group_size
    if groups * size != n_in:
        w = torch.nn.functional.pad(w, (0, groups * size - n_in))
    return w.reshape(n_out, groups, size)


def from_groups(groups: Tensor, n_in: int) -> Tensor:
    """[out, n_groups, g] → [out, in], the padding cut off."""
    return groups.flatten(1)[:, :n_in]


def extent(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each group, 0 included."""
    # amin and amax apart: on a CPU aminmax is eight times slower
    return groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)


def span(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Step and zero point of a range low ≤ 0 ≤ high (docs/methods.md, Grids).

    Symmetric: step = max|w| / (2^(b-1)-1), zero = 0. Asymmetric: step = (max-min)/(2^b-1), zero = round(-min/step).
    A range of nothing gets step 1.
    """
    step = (torch.maximum(-low, high) if grid.symmetric else high - low) / grid.highest
    step = torch.where(step > 0, step, torch.ones_like(step))
    zero = torch.zeros_like(step) if grid.symmetric else (-low / step).round_().clamp_(0, grid.highest)
    return step, zero


def fit(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Step and zero point of each group's full range."""
    return span(*extent(groups), grid)


def stored_step(step: Tensor, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
    """The step [out, n_groups, 1] that a file with steps in `dtype` gives back, so that codes are chosen for it.

    rows [out]: what the stored rows are multiplied with. A step too small for dtype becomes its smallest number, one
    too large (that of a row of nothing, multiplied) its largest.
    """
    kind = torch.finfo(dtype)
    least = max(kind.smallest_normal * kind.eps, torch.finfo(torch.float32).smallest_normal)
    factor = torch.ones_like(step[:, :1]) if rows is None else rows[:, None, None]
    kept = (step * factor).to(dtype)
    return kept.clamp_(min=least, max=kind.max).to(step.dtype) / factor


CLIP_FACTORS = tuple(1 - 0.05 * i for i in range(13))  # 1 to 0.4 of the full range


def fit_clipped(groups: Tensor, grid: Grid, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Step and zero point of the range, shrunk per group by the factor with the least Σⱼ H_jj (w_j - ŵ_j)².

    importance: the diagonal of H, in groups [1, n_groups, g]; the larger factor on a tie.
    """
    low, high = extent(groups)
    best_step, best_zero = span(low, high, grid)
    least = torch.full_like(best_step, torch.inf)
    difference = torch.empty_like(groups)  # one for all factors: on a CPU, memory costs more than arithmetic
    for factor in CLIP_FACTORS:
        step, zero = span(low * factor, high * factor, grid)
        encode(groups, step, zero, grid, out=difference).sub_(zero).mul_(step).sub_(groups)
        error = difference.square_().mul_(importance).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best_step, best_zero = torch.where(better, step, best_step), torch.where(better, zero, best_zero)
    return best_step, best_zero


def encode(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Nearest code, ties to even: clamp(round(w/step) + zero), as whole numbers in w's dtype; out may be groups."""
    codes = torch.div(groups, step, out=out).round_()
    if not grid.symmetric:
        codes += zero
    return codes.clamp_(grid.lowest, grid.highest)


def decode(codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """(code - zero)·step."""
    return (codes - zero) * step


def fit_range(groups: Tensor, grid: Grid, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Step and zero point: clipped by importance [in], the diagonal of H, or the full range where it is None."""
    if importance is None:
        return fit(groups, grid)
    return fit_clipped(groups, grid, to_groups(importance[None], grid.group_size))


def nearest(w: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """w [out, in] rounded to the nearest point of its own grid, [out, in]; clipped where importance [in] is given."""
    groups = to_groups(w, grid.group_size)
    step, zero = fit_range(groups, grid, importance)
    # in place: fresh memory for tensors of this size costs a CPU as much as the arithmetic
    return from_groups(encode(groups, step, zero, grid).sub_(zero).mul_(step), w.shape[1])


def storage_bits(n_out: int, n_in: int, grid: Grid) -> int:
    """Bits to store an [out, in] weight: codes, a 16-bit step per group, and a b-bit zero where asymmetric."""
    per_group = 16 + (0 if grid.symmetric else grid.bits)
    return n_out * (n_in * grid.bits + n_groups(n_in, grid.group_size) * per_group)


class Codes(NamedTuple):
    """A linear [out, n_in] on its grid: ŵ = (codes - zero)·step.

    codes [out, n_groups, g] whole numbers; step, zero [out, n_groups, 1].
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    grid: Grid
    n_in: int

    def dequantize(self) -> Tensor:
        """[out, in] in the dtype of step."""
        return from_groups(decode(self.codes, self.step, self.zero), self.n_in)
