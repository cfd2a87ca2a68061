"""The values a weight may take: codes of a number format times steps, per output channel or per group of inputs.

Shapes: w [out, in]; groups [out, n_groups, g], the last group padded with zeros, which changes no
range because every range includes 0; step and zero [out, n_groups, 1].
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.recipe.formats import FORMATS, IN_WORDS, INT
from quant.recipe.numbers import STEPS, VALUES, Points, Steps, points_of


class Grid(NamedTuple):
    """bits per code; inputs per group (-1: one range per output channel); range symmetric about 0; number format."""

    bits: int
    group_size: int
    symmetric: bool
    format: str = INT

    @property
    def points(self) -> Points:
        return points_of(self.format, self.bits, self.symmetric)

    @property
    def lowest(self) -> float:
        return self.points.lowest

    @property
    def highest(self) -> float:
        return self.points.highest

    @property
    def steps(self) -> Steps:
        return STEPS[self.format]

    @property
    def rows(self) -> int:
        """That share a step."""
        return 1 if self.group_size == -1 else FORMATS[self.format].rows

    @property
    def uniform(self) -> bool:
        """Whether its codes are whole numbers in steps above 0, as GPU kernels take them."""
        return self.format not in VALUES and not self.signed

    @property
    def signed(self) -> bool:
        """Whether its steps have signs."""
        return FORMATS[self.format].signed

    @property
    def in_words(self) -> bool:
        """Whether it is stored as words of several codes, and not as bytes."""
        return self.format in IN_WORDS


def of_formats(names: Iterable[str]) -> list[Grid]:
    """Every grid of formats that have widths and groups of their own."""
    found = [(name, FORMATS[name].bits, FORMATS[name].sizes) for name in names]
    return [Grid(bits, size, True, name) for name, bits, sizes in found if bits and sizes for size in sizes]


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


def over_rows(values: Tensor, grid: Grid, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    """values [out, …], each the sum (or amin ≤ 0, or amax ≥ 0) over the rows that share a step."""
    if grid.rows == 1:
        return values
    padded = torch.cat([values, values.new_zeros(-len(values) % grid.rows, *values.shape[1:])])
    return to_rows(reduce(padded.unflatten(0, (-1, grid.rows)), 1), grid, len(values))


def to_rows(values: Tensor, grid: Grid, n_out: int) -> Tensor:
    """A number for each block of rows that share a step as one for each row, [out, …]."""
    return values if grid.rows == 1 else values.repeat_interleave(grid.rows, 0)[:n_out]


def extent(groups: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Least and greatest of each group, 0 included."""
    # amin and amax apart: on a CPU aminmax is eight times slower
    low, high = groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)
    return over_rows(low, grid, torch.amin), over_rows(high, grid, torch.amax)


NOTHING = (
    2.0**-24
)  # float16's least number: the step of a range of nothing, where codes have no 0 or other steps depend
Stored = Callable[[Tensor], Tensor]  # a step [out, n_groups, 1] as its file gives it back


def span(low: Tensor, high: Tensor, grid: Grid, stored: Stored | None = None) -> tuple[Tensor, Tensor]:
    """Step and zero point of a range low ≤ 0 ≤ high (docs/methods.md, Grids).

    Symmetric: step = max|w| over the largest code, zero = 0. Asymmetric: step = (max-min)/(2^b-1), zero =
    round(-min/step). A range of nothing gets step 1. Of steps with few digits it is one that there is, as `stored`
    gives it back; one with a sign puts the range's longer side where the codes have theirs.
    """
    if grid.signed:
        step = torch.where(-low >= high, -low, -high) / -grid.lowest
        return torch.where(step != 0, step, torch.full_like(step, NOTHING)), torch.zeros_like(step)
    step = (torch.maximum(-low, high) if grid.symmetric else high - low) / grid.highest
    step = torch.where(step > 0, step, torch.ones_like(step))
    if grid.steps.digits is not None:
        step = (stored or grid.steps.digits)(step)
    zero = torch.zeros_like(step) if grid.symmetric else (-low / step).round_().clamp_(0, grid.highest)
    return step, zero


def fit(groups: Tensor, grid: Grid, stored: Stored | None = None) -> tuple[Tensor, Tensor]:
    """Step and zero point of each group's full range."""
    return span(*extent(groups, grid), grid, stored)


def stored_step(
    step: Tensor, dtype: torch.dtype, rows: Tensor | None = None, steps: Steps = STEPS[INT], unit: float = 1.0
) -> Tensor:
    """The step [out, n_groups, 1] that the file of a model in `dtype` gives back, so that codes are chosen for it.

    rows [out]: what the stored rows are multiplied with; unit: a tensor's, of steps in E4M3 (numbers.unit_of).
    """
    if rows is None:
        return steps.held(step, dtype, unit)
    factor = rows[:, None, None]
    return steps.held(step * factor, dtype, unit) / factor


CLIP_FACTORS = tuple(1 - 0.05 * i for i in range(13))  # 1 to 0.4 of the full range


def fit_clipped(groups: Tensor, grid: Grid, importance: Tensor, stored: Stored | None = None) -> tuple[Tensor, Tensor]:
    """Step and zero point of the range, shrunk per group by the factor with the least Σⱼ H_jj (w_j - ŵ_j)².

    importance: the diagonal of H, in groups [1, n_groups, g]; the larger factor on a tie.
    """
    low, high = extent(groups, grid)
    best_step, best_zero = span(low, high, grid, stored)
    least = torch.full_like(best_step, torch.inf)
    difference = torch.empty_like(groups)  # one for all factors: on a CPU, memory costs more than arithmetic
    for factor in CLIP_FACTORS:
        step, zero = span(low * factor, high * factor, grid, stored)
        encode(groups, step, zero, grid, out=difference).sub_(zero).mul_(step).sub_(groups)
        error = over_rows(difference.square_().mul_(importance).sum(-1, keepdim=True), grid, torch.sum)
        better = error < least
        least = torch.where(better, error, least)
        best_step, best_zero = torch.where(better, step, best_step), torch.where(better, zero, best_zero)
    return best_step, best_zero


def encode(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Nearest code, ties to even, in w's dtype; of whole numbers clamp(round(w/step) + zero). out may be groups."""
    return grid.points.nearest_(torch.div(groups, step, out=out), None if grid.symmetric else zero)


def decode(codes: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """(code - zero)·step."""
    return (codes - zero) * step


def fit_range(
    groups: Tensor, grid: Grid, importance: Tensor | None, stored: Stored | None = None
) -> tuple[Tensor, Tensor]:
    """Step and zero point: clipped by importance [in], the diagonal of H, or the full range where it is None."""
    if importance is None:
        return fit(groups, grid, stored)
    return fit_clipped(groups, grid, to_groups(importance[None], grid.group_size), stored)


def nearest(w: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """w [out, in] rounded to the nearest point of its own grid, [out, in]; clipped where importance [in] is given."""
    groups = to_groups(w, grid.group_size)
    step, zero = fit_range(groups, grid, importance)
    # in place: fresh memory for tensors of this size costs a CPU as much as the arithmetic
    return from_groups(encode(groups, step, zero, grid).sub_(zero).mul_(step), w.shape[1])


def storage_bits(n_out: int, n_in: int, grid: Grid) -> int:
    """Bits to store an [out, in] weight: codes, a step per group, and a b-bit zero where asymmetric; a unit of steps in
    E4M3, which is one of 16 and more weights, is left out."""
    per_group = FORMATS[grid.format].step_bits + (0 if grid.symmetric else grid.bits)
    rows = math.ceil(n_out / grid.rows)
    return n_out * n_in * grid.bits + rows * n_groups(n_in, grid.group_size) * per_group


class Codes(NamedTuple):
    """A linear [out, n_in] on its grid: ŵ = (codes - zero)·step.

    codes [out, n_groups, g] values of the grid's points; step, zero [out, n_groups, 1]; unit: what steps in E4M3 are
    stored times.
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    grid: Grid
    n_in: int
    unit: float = 1.0

    def dequantize(self) -> Tensor:
        """[out, in] in the dtype of step."""
        return from_groups(decode(self.codes, self.step, self.zero), self.n_in)

    def of(self, rows: slice | Tensor) -> "Codes":
        """Some of its rows."""
        return self._replace(codes=self.codes[rows], step=self.step[rows], zero=self.zero[rows])
