"""A recipe applied to linears that share a scale: salience → scale search → grid → rounding → protection."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from quant.calibration.channels import Channels
from quant.calibration.reader import LinearStatistics
from quant.recipe import grids
from quant.recipe.checks import check_importance, check_rounded
from quant.recipe.context import Context, Rounded, asked
from quant.recipe.functions import function_of
from quant.recipe.grids import Codes, Grid
from quant.recipe.kernels import fit_range
from quant.recipe.protection import top
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from quant.recipe.refine import refine, within
from quant.recipe.row_feedback import mixed, round_rows
from quant.recipe.search import Search, Target, search_scale


def row_weight(statistics: LinearStatistics, objective: str) -> Tensor | None:
    """[out]: E|act(z_k)| over its mean on MLP linears (praq), the squared Jacobian (jacobian), or None for uniform."""
    if objective == "praq" and (channels := asked(statistics.channels, "channels")).is_mlp:
        mean = channels.act_abs.mean()
        return torch.where(mean > 0, channels.act_abs / mean, 1.0)
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
    salience = function_of("saliences", recipe.salience, recipe.parameters)
    if salience is None:
        return None
    what = f"salience: {recipe.salience}"
    each = [
        check_importance(salience(w, s.channels), w.shape[1], what, 0) for w, s in zip(weights, statistics, strict=True)
    ]
    total = each[0] if len(each) == 1 else torch.stack(each).mean(0)
    total = total if heads is None else tie_heads(total, heads)
    targets = [target for w, s in zip(weights, statistics, strict=True) for target in targets_of(w, s, recipe)]
    return search_scale(targets, total, recipe.search_grid, recipe.n_grid, recipe.clip)


def targets_of(w: Tensor, statistics: LinearStatistics, recipe: Recipe) -> list[Target]:
    """One linear's; of rows in parts, each counts by its information over the mean of all rows."""
    weight = row_weight(statistics, recipe.objective)
    # the search allows for half the noise that the saliences were taken under (docs/methods.md, Noise)
    noise = recipe.noise_std / 2 * statistics.x_std
    parts = [(rows, asked(moment, "moment")) for rows, moment in statistics.by_rows(len(w))]
    if len(parts) == 1:
        return [Target(w, parts[0][1], weight, noise)]
    own = asked(statistics.fisher, "moment")
    sizes = torch.tensor([rows.stop - rows.start for rows, _ in parts], dtype=own.dtype, device=own.device)
    whole = (own * sizes).sum() / len(w)
    shares = (own / whole if whole > 0 else torch.ones_like(own)) * sizes / len(w)  # a target's error is a mean of rows
    return [
        Target(w[rows], moment, share * (torch.ones_like(w[rows, 0]) if weight is None else weight[rows]), noise)
        for (rows, moment), share in zip(parts, shares, strict=True)
    ]


def bounded_scale(
    weights: Sequence[Tensor],
    statistics: Sequence[LinearStatistics],
    recipe: Recipe,
    heads: tuple[int, int, int] | None,
    foldable: Callable[[Tensor], Tensor] | None,
) -> Search | None:
    """`find_scale`, as whatever takes over the inverse can hold it."""
    found = find_scale(weights, statistics, recipe, heads)
    if foldable is None or found is None or not found.alpha:
        return found
    return found._replace(scale=foldable(found.scale))


class Placed(NamedTuple):
    """Rows on their grid: codes [out, n_groups, g], step and zero [out, n_groups, 1], and the damp that it took."""

    codes: Tensor
    step: Tensor
    zero: Tensor
    damp: float | None


def rounding_of(recipe: Recipe) -> Callable[..., Rounded]:
    """A recipe's, whose codes are values of its grid."""
    function = function_of("roundings", recipe.rounding, recipe.parameters)
    assert function is not None  # there is no rounding `none`

    def rounding(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context) -> Rounded:
        shape = groups.shape  # a function may write its codes there
        return check_rounded(function(groups, step, zero, grid, context), shape, grid, f"rounding: {recipe.rounding}")

    return rounding


def on_grid(
    groups: Tensor,
    channels: Channels | None,
    context: Context,
    recipe: Recipe,
    stored: Callable[[Tensor], Tensor] | None,
    between: Tensor | None = None,
) -> Placed:
    """Ranges, rounding and refinement of scaled rows in groups, all by one second moment; between: R, where rows are
    rounded together."""
    importance = None
    if recipe.clip:
        h = context.second_moment
        importance = context.importance(asked(channels, "channels").x_sq if h is None else h.diagonal())
    step, zero = fit_range(groups, recipe.grid, importance, stored)
    step = step if stored is None else stored(step)
    if between is not None:
        moment, damp = mixed(between, recipe.row_feedback), recipe.parameters["damp"]
        codes, step, damp = round_rows(groups, step, zero, recipe.grid, context, moment, damp, recipe.refine, stored)
        return Placed(codes, step, zero, damp)
    rounded = rounding_of(recipe)(groups, step, zero, recipe.grid, context)
    codes = rounded.codes
    if recipe.refine:
        moment = context.copied()
        found = Codes(rounded.codes, step, zero, recipe.grid, len(moment))
        codes, step, *_ = refine(groups, found, moment, recipe.refine, stored)
    return Placed(codes, step, zero, rounded.damp)


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
    inverse = None if scale is None else 1 / scale
    channels = statistics.channels
    groups = grids.to_groups(w if scale is None else w * scale, recipe.group_size)
    parts = statistics.by_rows(len(w))
    placed = [
        on_grid(
            groups[rows],
            channels,
            Context(moment, None if channels is None else channels.x_mean, inverse, generator),
            recipe,
            stored if stored is None or len(parts) == 1 else partial(within, stored, rows, len(w)),
            statistics.rows if recipe.row_feedback else None,
        )
        for rows, moment in parts
    ]
    codes, step, zero = (
        each[0] if len(each) == 1 else torch.cat(each) for each in zip(*(p[:3] for p in placed), strict=True)
    )
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
        max((p.damp for p in placed if p.damp is not None), default=None),
    )


def protect(w: Tensor, channels: Channels | None, recipe: Recipe) -> Tensor | None:
    """Mask [out] of the rows to keep in 16 bit, or None."""
    score = function_of("scores", recipe.keep, recipe.parameters)
    if score is None:
        return None
    return top(check_importance(score(w, channels), len(w), f"keep: {recipe.keep}", -torch.inf), recipe.keep_ratio)
