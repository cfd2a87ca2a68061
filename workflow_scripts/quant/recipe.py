"""A recipe applied to one linear layer: salience → scale search → grid → rounding."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from quant import grids
from quant.errors import InputError
from quant.grids import Grid
from quant.salience import SALIENCES, Channels
from quant.search import search_scale


@dataclass(frozen=True)
class Recipe:
    """One method's choices; config.yaml explains each."""

    salience: str
    bits: int
    group_size: int
    symmetric: bool
    n_grid: int
    scope: str
    rounding: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Recipe":
        """From a validated entry of `methods:`, which also says what to calibrate with."""
        return cls(**{field.name: entry[field.name] for field in fields(cls)})

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric)


@dataclass(frozen=True)
class QuantizedLinear:
    """Ŵ = (codes - zero)·step·diag(1/scale).

    codes [out, n_groups, g] whole numbers; step, zero [out, n_groups, 1]; scale [in] or None; n_in cuts the last
    group's padding. alpha and objective (E‖(W-Ŵ)x‖²/out at the search's minimum) are None where nothing was searched.
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    grid: Grid
    n_in: int
    scale: Tensor | None
    alpha: float | None
    objective: float | None

    def dequantize(self) -> Tensor:
        """[out, in] in the dtype of step."""
        w = grids.from_groups(grids.decode(self.codes, self.step, self.zero), self.n_in)
        return w if self.scale is None else w / self.scale

    @property
    def storage_bits(self) -> int:
        """Codes, steps, zeros, and 16 bits for each entry of an input scale that must be kept."""
        kept_scale = 0 if self.scale is None else 16 * self.n_in
        return grids.storage_bits(self.codes.shape[0], self.n_in, self.grid) + kept_scale


@dataclass(frozen=True)
class LinearStatistics:
    """What calibration knows of one linear: per-channel means and H [in, in], each None where the recipe needs none."""

    channels: Channels | None
    moment: Tensor | None


def quantize_linear(w: Tensor, statistics: LinearStatistics, recipe: Recipe) -> QuantizedLinear:
    """w [out, in], in the dtype to compute in, to codes on the recipe's grid."""
    salience = SALIENCES[recipe.salience]
    found = None
    if salience is not None:
        found = search_scale(w, statistics.moment, salience(w, statistics.channels), recipe.grid, recipe.n_grid)
    scale = None if found is None or found.alpha == 0 else found.scale
    groups = grids.to_groups(w if scale is None else w * scale, recipe.group_size)
    step, zero = grids.fit(groups, recipe.grid)
    codes = grids.encode(groups, step, zero, recipe.grid)
    alpha, objective = (None, None) if found is None else (found.alpha, found.objective)
    return QuantizedLinear(codes, step, zero, recipe.grid, w.shape[1], scale, alpha, objective)


def check_finite(name: str, tensor: Tensor, where: str) -> None:
    """Refuses NaN and infinities by the tensor's name."""
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(f"{where}: {name} holds {bad} NaN or infinite values; use a model whose weights are finite")
