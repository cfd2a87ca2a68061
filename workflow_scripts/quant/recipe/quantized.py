"""A linear as a recipe leaves it, and what its rounding did."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.grids import Grid

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

    def storage_bits(self, scale_folded: bool) -> int:
        """Codes, steps and zeros of the quantised rows; 16 bits a weight of the kept ones and one for each row to say
        which they are; 16 bits for each entry of an input scale that is not folded away."""
        n_out = self.codes.shape[0]
        n_kept = 0 if self.kept is None else int(self.kept.sum())
        bits = grids.storage_bits(n_out - n_kept, self.n_in, self.grid) + 16 * n_kept * self.n_in
        bits += 0 if self.kept is None else n_out
        return bits + (0 if self.scale is None or scale_folded else 16 * self.n_in)


def rounding_statistics(w: Tensor, quantized: QuantizedLinear) -> dict[str, float]:
    """Shares of weights rounded up, down and not at all; quantiles of the distance moved, in steps, to 1/1000; share of
    flips, weights that did not go to their nearest point. Rows kept in 16 bit are left out. w [out, in]."""
    groups = grids.to_groups(w if quantized.scale is None else w * quantized.scale, quantized.grid.group_size)
    moved = (grids.decode(quantized.codes, quantized.step, quantized.zero) - groups) / quantized.step
    flips = quantized.codes != grids.encode(groups, quantized.step, quantized.zero, quantized.grid)
    rows = slice(None) if quantized.kept is None else ~quantized.kept
    moved, flips = (grids.from_groups(t, quantized.n_in)[rows] for t in (moved, flips))
    if not moved.numel():
        return {}
    tie = 1e-6  # steps; a weight this near its point was on it
    distance = moved.abs().clamp_(max=FARTHEST)
    masks = {
        "rounded_up": moved > tie,
        "rounded_down": moved < -tie,
        "unchanged": distance <= tie,
        "flipped": flips,
    }
    # counted, not sorted: sorting a million distances takes longer than quantising them
    counts = torch.bincount((distance * 1000).round_().int().flatten()).cumsum(0)
    wanted = torch.tensor([0.25, 0.5, 0.75, 1.0], device=counts.device, dtype=torch.float64) * counts[-1]
    shares = [mask.count_nonzero() / moved.numel() for mask in masks.values()]
    found = torch.stack([*shares, *(torch.searchsorted(counts.double(), wanted) / 1000)]).tolist()
    return dict(zip((*masks, *(f"distance_{name}" for name in ("q25", "median", "q75", "max"))), found, strict=True))
