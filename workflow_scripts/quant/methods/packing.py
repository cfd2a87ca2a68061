"""Whether the packed format holds what a recipe makes, and whether there is a product for it."""

from collections.abc import Mapping

from quant.checkpoints.packed import FAST
from quant.files.tensorfile import Layout
from quant.recipe.grids import Grid
from quant.recipe.recipe import Recipe


def why_not_packed(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a recipe's result has to be stored dense, in one line; None where the format holds it.

    shapes: [out, in] of each linear by name.
    """
    if recipe.keep != "none":
        return f"keep: {recipe.keep} leaves rows in 16 bit, and the format has one width for a linear"
    if recipe.noise_injection:
        return "noise_injection moves weights off their grid"
    if recipe.salience != "none" and recipe.scope == "linear":
        return "scope: linear gives each linear an input scale of its own, which no operation takes over"
    for name, (_, n_in) in shapes.items():
        if recipe.group_size > 0 and n_in % recipe.group_size:
            return f"group_size {recipe.group_size} does not divide the {n_in} inputs of {name}"
    return None


def without_kernels(dense: Layout, grids: Mapping[str, Grid]) -> str | None:
    """The first linear that Marlin, vLLM's product for packed weights, does not take, and why; None where it takes all:
    4 or 8 bits, inputs in multiples of 128, outputs of 64, groups of 32, 64 or 128 inputs or of a whole row. grids: of
    each packed linear."""
    for grid in sorted(set(grids.values())):
        if grid.bits not in FAST:
            return f"has products for {' and '.join(map(str, FAST))} bits, not {grid.bits}"
        if grid.group_size not in (-1, 32, 64, 128):
            return f"has no product for groups of {grid.group_size} inputs"
    for name in grids:
        n_out, n_in = dense[f"{name}.weight"][1]
        if n_in % 128 or n_out % 64:
            return f"wants inputs in multiples of 128 and outputs of 64, where {name} has {n_in} and {n_out}"
    return None
