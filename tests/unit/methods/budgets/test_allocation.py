"""The allocation against every choice there is, and which linears go together."""

from itertools import product

import numpy as np
import pytest

from quant.methods.budgets.allocation import Infeasible, allocate, tied_groups, undominated


def slow(costs: np.ndarray, sizes: np.ndarray, limits: np.ndarray) -> float:
    """The least cost of all choices within the limits."""
    best = np.inf
    for choice in product(*(np.flatnonzero(np.isfinite(row)) for row in costs)):
        at = (np.arange(len(costs)), list(choice))
        if (sizes[:, at[0], at[1]].sum(1) <= limits).all():
            best = min(best, costs[at].sum())
    return float(best)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(8))
def test_no_choice_within_the_limits_costs_less(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    groups, candidates, n_limits = 6, 4, 1 + seed % 2
    sizes = rng.integers(1, 60, (n_limits, groups, candidates)) * 64
    costs = scale * np.exp(rng.normal(size=(groups, candidates)))
    costs[0, 1] = np.nan  # a group without that candidate
    costs[1, 2], sizes[:, 1, 2] = costs[1, 3], sizes[:, 1, 3]  # and one with two alike
    least = np.where(np.isfinite(costs), sizes, 10**9).min(2).sum(1)
    for share in (0.0, 0.1, 0.5, 5.0):
        limits = (least * (1 + share)).astype(int) + (64 if n_limits == 2 else 0)
        expected = slow(costs, sizes, limits)
        if not np.isfinite(expected):
            continue  # of two limits, the least of each may be no choice together
        chosen = allocate(costs, sizes, limits)
        assert (sizes[:, np.arange(groups), chosen].sum(1) <= limits).all()
        assert costs[np.arange(groups), chosen].sum() == pytest.approx(expected, rel=1e-9)


def test_what_is_too_large_is_said_with_the_least_there_is() -> None:
    costs, sizes = np.ones((2, 2)), np.array([[[8, 16], [24, 16]]])
    with pytest.raises(Infeasible) as caught:
        allocate(costs, sizes, np.array([23]))
    assert (caught.value.limit, caught.value.least) == (0, 24)
    assert allocate(costs, sizes, np.array([24])).tolist() == [0, 1]


def test_a_candidate_that_another_betters_in_all_is_not_weighed() -> None:
    costs, sizes = np.array([[3.0, 2.0, 2.0, 1.0]]), np.array([[[8, 8, 8, 16]]])
    assert undominated(costs, sizes, np.isfinite(costs)).tolist() == [[False, True, False, True]]


def test_what_readers_fuse_goes_together() -> None:
    block = [f"l.0.self_attn.{part}_proj" for part in "qkvo"] + [
        f"l.0.mlp.{part}_proj" for part in ("gate", "up", "down")
    ]
    reads = dict.fromkeys(block[:3], "l.0.self_attn.q_proj") | dict.fromkeys(block[4:6], "l.0.mlp.gate_proj")
    assert tied_groups(block, reads) == [tuple(block[:3]), (block[3],), tuple(block[4:6]), (block[6],)]
    # attention and MLP side by side read one input, and are two layers of a reader
    parallel = dict.fromkeys(block[:3] + block[4:6], "l.0.self_attn.q_proj")
    assert tied_groups(block, parallel) == tied_groups(block, reads)
    experts = [f"l.0.mlp.experts.{i}.{part}_proj" for i in (0, 1) for part in ("gate", "down")]
    shared = ["l.0.mlp.shared_expert.gate_proj", "l.1.mlp.experts.0.gate_proj"]
    assert tied_groups(experts + shared, {}) == [tuple(experts), (shared[0],), (shared[1],)]
    assert tied_groups(experts + shared, {}, experts_alike=True) == [(*experts, shared[1]), (shared[0],)]
