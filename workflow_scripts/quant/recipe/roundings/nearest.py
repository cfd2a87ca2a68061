"""Rounding to nearest."""

from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import Context, Rounded
from quant.recipe.grids import Grid


def nearest(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, context: Context) -> Rounded:
    """The nearest code."""
    return Rounded(grids.encode(groups, step, zero, grid))
