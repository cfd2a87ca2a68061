"""Predicted damage corrected by a few real swaps: what parts of a model at one width cost it on the calibration text.

Parts are attention and MLP of each quarter of the blocks. A linear's predicted cost at width c is multiplied by what
its part at c really costs over what its linears are predicted to cost together. Costs then add up to Σ; what they come
to together, f(Σ) = exp(a + b·log Σ), is fitted to the whole model at each width: damage that is not small saturates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.models.names import name_in_block

QUARTERS = 4
PART_SEQUENCES = 16  # of the calibration text, that swaps are measured on
LARGEST = 8.0  # correction, either way: a part's damage is measured no better where it is next to nothing

Part = tuple[int, str]


def parts_of(linears: Mapping[str, int]) -> dict[Part, list[str]]:
    """Quarter of the depth and the block's module → its linears. linears: by name, the index of the block."""
    depth = 1 + max(linears.values())
    found: dict[Part, list[str]] = {}
    for name, layer in linears.items():
        found.setdefault((QUARTERS * layer // depth, name_in_block(name).partition(".")[0]), []).append(name)
    return found


@dataclass(frozen=True)
class Corrected:
    """costs: nats [linears, candidates + 1], the last as it is; factors: by part and candidate; offset, slope: a, b."""

    costs: np.ndarray
    factors: dict[tuple[Part, int], float]
    offset: float
    slope: float

    def of(self, chosen: np.ndarray) -> float:
        """What a whole assignment [linears] is predicted to cost, nats a token."""
        total = float(self.costs[np.arange(len(chosen)), chosen].sum())
        return math.exp(self.offset + self.slope * math.log(total)) if total > 0 else 0.0

    def words(self) -> str:
        low, high = min(self.factors.values()), max(self.factors.values())
        return f"{low:.2f} to {high:.2f}, sum^{self.slope:.3f}·{math.exp(self.offset):.3f}"


def corrected(
    costs: np.ndarray,
    names: Sequence[str],
    parts: Mapping[Part, Sequence[str]],
    swaps: Mapping[tuple[Part, int], float],
    uniform: Sequence[float],
) -> Corrected:
    """costs [linears, candidates + 1]; swaps: by part and candidate, measured KL of that part alone; uniform: of the
    whole model at each candidate."""
    at, found, factors = {name: i for i, name in enumerate(names)}, costs.copy(), {}
    for (part, k), measured in swaps.items():
        rows = [at[name] for name in parts[part]]
        predicted = costs[rows, k].sum()
        factor = measured / predicted if predicted > 0 and measured > 0 else 1.0
        factors[part, k] = min(LARGEST, max(1 / LARGEST, factor))
        found[rows, k] *= factors[part, k]
    pairs = [(found[:, k].sum(), kl) for k, kl in enumerate(uniform) if kl > 0 and found[:, k].sum() > 0]
    if len(pairs) < 2:
        return Corrected(found, factors, 0.0, 1.0)
    x, y = np.log(np.array(pairs)).T
    slope = float(np.cov(x, y, bias=True)[0, 1] / np.var(x)) if np.var(x) > 0 else 1.0
    return Corrected(found, factors, float(y.mean() - slope * x.mean()), slope)
