"""Scores and likelihoods of tasks, paired item by item."""

import json
import math

import numpy as np
import pytest

from quant.comparison import tasks
from quant.comparison.numbers import LEVEL
from quant.comparison.paired import holm, paired_differences
from tests.unit.comparison.items import ITEMS, answers, likelihoods


def bits(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two methods: both, only the first, only the second, neither so often."""
    a, b, c, d = counts
    first = np.repeat([True, True, False, False], counts)
    second = np.repeat([True, False, True, False], counts)
    assert len(first) == a + b + c + d
    return first, second


def slow_mcnemar(b: int, c: int) -> float:
    """Twice the binomial tail of the rarer kind, by its terms."""
    n, k = b + c, min(b, c)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 0), (0, 6), (12, 2), (7, 7), (40, 61)])
def test_mcnemar_is_exact(b: int, c: int) -> None:
    found = tasks.compare_answers(*bits(50, b, c, 10))
    assert found.p == pytest.approx(slow_mcnemar(b, c))
    assert found.delta == pytest.approx((b - c) / (60 + b + c)) and (found.gained, found.lost) == (b, c)
    assert found.low <= found.delta <= found.high and found.low < found.high


def slow_wilson(right: int, n: int) -> tuple[float, float]:
    """The shares from which right/n is z standard errors away, by halving."""
    z = 1.959963984540054

    def end(low: float, high: float) -> float:
        for _ in range(200):
            middle = (low + high) / 2
            outside = abs(right / n - middle) >= z * math.sqrt(middle * (1 - middle) / n)
            low, high = (middle, high) if outside == (middle < right / n) else (low, middle)
        return low

    return 0.0 if right == 0 else end(0.0, right / n), 1.0 if right == n else end(right / n, 1.0)


@pytest.mark.parametrize("n", [1, 3, 20, 100, 317])
def test_the_interval_of_a_share_is_wilsons(n: int) -> None:
    for right in range(n + 1):
        assert tasks.wilson(right, n) == pytest.approx(slow_wilson(right, n), abs=1e-12)


def test_an_interval_reaches_0_and_1_exactly_where_none_and_all_are_right() -> None:
    assert {tasks.wilson(0, n)[0] for n in range(1, 3000)} == {0.0}
    assert {tasks.wilson(n, n)[1] for n in range(1, 3000)} == {1.0}


def test_the_interval_is_newcombes() -> None:
    """An example of his paper (table II: 36, 12, 2, 0 gives 0.0569 to 0.3404 by method 10)."""
    assert tasks.newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = tasks.newcombe(36, 2, 12, 0)
    assert (low, high) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


@pytest.mark.parametrize(("both", "changes"), [(0.5, 0.02), (0.6, 0.2), (0.02, 0.04)])
def test_intervals_cover_a_known_difference_as_often_as_they_say(both: float, changes: float) -> None:
    """93 % or more of 1,000 simulations: few answers that change make it wider than it must be."""
    rng = np.random.default_rng(0)
    share = 0.7  # of those that change, the first has right
    counts = rng.multinomial(ITEMS, [both, share * changes, (1 - share) * changes, 1 - both - changes], 1000)
    true = (2 * share - 1) * changes
    assert np.mean([low <= true <= high for low, high in (tasks.newcombe(*row) for row in counts.tolist())]) >= 0.93


def claims(log_p: np.ndarray) -> np.ndarray:
    """Which pairs of rows of log_p [reports, rows, items] a report tells apart by either measure [reports, pairs]; all
    of a report are one family, as in `task_tables`."""
    reports, rows, items = log_p.shape
    first, second = np.triu_indices(rows, 1)
    a, b = log_p[:, first].reshape(-1, items), log_p[:, second].reshape(-1, items)
    nll = [one.p for one in paired_differences(b - a, np.ones(items), 1999, 0)]
    score = [tasks.compare_answers(x > -1, y > -1).p for x, y in zip(a, b, strict=True)]
    found = np.stack([nll, score], axis=1).reshape(reports, len(first), 2)
    corrected = np.array([holm(one.ravel().tolist()).reshape(one.shape) for one in found])
    return corrected.min(axis=2) <= LEVEL


@pytest.mark.parametrize(("methods", "items"), [(5, 100), (2, 300)])
def test_two_alike_are_rarely_told_apart(methods: int, items: int) -> None:
    """The original and methods that differ from it by noise alone, as seeds of one recipe do from each other; the first
    case is the default study's: of 200 reports at most 5 % claim a difference."""
    rng = np.random.default_rng(1)
    log_p = np.stack([likelihoods(rng, np.zeros(1 + methods), items) for _ in range(200)])
    assert claims(log_p).any(axis=1).mean() <= 0.05


def test_two_seeds_are_not_told_apart_where_others_are() -> None:
    """Methods as far from the original as the default study's are, the best of them twice: reports find the worst, and
    at most 5 % tell the two seeds apart."""
    effects = np.array([0.0, 1.2, 0.3, 0.3])
    rng = np.random.default_rng(2)
    found = claims(np.stack([likelihoods(rng, effects, 100) for _ in range(200)]))
    pairs = dict(zip(zip(*np.triu_indices(4, 1), strict=True), found.T, strict=True))
    assert pairs[2, 3].mean() <= 0.05
    assert pairs[1, 2].mean() >= 0.9 and pairs[0, 1].mean() >= 0.9


def test_those_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    effects = {"original": 0.0, "near": 0.15, "far": 0.6, "same": 0.0}
    log_p = dict(zip(effects, likelihoods(rng, np.array(list(effects.values()))), strict=True))
    groups = {("m", "t"): {method: answers(method, one > -1, one) for method, one in log_p.items()}}
    table, pairs = tasks.task_tables(groups, 999, 0)
    table = table.set_index("method")
    shown = {row.Index: tasks.found(row) for row in table.itertuples()}
    assert shown["far"] == ("worse", "answers") and shown["near"].outcome == "worse"
    assert table.loc["near", "p_nll_holm"] < LEVEL
    assert shown["same"].outcome == "none" and np.isnan(table.loc["original", "p_holm"])
    row = pairs[(pairs.method_a == "near") & (pairs.method_b == "far")].iloc[0]
    assert tasks.found(row) == ("better", "answers") and len(pairs) == 3


def test_columns_say_what_they_hold() -> None:
    first, second = bits(150, 6, 24, 120)
    log_p = np.linspace(-3, -0.1, ITEMS)
    groups = {("m", "t"): {"original": answers("original", second, log_p, recipe=None),
                           "a": answers("a", first, log_p - 0.25)}}  # fmt: skip
    table = tasks.task_tables(groups, 999, 0)[0].set_index("method")
    row, original = table.loc["a"], table.loc["original"]
    assert (row.score, original.score, row.delta) == pytest.approx((156 / 300, 174 / 300, -18 / 300))
    assert (row.gained, row.lost, row.changed, row["items"]) == (6, 24, 30 / 300, 300)
    assert row.delta_nll == pytest.approx(0.25) and row.nll == pytest.approx(original.nll + 0.25)
    assert json.loads(row.recipe) == {"bits": 4} and row.rule == "a rule" and row.chance == 0.25
    # √30/300 of error, two comparisons: half the width of an interval; of 1 %, as many items as that is larger, squared
    error = math.sqrt(30) / 300
    assert row.detectable == pytest.approx(2.25 * error, rel=0.01)
    assert row.items_for_1_percent == pytest.approx(300 * (2.2414 * error / 0.01) ** 2, rel=0.001)
    assert tasks.kept(table.reset_index()) == [("a", pytest.approx(0.9))]


def test_answers_to_other_items_are_not_paired() -> None:
    hit, log_p = np.array([True, False]), np.zeros(2)
    group = {"original": answers("original", hit, log_p), "a": answers("a", hit, log_p, task_fingerprint="g")}
    with pytest.raises(ValueError, match="different items"):
        tasks.task_tables({("m", "t"): group}, 999, 0)


def test_a_method_that_answers_alike_differs_in_nothing() -> None:
    hit, log_p = np.array([True, False, True] * 20), np.linspace(-1, 0, 60)
    group = {name: answers(name, hit, log_p) for name in ("original", "a")}
    row = tasks.task_tables({("m", "t"): group}, 999, 0)[0].iloc[1]
    assert (row.delta, row.p, row.p_holm, row.delta_nll, row.p_nll_holm) == (0, 1, 1, 0, 1)
    assert tasks.found(row).outcome == "none" and row.delta_low < 0 < row.delta_high


def test_an_original_at_chance_is_said() -> None:
    hit, log_p = np.arange(300) % 4 == 0, np.zeros(300)
    table, _ = tasks.task_tables({("m", "t"): {"original": answers("original", hit, log_p)}}, 999, 0)
    assert not tasks.above_chance(table)
    better = answers("original", hit | (np.arange(300) < 40), log_p)
    table, _ = tasks.task_tables({("m", "t"): {"original": better}}, 999, 0)
    assert tasks.above_chance(table)


@pytest.mark.parametrize("items", [3, 60, 100, 300])
def test_without_a_right_answer_no_chance_is_passed(items: int) -> None:
    """Nor where chance is 0, as it is of words: by rounding an interval began at 3e-18."""
    never = answers("original", np.zeros(items, bool), np.zeros(items)) | {"chance": 0.0}
    assert not tasks.above_chance(tasks.task_tables({("m", "t"): {"original": never}}, 99, 0)[0])
