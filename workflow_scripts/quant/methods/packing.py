"""Whether the packed format holds what a recipe makes of a model, and whether there is a product for it."""

from collections.abc import Mapping

from quant.checkpoints import byte_codes
from quant.checkpoints.packed import FAST
from quant.files.tensorfile import Layout
from quant.files.weight_names import experts_of
from quant.recipe.formats import FORMATS, NAMES
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
    for name, (n_out, n_in) in shapes.items():
        grid = recipe.at(name).grid
        if not grid.in_words and (reason := byte_codes.why_not(grid, n_out, n_in)):
            return reason if grid.format not in NAMES else f"{name}: {reason}"
        if grid.group_size > 0 and n_in % grid.group_size:
            return f"group_size {grid.group_size} does not divide the {n_in} inputs of {name}"
        if n_in % (whole := FORMATS[grid.format].whole):
            return f"{grid.format} has {whole} inputs together, which do not divide the {n_in} of {name}"
    return None


def why_dense(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], unpacked: Mapping[str, str]) -> str | None:
    """`why_not_packed` of a model of which no reader takes some grids packed (records.model.Linears: unpacked)."""
    if reason := unpacked.get("any"):
        return reason
    if reason := unpacked.get("asymmetric"):
        of_experts = {recipe.at(name).grid for name in shapes if experts_of(name)}
        if not all(recipe.at(name).grid.symmetric for name in shapes):
            return reason
        if len(of_experts) > 1:
            return "transformers reads all experts on one grid, and tensor_types gives them several"
    return why_not_packed(recipe, shapes)


def activations_refused(activations: str, reason: str) -> str:
    return (
        f"activations: {activations}: packed checkpoints have their readers round inputs, and this one would be dense: "
        f"{reason}; leave activations out"
    )


def without_kernels(dense: Layout, grids: Mapping[str, Grid], inputs: bool = False) -> str | None:
    """The first linear that vLLM's products for packed weights do not take, and why; None where they take all. Marlin
    takes 4 or 8 bits in groups of 32, 64 or 128 inputs or of a whole row, and E2M1; inputs in multiples of 128, outputs
    of 64. Products of bytes take multiples of 16, and int8 only with inputs of 8 bits. grids: of each packed linear;
    inputs: whether they are rounded as they run."""
    for grid in sorted(set(grids.values())):
        if grid.in_words and grid.bits not in FAST:
            return f"has products for {' and '.join(map(str, FAST))} bits, not {grid.bits}"
        if grid.in_words and grid.group_size not in (-1, 32, 64, 128):
            return f"has no product for groups of {grid.group_size} inputs"
        if grid.format == "int8" and not inputs:
            return "has products for int8 only with inputs of 8 bits (activations: dynamic)"
    for name, grid in grids.items():
        n_out, n_in = dense[f"{name}.weight"][1]
        of_in, of_out = (16, 16) if grid.format in byte_codes.BYTES else (128, 64)
        if n_in % of_in or n_out % of_out:
            wants = f"inputs in multiples of {of_in} and outputs of {of_out}"
            return f"wants {wants}, where {name} has {n_in} and {n_out}"
    return None
