"""A method's choices, as the functions that carry them out take them."""

from dataclasses import dataclass, fields
from typing import Any

from quant.recipe.grids import Grid


@dataclass(frozen=True)
class Recipe:
    """One method's choices; config.yaml explains each."""

    salience: str
    bits: int
    group_size: int
    symmetric: bool
    clip: bool
    n_grid: int
    objective: str
    plain_share: float
    scope: str
    rounding: str
    outlier_percent: float
    damp: float
    keep: str
    keep_ratio: float
    beta: float
    tau: float
    noise_factor: float
    noise_injection: float
    noise_std: float
    seed: int

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Recipe":
        """From a validated entry of `methods:`, which also says what to calibrate with."""
        return cls(**{field.name: entry[field.name] for field in fields(cls)})

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group_size, self.symmetric)
