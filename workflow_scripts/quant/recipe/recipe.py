"""A method's choices, as the functions that carry them out take them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from quant.recipe.grids import Grid

Widths = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Recipe:
    """One method's choices; quant/recipe/keys.py explains each. parameters: by key, those of its salience, its rounding
    and its score, and whatever else the entry holds. widths: by linear, the bits and group_size of those that have
    their own."""

    salience: str
    format: str
    activations: str
    bits: int
    group_size: int
    symmetric: bool
    clip: bool
    n_grid: int
    search_bits: int
    search_group_size: int
    objective: str
    plain_share: float
    scope: str
    rounding: str
    row_feedback: float
    row_linears: str
    refine: int
    inputs: str
    correction: float
    keep: str
    keep_ratio: float
    noise_injection: float
    noise_std: float
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)

    @classmethod
    def of(cls, entry: dict[str, Any], widths: Widths = MappingProxyType({})) -> "Recipe":
        """From a validated entry of `methods:`, which also says what to calibrate with."""
        own = {each.name for each in fields(cls)} - {"parameters", "widths"}
        rest = {key: value for key, value in entry.items() if key not in own}
        return cls(**{key: entry[key] for key in own}, parameters=rest, widths=widths)

    def at(self, linear: str) -> "Recipe":
        """As it is for one linear: on the grid of the first of `tensor_types` whose pattern is found in its name, its
        rows each for itself where `row_linears` is not."""
        feedback = self.row_feedback if re.search(self.row_linears, linear) else 0.0
        for each in self.parameters.get("tensor_types") or ():
            if re.search(each["linears"], linear):
                return replace(self, row_feedback=feedback, **{key: each[key] for key in Grid._fields})
        bits, group_size = self.widths.get(linear, (self.bits, self.group_size))
        return replace(self, row_feedback=feedback, bits=bits, group_size=group_size)

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric, self.format)

    @property
    def search_grid(self) -> Grid:
        """That the scale is searched for."""
        return self.grid._replace(
            bits=self.search_bits or self.bits, group_size=self.search_group_size or self.group_size
        )
