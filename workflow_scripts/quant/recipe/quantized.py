"""A linear as a recipe leaves it, and what its rounding did."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.grids import Grid
from quant.recipe.kernels import rounding_kernels

COUNTED = "rounded_up", "rounded_down", "unchanged", "flipped"
TIE = 1e-6  # steps; a weight this near its point was on it
LAST = 1023  # thousandths of a step; so many counts lie in a GPU's shared memory, and few distances are beyond
FARTHEST = 1000.0  # steps; a distance beyond, of a range that its steps cannot reach, counts as this


@dataclass(frozen=True)
class QuantizedLinear:
    """Ŵ = (codes + noise - zero)·step·diag(1/scale), rows in `kept` aside, which are as they were.

    codes [out, n_groups, g] whole numbers; noise like them, in steps, or None; step, zero [out, n_groups, 1];
    scale [in] or None; kept: mask [out] or None, and original [out, in] with it; n_in cuts the last group's padding.
    alpha and objective (the search's minimum) are None where nothing was searched, damp (that it took) where nothing
    was damped.
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    grid: Grid
    n_in: int
    scale: Tensor | None = None
    noise: Tensor | None = None
    kept: Tensor | None = None
    original: Tensor | None = None
    alpha: float | None = None
    objective: float | None = None
    damp: float | None = None

    def dequantize(self) -> Tensor:
        """[out, in] in the dtype of step."""
        codes = self.codes if self.noise is None else self.codes + self.noise
        w = grids.from_groups(grids.decode(codes, self.step, self.zero), self.n_in)
        w = w if self.scale is None else w / self.scale
        if self.kept is None or self.original is None:
            return w
        return torch.where(self.kept[:, None], self.original, w)

    def narrow(self) -> "QuantizedLinear":
        """The same with whole codes in a byte each, for as long as nothing is done with them."""
        if not self.grid.uniform:
            return self
        return replace(self, codes=self.codes.to(torch.int8 if self.grid.symmetric else torch.uint8))

    def wide(self) -> "QuantizedLinear":
        """Codes in the dtype of step."""
        return replace(self, codes=self.codes.to(self.step.dtype))

    def storage_bits(self, scale_folded: bool) -> int:
        """Codes, steps and zeros of the quantised rows; 16 bits a weight of the kept ones and one for each row to say
        which they are; 16 bits for each entry of an input scale that is not folded away."""
        n_out = self.codes.shape[0]
        n_kept = 0 if self.kept is None else int(self.kept.sum())
        bits = grids.storage_bits(n_out - n_kept, self.n_in, self.grid) + 16 * n_kept * self.n_in
        bits += 0 if self.kept is None else n_out
        return bits + (0 if self.scale is None or scale_folded else 16 * self.n_in)


class Counted(NamedTuple):
    """What becomes `rounding_statistics` of n weights, on their device, float64: how many went 0, 1, … thousandths of a
    step (on a GPU up to LAST, or its kernels would wait), the farthest, and how many there are of each kind."""

    n: int
    numbers: Tensor

    @classmethod
    def of(cls, bins: Tensor, counts: Tensor) -> "Counted":
        """Of what `moves` gives."""
        flat = bins.flatten()
        if not len(flat):
            return cls(0, counts)
        near = torch.histc(flat, LAST + 1, 0, LAST) if flat.is_cuda else torch.bincount(flat)
        return cls(len(flat), torch.cat([near.double(), flat.max()[None].double(), counts]))


def rounding_statistics(w: Tensor, quantized: QuantizedLinear) -> dict[str, float]:
    """Shares of weights rounded up, down and not at all; quantiles of the distance moved, in steps, to 1/1000; share of
    flips, weights that did not go to their nearest point. Rows kept in 16 bit are left out. w [out, in]."""
    bins, counts = moves_of(w, quantized)
    return next(statistics_of([(Counted.of(bins, counts), lambda: bins)]))


def statistics_of(found: Sequence[tuple[Counted, Callable[[], Tensor]]]) -> Iterator[dict[str, float]]:
    """`rounding_statistics` of each linear, for one wait for the device; with it all its distances, for where they are
    farther than was counted."""
    sizes = [len(each.numbers) for each, _ in found]
    numbers = torch.cat([each.numbers for each, _ in found]).cpu().split(sizes)
    for ((n, _), distances), part in zip(found, numbers, strict=True):
        if not n:
            yield {}
            continue
        near, most, counts = np.split(part.numpy(), [-len(COUNTED) - 1, -len(COUNTED)])
        where = quartiles(near, n)
        if where[-1] == len(near):
            where = quartiles(torch.bincount(distances().flatten()).cpu().numpy(), n)
        shares = (counts / n).astype(np.float32).tolist()
        names = *COUNTED, *(f"distance_{name}" for name in ("q25", "median", "q75", "max"))
        yield dict(zip(names, (*shares, *(each / 1000 for each in (*where, int(most[0])))), strict=True))


def quartiles(counted: np.ndarray, n: int) -> list[int]:
    """Of n numbers, from how many are 0, 1, and so on; as many as were counted where one is beyond."""
    return np.searchsorted(counted.cumsum(), np.array([0.25, 0.5, 0.75]) * n).tolist()


def moves_of(w: Tensor, quantized: QuantizedLinear) -> tuple[Tensor, Tensor]:
    """`moves` of a linear's rows, but for those that are kept."""
    codes, step, zero = quantized.codes, quantized.step, quantized.zero
    if quantized.kept is not None:
        rows = (~quantized.kept).nonzero()[:, 0]  # the one wait for the device
        w, codes, step, zero = (t[rows] for t in (w, codes, step, zero))
    if not w.numel():
        return w.new_zeros(w.shape, dtype=torch.int32), w.new_zeros(len(COUNTED), dtype=torch.float64)
    return moves(w, quantized.scale, codes, step, zero, quantized.grid)


def moves(
    w: Tensor, scale: Tensor | None, codes: Tensor, step: Tensor, zero: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """How far each weight of w [out, in] moved, in thousandths of a step, int [out, in]; and how many are of each kind
    that is counted, float64 [4]."""
    if w.is_cuda and w.dtype == torch.float32 and grid.uniform and (fused := rounding_kernels()) is not None:
        return fused.moves(w, scale, codes, step, zero, grid, TIE, FARTHEST)
    groups = grids.to_groups(w if scale is None else w * scale, grid.group_size)
    moved = (grids.decode(codes, step, zero) - groups) / step.abs()
    flips = codes != grids.encode(groups, step, zero, grid)
    moved, flips = (grids.from_groups(t, w.shape[1]) for t in (moved, flips))
    distance = moved.abs().clamp_(max=FARTHEST)
    masks = moved > TIE, moved < -TIE, distance <= TIE, flips
    counts = torch.stack([mask.count_nonzero() for mask in masks]).double()
    return (distance * 1000).round_().int(), counts
