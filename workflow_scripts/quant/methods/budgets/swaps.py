"""Predicted damage corrected by a few real swaps: what parts of a model from one candidate cost it on calibration text.

Parts are the modules of a block (attention, MLP) in sections of the depth. A linear's predicted cost under candidate c
is multiplied by what its part under c really costs over what its linears are predicted to cost together. Costs then add
up to Σ; what they come to together, f(Σ) = exp(a + b·log Σ), is fitted to the whole model under each candidate: damage
that is not small saturates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.models.structure.names import name_in_block

LARGEST = 8.0  # correction, either way: a part's damage is measured no better where it is next to nothing


def parts_of(linears: Mapping[str, int], sections: int) -> dict[str, list[str]]:
    """By part its linears. linears: by name, the index of the block."""
    depth = 1 + max(linears.values())
    sections = min(sections, depth)
    found: dict[str, list[str]] = {}
    for name, layer in linears.items():
        place, module = 1 + sections * layer // depth, name_in_block(name).partition(".")[0]
        found.setdefault(f"{module}, {place} of {sections}", []).append(name)
    return found


@dataclass(frozen=True)
class Corrected:
    """costs: nats [linears, candidates]; factors: by part and candidate; offset, slope: a, b."""

    costs: np.ndarray
    factors: dict[tuple[str, int], float]
    offset: float
    slope: float

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """What each linear of a whole assignment [linears] is predicted to cost, nats a token; they add up to f(Σ)."""
        own = self.costs[np.arange(len(chosen)), chosen]
        total = float(own.sum())
        return own * (math.exp(self.offset + self.slope * math.log(total)) / total) if total > 0 else 0.0 * own

    def words(self) -> str:
        low, high = min(self.factors.values()), max(self.factors.values())
        return f"{low:.2f} to {high:.2f}, sum^{self.slope:.3f}·{math.exp(self.offset):.3f}"


def corrected(
    costs: np.ndarray,
    names: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    swaps: Mapping[tuple[str, int], float],
    whole: Mapping[int, float],
) -> Corrected:
    """costs [linears, candidates]; swaps: by part and candidate, measured KL of that part alone; whole: by candidate,
    that of the whole model. A candidate that is in neither keeps its costs."""
    at, found, factors = {name: i for i, name in enumerate(names)}, costs.copy(), {}
    for (part, k), measured in swaps.items():
        rows = [at[name] for name in parts[part]]
        predicted = costs[rows, k].sum()
        factor = measured / predicted if predicted > 0 and measured > 0 else 1.0
        factors[part, k] = min(LARGEST, max(1 / LARGEST, factor))
        found[rows, k] *= factors[part, k]
    pairs = [(found[:, k].sum(), kl) for k, kl in whole.items() if kl > 0 and found[:, k].sum() > 0]
    if len(pairs) < 2:
        return Corrected(found, factors, 0.0, 1.0)
    x, y = np.log(np.array(pairs)).T
    slope = float(np.cov(x, y, bias=True)[0, 1] / np.var(x)) if np.var(x) > 0 else 1.0
    return Corrected(found, factors, float(y.mean() - slope * x.mean()), slope)
