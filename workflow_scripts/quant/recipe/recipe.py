"""A method's choices, as the functions that carry them out take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from quant.recipe.grids import Grid


@dataclass(frozen=True)
class Recipe:
    """One method's choices; quant/recipe/keys.py explains each. parameters: by key, those of its salience, its rounding
    and its score, and whatever else the entry holds."""

    salience: str
    format: str
    activations: str
    bits: int
    group_size: int
    symmetric: bool
    clip: bool
    n_grid: int
    search_bits: int
    objective: str
    plain_share: float
    scope: str
    rounding: str
    refine: int
    inputs: str
    correction: float
    keep: str
    keep_ratio: float
    noise_injection: float
    noise_std: float
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Recipe":
        """From a validated entry of `methods:`, which also says what to calibrate with."""
        own = {each.name for each in fields(cls)} - {"parameters"}
        return cls(**{key: entry[key] for key in own}, parameters={k: v for k, v in entry.items() if k not in own})

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric, self.format)

    @property
    def search_grid(self) -> Grid:
        """That the scale is searched for."""
        return self.grid._replace(bits=self.search_bits or self.bits)
