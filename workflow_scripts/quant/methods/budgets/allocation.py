"""Which width each linear gets: the least predicted damage within what bits and bytes a user allows.

A multiple-choice knapsack: each group of linears, tied since their readers fuse them, takes one of its candidates. It
is solved exactly, by branch and cut (HiGHS, through scipy).
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from quant.files.weight_names import experts_of

SECONDS = 60.0  # that the solver may take; 100 blocks of 4 groups with 8 candidates take 1 to 5
SCALE = 1e4  # of the least total cost: the solver's absolute gap of 1e-6 is then a tenth of a billionth of it


class Infeasible(ValueError):
    """least: the sizes of the smallest choice by the limit that it exceeds, and which limit that is."""

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(limit, least)
        self.limit, self.least = limit, least


def tied_groups(linears: Iterable[str], reads: Mapping[str, str], experts_alike: bool = False) -> list[tuple[str, ...]]:
    """Linears that share one width: those of a module that read one tensor (q/k/v, gate/up), which readers fuse, and
    all experts of a block, which they run by one kernel; experts_alike: of the model. reads: by linear, which input it
    has."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in linears:
        experts = experts_of(name)
        key = ("" if experts_alike else experts, "") if experts else (name.rpartition(".")[0], reads.get(name, name))
        groups.setdefault(key, []).append(name)
    return [tuple(group) for group in groups.values()]


def allocate(costs: np.ndarray, sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The candidate of each group with the least Σ cost, each Σ size at most its limit; a proven optimum.

    costs: float64 [groups, candidates], NaN where a group has no such candidate; sizes: whole numbers [limits, groups,
    candidates]; limits: [limits]. Raises Infeasible where even the smallest choice is too large.
    """
    n_groups = len(costs)
    possible = np.isfinite(costs)
    units = [max(1, math.gcd(*(int(x) for x in size[possible]))) for size in sizes]
    for i, (size, limit) in enumerate(zip(sizes, limits, strict=True)):
        least = int(np.where(possible, size, np.iinfo(np.int64).max).min(1).sum())
        if least > limit:
            raise Infeasible(i, least)
    kept = undominated(costs, sizes, possible)
    owner, candidate = np.nonzero(kept)
    cost = costs[kept]
    floor = np.where(kept, costs, np.inf).min(1).sum()
    spread = cost - np.where(kept, costs, np.inf).min(1)[owner]  # what a group's least cost is, no choice changes
    scale = SCALE / max(abs(floor), spread.max() / 100, 1e-300)
    one_each = np.zeros((n_groups, len(owner)))
    one_each[owner, np.arange(len(owner))] = 1
    rows = np.stack([size[kept] / unit for size, unit in zip(sizes, units, strict=True)])
    most = np.array([limit // unit for limit, unit in zip(limits, units, strict=True)], dtype=float)
    found = milp(
        spread * scale,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, most)],
        options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
    )
    if found.status != 0 or found.x is None:
        raise RuntimeError(f"the allocation was not solved: {found.message}")
    chosen = np.full(n_groups, -1)
    taken = found.x > 0.5
    chosen[owner[taken]] = candidate[taken]
    spent = sizes[:, np.arange(n_groups), chosen].sum(1)
    if taken.sum() != n_groups or (spent > limits).any():
        raise RuntimeError("the allocation's solution is no choice within its limits")
    return chosen


def undominated(costs: np.ndarray, sizes: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Mask [groups, candidates]: those that no other of the group betters or equals in every size and in cost; of equal
    ones the first stays."""
    kept = possible.copy()
    everything = np.concatenate([np.where(possible, costs, np.inf)[None], sizes.astype(float)])
    for k in range(costs.shape[1]):
        for other in range(costs.shape[1]):
            if other == k:
                continue
            worse = (everything[:, :, other] <= everything[:, :, k]).all(0)
            equal = (everything[:, :, other] == everything[:, :, k]).all(0)
            kept[:, k] &= ~(worse & possible[:, other] & (~equal | (other < k)))
    return kept
