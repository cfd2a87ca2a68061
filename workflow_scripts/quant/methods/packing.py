"""Whether the packed format holds what a recipe makes."""

from collections.abc import Mapping

from quant.checkpoints import packed
from quant.recipe.recipe import Recipe


def why_not_packed(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a recipe's result has to be stored dense, in one line; None where the format holds it.

    shapes: [out, in] of each linear by name.
    """
    if recipe.bits not in packed.BITS:
        return f"the format's readers have products for {' and '.join(map(str, packed.BITS))} bits, not {recipe.bits}"
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
