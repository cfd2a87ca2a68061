"""A recipe applied to linears that share a scale: salience → scale search → grid → rounding → protection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.calibration.channels import Channels
from quant.calibration.reader import LinearStatistics
from quant.recipe import grids
from quant.recipe.fused import fit_range
from quant.recipe.grids import Grid
from quant.recipe.protection import SCORES, top
from quant.recipe.recipe import Recipe
from quant.recipe.rounding import ROUNDINGS, Context
from quant.recipe.salience import SALIENCES
from quant.recipe.search import Search, Target, search_scale


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
        return w if self.kept is None else torch.where(self.kept[:, None], self.original, w)

    def storage_bits(self, scale_folded: bool) -> int:
        """Codes, steps and zeros of the quantised rows; 16 bits a weight of the kept ones and one for each row to say
        which they are; 16 bits for each entry of an input scale that is not folded away."""
        n_out = self.codes.shape[0]
        n_kept = 0 if self.kept is None else int(self.kept.sum())
        bits = grids.storage_bits(n_out - n_kept, self.n_in, self.grid) + 16 * n_kept * self.n_in
        bits += 0 if self.kept is None else n_out
        return bits + (0 if self.scale is None or scale_folded else 16 * self.n_in)


def row_weight(statistics: LinearStatistics, objective: str) -> Tensor | None:
    """[out]: E|act(z_k)| over its mean on MLP linears (praq), the squared Jacobian (jacobian), or None for uniform."""
    if objective == "praq" and statistics.channels.is_mlp:
        return statistics.channels.act_abs / statistics.channels.act_abs.mean()
    return statistics.row_weight if objective == "jacobian" else None


def tie_heads(salience: Tensor, heads: tuple[int, int, int]) -> Tensor:
    """Averages a salience [heads·size] over the query heads that share a key/value head, so that its scale can be
    folded into the value projection; heads = (query heads, key/value heads, size)."""
    n_query, n_value, size = heads
    tied = salience.view(n_value, n_query // n_value, size).mean(1, keepdim=True)
    return tied.expand(-1, n_query // n_value, -1).reshape(-1)


def find_scale(
    weights: Sequence[Tensor],
    statistics: Sequence[LinearStatistics],
    recipe: Recipe,
    heads: tuple[int, int, int] | None = None,
) -> Search | None:
    """One scale for linears [out_i, in] that read the same input, by their mean salience and summed error."""
    salience = SALIENCES[recipe.salience]
    if salience is None:
        return None
    total = torch.stack([salience(w, s.channels) for w, s in zip(weights, statistics, strict=True)]).mean(0)
    total = total if heads is None else tie_heads(total, heads)
    targets = [
        # the search allows for half the noise that the saliences were taken under (docs/methods.md, Noise)
        Target(w, s.moment, row_weight(s, recipe.objective), recipe.noise_std / 2 * s.x_std)
        for w, s in zip(weights, statistics, strict=True)
    ]
    return search_scale(targets, total, recipe.grid, recipe.n_grid, recipe.clip)


def round_linear(
    w: Tensor,
    found: Search | None,
    statistics: LinearStatistics,
    recipe: Recipe,
    generator: torch.Generator,
    stored: Callable[[Tensor], Tensor] | None = None,
) -> QuantizedLinear:
    """w [out, in] on the recipe's grid under the scale that was found; stored: a step as it will be read back."""
    scale = None if found is None or found.alpha == 0 else found.scale
    inverse = torch.ones_like(w[0]) if scale is None else 1 / scale
    channels, moment = statistics.channels, statistics.moment
    groups = grids.to_groups(w if scale is None else w * scale, recipe.group_size)
    importance = None
    if recipe.clip:
        importance = (channels.x_sq if moment is None else moment.diagonal()) * inverse**2
    step, zero = fit_range(groups, recipe.grid, importance)
    step = step if stored is None else stored(step)
    context = Context(
        None if moment is None or recipe.rounding != "gptq" else inverse[:, None] * moment * inverse,
        None if channels is None else channels.x_mean * inverse,
        recipe.outlier_percent,
        recipe.damp,
    )
    codes, damp = ROUNDINGS[recipe.rounding](groups, step, zero, recipe.grid, context)
    noise = None
    if recipe.noise_injection:  # drawn on the CPU, so that a GPU gives the same
        drawn = torch.randn(codes.shape, generator=generator, dtype=codes.dtype)
        noise = recipe.noise_injection * drawn.to(codes.device)
    kept = protect(w, channels, recipe)
    return QuantizedLinear(
        codes,
        step,
        zero,
        recipe.grid,
        w.shape[1],
        scale,
        noise,
        kept,
        None if kept is None else w,
        None if found is None else found.alpha,
        None if found is None else found.objective,
        damp,
    )


def protect(w: Tensor, channels: Channels | None, recipe: Recipe) -> Tensor | None:
    """Mask [out] of the rows to keep in 16 bit, or None."""
    score = SCORES[recipe.keep]
    if score is None:
        return None
    return top(
        score(w, channels, beta=recipe.beta, tau=recipe.tau, noise_factor=recipe.noise_factor), recipe.keep_ratio
    )


def quantize_group(
    weights: Sequence[Tensor],
    statistics: Sequence[LinearStatistics],
    recipe: Recipe,
    generator: torch.Generator,
    heads: tuple[int, int, int] | None = None,
    stored: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> list[QuantizedLinear]:
    """Linears [out_i, in] that share one scale (a group of one in scope linear), to codes on the recipe's grid.

    stored: for each linear, what its file makes of a step.
    """
    found = find_scale(weights, statistics, recipe, heads)
    known = zip(weights, statistics, stored or [None] * len(weights), strict=True)
    return [round_linear(w, found, s, recipe, generator, keeps) for w, s, keeps in known]


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
    distance = moved.abs()
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
