"""What a method has learnt of a text: the estimate, its interval and its p by simulation; the question's words."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from quant.comparison.answers import NO_ANSWER, NO_DIFFERENCE, Answered, Evidence
from quant.comparison.learnt import COLUMNS, between_texts, learnt_table, learnt_terms, ratio_error
from quant.comparison.paired import paired_differences
from quant.comparison.pairs import fitted_further
from quant.comparison.text_answers import learnt, learnt_lines
from quant.recipe.keys import defaults
from tests.unit.comparison.studies import text_lengths

SHARED = defaults() | {"salience": "l2", "scope": "shared", "rounding": "gptq", "n_calib": 8, "seed": 1}
FAST = SHARED | {"inputs": "sequential", "correction": 0.5, "refine": 3}
TUNED = FAST | {"tune": {"epochs": 4}}
RECIPES = {"tuned": TUNED, "fast": FAST, "shared": SHARED, "other": SHARED | {"bits": 3}, "autoawq": {"algorithm": "x"}}


def test_pairs_are_alike_but_for_what_fits_them_further() -> None:
    assert fitted_further(RECIPES) == [("tuned", "tuned", "fast"), ("fitted without tuning", "fast", "shared")]


Sums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def simulated(rng: np.random.Generator, runs: int, tokens: np.ndarray, gone: float = 0.0) -> Sums:
    """d_a, d_b, k_a, k_b [runs, n]: a has 0.7 of b's divergence, and `gone` nats a token less in NLL than that says.

    A sequence's divergence is skewed and shared by both but for a part of each one's own; its rise of the NLL is 0.9 of
    it, and noise of the text's, of which most is shared too."""
    n = len(tokens)
    text = rng.gamma(6, 1 / 6, (runs, n))
    own = 0.1 * tokens * text * rng.gamma(25, 1 / 25, (2, runs, n))
    k_a, k_b = 0.7 * own[0], own[1]
    noise = np.sqrt(tokens) * rng.normal(0, 0.2, (runs, n))
    more = np.sqrt(tokens) * rng.normal(0, 0.05, (2, runs, n))
    return 0.9 * k_a + 0.7 * noise + more[0] - gone * tokens, 0.9 * k_b + noise + more[1], k_a, k_b


@pytest.mark.parametrize(("n", "ragged"), [(32, False), (110, True)])
@pytest.mark.parametrize("gone", [0.0, 0.01])
def test_its_interval_covers_and_its_p_claims_no_more_than_it_says(n: int, ragged: bool, gone: float) -> None:
    """95 ± 2 % of 1,000 simulations."""
    tokens = text_lengths(n, ragged)
    sums = simulated(np.random.default_rng(0), 1000, tokens, gone)
    terms = np.stack([learnt_terms(*each) for each in zip(*sums, strict=True)])
    found = paired_differences(terms, tokens, 1999, 0)
    assert 0.93 <= np.mean([x.low <= gone <= x.high for x in found]) <= 0.97
    if not gone:
        assert np.mean([x.p <= 0.05 for x in found]) <= 0.065


def test_the_terms_are_those_of_the_estimate() -> None:
    """Their sum is it, and each moves it as a sequence that counts a little more does."""
    d_a, d_b, k_a, k_b = (each[0] for each in simulated(np.random.default_rng(1), 1, text_lengths(20, True), 0.02))

    def estimate(weights: np.ndarray) -> float:
        a, b, c, d = ((each * weights).sum() for each in (d_a, d_b, k_a, k_b))
        return c / d * b - a

    terms, slow = learnt_terms(d_a, d_b, k_a, k_b), []
    for i in range(20):
        weights = np.ones(20)
        weights[i] += 1e-6
        slow.append((estimate(weights) - estimate(np.ones(20))) / 1e-6)
    assert terms.sum() == pytest.approx(estimate(np.ones(20)))
    np.testing.assert_allclose(terms, slow, rtol=1e-4, atol=1e-6)
    ratio = d_a.sum() / d_b.sum()
    spread = [(d_a[i] - ratio * d_b[i]) / d_b.sum() for i in range(20)]
    assert ratio_error(d_a, d_b) == pytest.approx(math.sqrt(20 / 19 * sum(x**2 for x in spread)))


def evaluations(gone: dict[str, float], seed: int = 3) -> tuple[dict, dict]:
    """groups and originals of learnt_table, a data set for each that says how much was learnt of it."""
    rng, tokens = np.random.default_rng(seed), np.full(32, 255.0)
    groups: dict[tuple[str, str], dict] = {}
    originals = {}
    for dataset, amount in gone.items():
        d_a, d_b, k_a, k_b = (each[0] for each in simulated(rng, 1, tokens, amount))
        nll = rng.normal(3, 0.3, 32) * tokens

        def rows(d: np.ndarray, k: np.ndarray, nll: np.ndarray = nll) -> dict:
            found = zip(nll + d, k, strict=True)
            return {"sequences": [
                {"sequence": i, "tokens": 255, "nll": x, "kl_tokens": 255, "kl": y} for i, (x, y) in enumerate(found)
            ]}  # fmt: skip

        originals["m", dataset] = rows(0 * d_a, 0 * k_a)
        groups["m", dataset] = {"tuned": rows(d_a, k_a), "fast": rows(d_b, k_b)}
    return groups, originals


def answered(table: pd.DataFrame, kinds: dict[str, bool]) -> Answered:
    one, none = Answered("learnt", "?"), pd.DataFrame()
    evidence = Evidence("m", list(kinds), {}, none, none, none, none, none, {}, learnt=table, kinds=kinds)
    learnt(evidence, one)
    return one


@pytest.mark.parametrize(("amount", "shown"), [(0.03, True), (0.0, False)])
def test_the_verdict_says_who_has_learnt_the_text(amount: float, shown: bool) -> None:
    table = learnt_table(*evaluations({"own": amount, "far": 0.0}), RECIPES, 999, 0)
    assert list(table) == COLUMNS and list(table.dataset) == ["own", "far"]
    one = answered(table, {"own": True, "far": False})
    assert (one.outcome == "first") == shown and (one.outcome == NO_DIFFERENCE) != shown
    assert [row["verdict"] for row in one.values] == ["learnt" if shown else "not shown", "not shown"]
    told = learnt_lines([vars(one)], ["tuned"])
    assert bool(told) == shown and learnt_lines([vars(one)], ["fast"]) == []
    if shown:
        assert one.verdict == "Yes: tuned, of 1 tuned"
        assert (
            told[0].startswith("tuned has learnt the text: on own it takes ") and "off fast's delta_nll but" in told[0]
        )
        assert "text of another kind (p" in told[0], "and gains more on its own text than on the other"
    else:
        assert one.verdict.startswith("Not shown: tuned gains no more in NLL than in KL; 0.0")
        assert one.lines[0].endswith("no difference shown.")


def test_an_untuned_method_has_learnt_nothing() -> None:
    """The same numbers: its errors suit the text."""
    table = learnt_table(*evaluations({"own": 0.03, "far": 0.0}), RECIPES, 999, 0).assign(group="fitted without tuning")
    one = answered(table, {"own": True, "far": False})
    assert (one.outcome, one.verdict) == ("described", "None is tuned, and nothing else sees predictions")
    assert len(one.lines) == 1 and one.lines[0].startswith("tuned is not tuned, but its errors suit the text: on own ")
    assert one.values[0]["verdict"] == "suits it" and learnt_lines([vars(one)], ["tuned"]) == []


def test_between_texts_is_welchs_with_few_degrees_of_freedom() -> None:
    own, far = (next(pd.DataFrame([{"ratio": r, "ratio_error": e, "sequences": 9}]).itertuples()) for r, e in
                ((0.7, 0.03), (0.9, 0.04)))  # fmt: skip
    found = between_texts(own, far)
    assert found.mean == pytest.approx(0.2) and found.error == pytest.approx(0.05)
    assert found.p == pytest.approx(0.003950, rel=1e-3) and found.low == pytest.approx(0.2 - 2.306004 * 0.05, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"p": math.nan, "delta_nll_before": -0.1}, "nothing to compare, since fast does no harm there"), ({}, "")],
)
def test_where_there_is_no_harm_nothing_is_claimed(change: dict[str, Any], words: str) -> None:
    table = learnt_table(*evaluations({"own": 0.0}), RECIPES, 999, 0).assign(**change)
    one = answered(table, {"own": True})
    assert one.outcome == ("described" if change else NO_DIFFERENCE)
    assert not words or words in one.lines[0]
    assert answered(table.iloc[:0], {"own": True}).outcome == NO_ANSWER
    assert answered(table.assign(p=0.5), {"own": False}).verdict.startswith("Not told: no data set is of the")


def test_only_sequences_that_were_compared_whole_count() -> None:
    groups, originals = evaluations({"own": 0.02})
    for one in (originals["m", "own"], *groups["m", "own"].values()):
        for row in one["sequences"][20:]:
            row |= {"kl_tokens": 0, "kl": 0.0}
    found = next(learnt_table(groups, originals, RECIPES, 999, 0).itertuples())
    assert found.sequences == 20 and math.isfinite(found.p)
