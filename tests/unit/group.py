"""Linears that share a scale, from weights to codes as methods/block.py takes them through recipe/linear.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibration.reader import LinearStatistics
from quant.recipe.linear import find_scale, round_linear
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe


def quantize_group(
    weights: Sequence[Tensor], statistics: Sequence[LinearStatistics], recipe: Recipe, generator: torch.Generator
) -> list[QuantizedLinear]:
    """Without a fold to bound their scale, or a file to store their steps."""
    found = find_scale(weights, statistics, recipe)
    return [round_linear(w, found, known, recipe, generator) for w, known in zip(weights, statistics, strict=True)]
