"""GPTQ: error feedback through the inverse factor of H."""

from torch import Tensor

from quant.recipe.context import Context, Rounded
from quant.recipe.error_feedback import factored, fed
from quant.recipe.grids import Grid


def gptq(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context, *, damp: float) -> Rounded:
    """Frantar et al. 2022, arXiv 2210.17323, algorithm 1; step and zero are those given."""
    factor, order, damp = factored(step, groups.shape[2], context, damp)
    return Rounded(fed(groups, step, zero, grid, factor, order), damp)
