"""Verdicts, pairs and numbers against hand-made cases."""

import json
import math

import pandas as pd
import pytest

from quant.comparison import pairs, verdicts
from quant.comparison.numbers import duration, minus, number, percent
from quant.comparison.summary import recipes_of
from quant.comparison.verdicts import Difference
from quant.report.study import Study
from tests.unit.report.pages import BY_KL, DELTAS, PAIRS, RECIPE, RECIPES, check, layers, summary
from tests.unit.workflow.configurations import loaded


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.2, -0.1, "better"), (0.1, 0.2, "worse"), (-0.1, 0.1, "none"), (0.0, 0.1, "none"), (math.nan, 0.1, "unknown")],
)
def test_an_outcome_needs_an_interval_without_zero(low: float, high: float, outcome: str):
    assert Difference((low + high) / 2, low, high, 10).outcome == outcome


@pytest.mark.parametrize(("p", "outcome"), [(0.049, "worse"), (0.05, "worse"), (0.051, "none")])
def test_with_a_corrected_p_the_interval_decides_nothing(p: float, outcome: str):
    assert Difference(0.15, 0.1, 0.2, 10, p).outcome == outcome


def test_no_difference_says_what_could_have_been_seen():
    words = verdicts.difference_words("a", "b", Difference(0.01, -0.01, 0.03, 10, 0.4, 0.05))
    assert words.startswith("no difference shown between a and b") and "one of 0.050 could have been seen" in words


def test_a_difference_of_exactly_nothing_is_identical():
    assert Difference(0.0, 0.0, 0.0, 10).outcome == "identical"


@pytest.mark.parametrize(
    ("rise", "band"),
    [(-0.1, "excellent"), (0.0499, "excellent"), (0.05, "good"), (0.1, "acceptable"), (0.2, "poor"),
     (math.inf, "poor"), (math.nan, "poor")],
)  # fmt: skip
def test_quality_bands(rise: float, band: str):
    assert verdicts.quality(rise) == band


def test_a_pair_reads_the_same_both_ways_round():
    forward = verdicts.pair_difference(PAIRS, "m", "d", "rtn", "gw_awq")
    backward = verdicts.pair_difference(PAIRS, "m", "d", "gw_awq", "rtn")
    assert forward._replace(error=0.0) == Difference(0.2, 0.1, 0.3, 10, 0.001, 0.05, 0.001, 0.0)
    assert backward._replace(error=0.0) == Difference(-0.2, -0.3, -0.1, 10, 0.001, 0.05, 0.001, 0.0)
    assert verdicts.pair_difference(PAIRS, "m", "other", "rtn", "gw_awq") is None


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({}, {"salience"}),
        ({"bits": 3}, {"salience", "bits"}),
        ({"damp": 0.1}, {"salience"}),
        ({"damp": 0.1, "rounding": "gptq"}, {"salience", "damp", "rounding"}),
        ({"rounding": "gptq"}, {"salience", "rounding"}),
        ({"unheard_of": None}, {"salience"}),
        ({"unheard_of": 1}, {"salience", "unheard_of"}),
    ],
)
def test_recipes_differ_only_in_keys_with_an_effect(change: dict, keys: set[str]):
    assert pairs.differing_keys(RECIPES["gw_awq"], {**RECIPES["gw_praq"], **change}) == keys


def test_one_that_is_calibrated_on_nothing_differs_in_what_it_does() -> None:
    """Not in n_calib and seed, which have no effect there; of two that are, in those too."""
    methods = loaded({"plain": {}, "gptq": {"rounding": "gptq"}, "more": {"rounding": "gptq", "n_calib": 7}})["methods"]
    assert methods["plain"]["n_calib"] is None
    assert pairs.pairs_alike_but(methods, {"rounding": "gptq"}, {"rounding": "nearest"}) == [
        ("gptq", "plain"),
        ("more", "plain"),
    ]
    assert pairs.differing_keys(methods["gptq"], methods["more"]) == {"n_calib"}


def test_pairs_are_alike_but_for_salience():
    recipes = {**RECIPES, "praq3": {**RECIPES["gw_praq"], "bits": 3}, "awq3": {**RECIPES["gw_awq"], "bits": 3}}
    assert pairs.pairs_alike_but(recipes, {"salience": "praq"}, {"salience": "l1"}) == [
        ("gw_praq", "gw_awq"),
        ("praq3", "awq3"),
    ]


def test_experts_without_a_moment_of_their_own_are_said():
    table = pd.DataFrame({"linear": ["a", "b", "c"] * 2, "lent": [False, True, True, math.nan, math.nan, math.nan]})
    assert "2 of 3 linears, experts, have no second moment of their own" in verdicts.lent_lines(table)[0]
    assert not verdicts.lent_lines(table.assign(lent=False)) and not verdicts.lent_lines(table[["linear"]])


def test_more_damping_than_asked_is_said():
    table = pd.concat([layers("gptq").assign(damp=damp) for damp in (0.01, 0.1, 1.0)] + [layers("rtn")])
    recipes = {"gptq": {"damp": 0.01}, "rtn": {"damp": 0.01}, "autoawq": {}}
    assert verdicts.damping_lines(table, recipes) == [
        "gptq: with damp 0.01 the second moment is not positive definite in 2 linears (model.layers.0.mlp.up_proj, "
        "model.layers.0.mlp.up_proj); up to 1 was taken."
    ]
    assert verdicts.damping_lines(table[table.damp != 1], recipes)[0].count("1 linear (") == 1
    assert not verdicts.damping_lines(layers("gptq").assign(damp=0.01), recipes)


def test_the_best_method_names_runner_up_original_and_ties():
    answer = verdicts.best_answer(summary(DELTAS), PAIRS, "m", "d")
    assert answer.headline == "gw_awq"
    assert "no difference shown between gw_awq and gw_praq" in answer.lines[0]
    assert "gw_awq is worse than the original (delta_nll +0.1000 [+0.0900, +0.1100])" in answer.lines[1]
    assert answer.lines[2] == "Not told apart from it by this test: gw_praq."


def test_a_failed_method_never_wins():
    frame = summary(DELTAS)
    frame.loc[frame.method == "gw_awq", ["nll", "ppl", "delta_nll"]] = math.nan
    assert verdicts.best_answer(frame, PAIRS, "m", "d").headline == "gw_praq"


def test_best_by_bits_only_where_widths_differ():
    frame = summary(DELTAS)
    assert verdicts.best_by_bits(frame, recipes_of(frame), "m", "d") == []
    frame.loc[frame.method == "rtn", "recipe"] = json.dumps({**RECIPE, "bits": 8})
    lines = verdicts.best_by_bits(frame, recipes_of(frame), "m", "d")
    assert [line.split(",")[0] for line in lines] == ["4 bits: gw_awq", "8 bits: rtn"]


@pytest.mark.parametrize(
    ("intervals", "headline"),
    [
        ([(0.1, 0.2), (0.1, 0.2), (-0.2, -0.1)], "AWQ's choice errs less more often"),
        ([(-0.2, -0.1), (-0.1, 0.1)], "PRAQ's choice errs less more often"),
        ([(-0.1, 0.1)], "No difference shown"),
    ],
)
def test_check_answer_counts_intervals_without_zero(intervals: list[tuple[float, float]], headline: str):
    assert verdicts.check_answer(check(*intervals)).headline == headline


def test_experts_that_the_check_leaves_out_are_said():
    assert len(verdicts.check_answer(check((-0.1, 0.1))).lines) == 1
    said = verdicts.check_answer(check((-0.1, 0.1)) | {"left_out": 24}).lines
    assert said[1].startswith("24 linears of experts are left out")


def test_the_best_by_kl_is_the_one_of_least_kl():
    frame = summary(DELTAS).assign(kl=[0.0, 0.05, 0.1, 0.11])
    answer = verdicts.best_answer(frame, PAIRS.assign(**BY_KL), "m", "d", "kl")
    assert answer.headline == "rtn"
    assert answer.lines[0].startswith("Against the runner-up: rtn is better than gw_awq (delta_kl −0.1000")
    assert "; by NLL it is worse (delta_nll +0.2000" in answer.lines[0]
    assert "; KL from it 0.0500 [0.2900, 0.3100]." in answer.lines[1]
    assert answer.lines[-1].startswith("By NLL the best is gw_awq: rtn is worse than gw_awq (delta_nll +0.2000")
    config = {"comparison": {"by": "kl"}}
    assert Study(frame, PAIRS, layers(), {}, {}, config, provenance={}, command="", adding="").by == "kl"


def test_numbers_are_short_and_missing_ones_a_dash():
    given = [(25.613, 2), (12345.6, 0), (3.2e9, 2), (math.inf, 2), (math.nan, 2), (None, 2), (-0.5, 2), (-1e-5, 2)]
    assert [number(*each) for each in given] == ["25.61", "12,346", "3.20e+09", "∞", "–", "–", "−0.50", "0.00"]
    assert [minus(-7e-6, ".1e"), minus(-0.0), minus(0.0, "+.1e")] == ["−7.0e−06", "0", "+0.0e+00"]
    assert [percent(x) for x in (0.166, -0.01, 45.0, math.nan)] == ["+16.6 %", "−1.0 %", "×46", "–"]
    assert [duration(x) for x in (5.04, 61, 3660)] == ["5.0 s", "1 min 1 s", "1 h 1 min"]
