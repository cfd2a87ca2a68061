"""The research questions: that each can be asked, finds its pairs, and says no more than its numbers show."""

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config

from quant.comparison.answers import NO_ANSWER, NO_DIFFERENCE, Answered
from quant.comparison.correlation import rank_correlation
from quant.comparison.measures import PREDICTED
from quant.comparison.paired import detectable
from quant.comparison.pairs import AUTOAWQ, AUTOROUND, differing_keys, pairs_alike_but
from quant.comparison.prediction import layer_errors
from quant.comparison.verdicts import difference_of, family
from quant.report.figures import questions
from quant.report.figures.style import to_svg
from quant.workflow import configuration
from tests.tiny import ROOT
from tests.unit.comparison.studies import BY_ANCHOR, answers, evidence
from tests.unit.workflow.configurations import DEFAULT, SCHEMA, configured

ONE_TEXT = "study: {methods: [full_awq, full_praq, gw_awq, gw_praq], datasets: [python_reference]}"


def test_a_questions_own_pairs_are_its_family() -> None:
    """However many pairs the study has: 36 on each of two texts here, of which the question asks of few."""
    found = evidence(configuration.load(DEFAULT, SCHEMA), -0.02, 0.36)
    error = 0.005
    found = found._replace(comparisons=found.comparisons.assign(p=0.01 * 0.9, error=error))
    answered = answers(found)["praq"]
    pairs = len(answered.pairs)
    assert 1 < pairs < len(found.comparisons) == 72
    assert [row["p_holm"] for row in answered.pairs] == pytest.approx([0.009 * pairs] * pairs)
    assert answered.outcome != "no difference shown"
    assert answered.pairs[0]["detectable"] == pytest.approx(detectable(error, 32, pairs))
    assert family([difference_of(row) for row in found.comparisons.itertuples()])[0].p == pytest.approx(0.009 * 72)


@pytest.mark.parametrize("anchor", BY_ANCHOR)
def test_the_yaml_that_a_question_shows_asks_it(anchor: str) -> None:
    answered = answers(evidence(configured(BY_ANCHOR[anchor].yaml)))[anchor]
    assert answered.outcome != NO_ANSWER and not answered.verdict.startswith("Not asked")


@pytest.mark.parametrize("anchor", BY_ANCHOR)
def test_that_yaml_adds_to_a_study_and_takes_nothing_from_it(anchor: str) -> None:
    config: dict[str, Any] = {"study": {"methods": ["rtn_clip"]}, "sensitivity": {"methods": []}}
    update_config(config, yaml.safe_load(BY_ANCHOR[anchor].yaml))
    study = configured(yaml.safe_dump(config))["study"]
    assert "rtn_clip" in study["methods"] and "python_reference" in study["datasets"]
    assert len(study["methods"]) + len(study["datasets"]) > 2 or anchor in ("risk", "sensitivity")
    assert ("module" in study["tasks"]) == (anchor in ("tasks-order", "answers-kept"))


def test_the_experiment_asks_every_question() -> None:
    found = answers(evidence(configured((ROOT / "experiments/questions.yaml").read_text())))
    assert [anchor for anchor, one in found.items() if one.outcome == NO_ANSWER] == []
    groups = {row["group"] for row in found["praq"].pairs}
    assert groups == {"full", "group-wise", "hybrid objective", "mixed precision", "made exact, by the Jacobian"}
    assert {row["group"] for row in found["robust"].pairs} == {"short, under 16 sequences", "16 sequences or more"}


def test_the_default_study_answers_what_it_can() -> None:
    found = answers(evidence(configuration.load(DEFAULT, SCHEMA)))
    unasked = {anchor for anchor, one in found.items() if one.outcome == NO_ANSWER}
    libraries = {"autoawq", "autoround", "llmcompressor"}
    assert found["tasks-order"].verdict.count("over 5 methods") == 2
    assert (
        unasked
        == {"robust", "norm", "flips", "group-size", "format", "activations", "mixing", "embeddings", "learnt"}
        | libraries
    )
    assert all(found[anchor].yaml == BY_ANCHOR[anchor].yaml for anchor in unasked)


@pytest.mark.parametrize(
    ("delta", "p", "outcome", "start"),
    [
        (-0.05, 0.001, "second", "No: PRAQ is worse than AWQ in 2 of 2 pairs, better in none"),
        (0.05, 0.001, "first", "Yes: PRAQ is better than AWQ in 2 of 2 pairs, worse in none"),
        (0.05, 0.06, NO_DIFFERENCE, "No difference shown between PRAQ and AWQ in 2 pairs; 0.0200 nats per token"),
    ],
)
def test_a_verdict_needs_a_small_corrected_p(delta: float, p: float, outcome: str, start: str) -> None:
    """The stored pairs are AWQ minus PRAQ: their order in the study."""
    answered = answers(evidence(configured(ONE_TEXT), delta, p))
    assert answered["praq"].outcome == outcome and answered["praq"].verdict.startswith(start)
    assert [row["delta_nll"] for row in answered["praq"].pairs] == [-delta] * 2
    assert "by KL" not in answered["praq"].verdict + " ".join(answered["praq"].lines)


@pytest.mark.parametrize(("by", "outcome", "other"), [("nll", "first", "KL"), ("kl", "second", "NLL")])
def test_a_verdict_rests_on_one_measure_and_says_where_the_other_differs(by: str, outcome: str, other: str) -> None:
    """By NLL PRAQ is better in both pairs, by KL worse."""
    found = evidence(configured(ONE_TEXT), 0.05, 0.001, -0.04)
    one = answers(found._replace(by=by))["praq"]
    assert one.outcome == outcome
    words = {"better": "PRAQ is better than AWQ in 2 of 2 pairs, worse in none",
             "worse": "PRAQ is worse than AWQ in 2 of 2 pairs, better in none"}  # fmt: skip
    mine, theirs = ("better", "worse") if by == "nll" else ("worse", "better")
    assert one.verdict == f"{'Yes' if by == 'nll' else 'No'}: {words[mine]}; by {other}: {words[theirs]}"
    assert all(f"; by {other} it is {theirs} (delta_{other.lower()} " in line for line in one.lines)
    row = one.pairs[0]
    assert (row["by"], row["outcome"]) == (by, mine) and (row["outcome_nll"], row["outcome_kl"]) == ("better", "worse")
    assert (row["delta_nll"], row["delta_kl"], row["sequences"], row["kl_sequences"]) == (-0.05, 0.04, 32, 30)
    assert smallest_of(answers(evidence(configured(ONE_TEXT))._replace(by=by))) == (
        "0.0200" if by == "nll" else "0.0300"
    )


def smallest_of(found: dict[str, Answered]) -> str:
    """What could have been seen, in PRAQ's verdict."""
    return found["praq"].verdict.partition("; ")[2].partition(" ")[0]


def test_pairs_that_disagree_depend() -> None:
    found = evidence(configured(ONE_TEXT), -0.05, 0.001)
    found.comparisons.loc[0, ["delta_nll", "delta_nll_low", "delta_nll_high"]] = 0.05, 0.04, 0.06
    one = answers(found)["praq"]
    assert one.outcome == "mixed"
    assert one.verdict.startswith(
        "It depends: PRAQ is better than AWQ in 1 and worse in 1 of 2 pairs; by KL: PRAQ is worse"
    )


def test_pairs_are_alike_but_for_what_is_asked() -> None:
    """Against a loop over every two recipes of the table and every key."""
    recipes = configuration.load(DEFAULT | {"study": {"methods": "all"}}, SCHEMA)["methods"]
    found = pairs_alike_but(recipes, {"salience": "l2"}, {"salience": "none"})
    slow = [
        (a, b)
        for a in recipes
        for b in recipes
        if (recipes[a].get("salience"), recipes[b].get("salience")) == ("l2", "none")
        and differing_keys(recipes[a], recipes[b]) == {"salience"}
    ]
    assert found == slow and ("awq_gptq", "gptq") in found


def test_library_pairs_share_bits_groups_and_a_zero_point() -> None:
    found = AUTOAWQ(configured(BY_ANCHOR["autoawq"].yaml)["methods"])
    assert ("autoawq", "awq_clip") in found and ("autoawq", "gw_awq") not in found
    assert all(a == "autoawq" for a, _ in found)


STEPS = ("refined", "frontier_fast", "reconstructed")  # on the way to the frontier


def test_autoround_is_paired_with_the_frontier_of_its_bits() -> None:
    config = configured((ROOT / "experiments/frontier.yaml").read_text())
    found = AUTOROUND({name: config["methods"][name] for name in config["study"]["methods"]})
    four = {("autoround", name) for name in ("awq_clip_gptq_shared", *STEPS, "frontier", "frontier_rows")}
    fewer = {
        (f"autoround_{bits}bit", f"{name}_{bits}bit")
        for bits in (3, 2)
        for name in ("awq_clip_gptq_shared", "frontier")
    }
    fewer |= {("autoround_3bit", "frontier_rows_3bit")}
    assert set(found) == four | fewer  # that of version 2 is symmetric, as none of ours is there


@pytest.mark.parametrize(
    ("p", "start"), [(0.001, "The perplexity rises by "), (0.5, "No rise of the perplexity is shown: ")]
)
def test_rounding_costs_only_where_a_rise_is_shown(p: float, start: str) -> None:
    one = answers(evidence(configuration.load(DEFAULT, SCHEMA), 0.05, p))["cost"]
    assert one.verdict.startswith(start) and "%" in one.verdict


@pytest.mark.parametrize(("delta", "outcome"), [(0.05, "second"), (-0.05, "first"), (0.0, NO_DIFFERENCE)])
def test_risk_predicts_damage_only_where_shown(delta: float, outcome: str) -> None:
    one = answers(evidence(configuration.load(DEFAULT, SCHEMA), delta, 0.9 if not delta else 0.001))["risk"]
    assert one.outcome == outcome and "5 of 80 output channels are dead and 3 of them risky" in one.verdict


def test_without_risky_channels_nothing_is_claimed() -> None:
    found = evidence(configuration.load(DEFAULT, SCHEMA))
    one = answers(found._replace(channels={"up_proj": {"rows": 80, "dead": 0, "risky": 0}}))["risk"]
    assert one.outcome == "described" and one.verdict.startswith("There are none to quantise")


def test_the_order_on_a_second_text() -> None:
    found = evidence(configured(BY_ANCHOR["second-text"].yaml), -0.05, 0.001)
    n_pairs = len(found.comparisons) // 2
    assert answers(found)["second-text"].verdict == (
        f"Yes: of {n_pairs} pairs told apart on both python_reference and docstrings, none change places"
    )
    found.comparisons.loc[0, "delta_nll"] = 0.05
    one = answers(found)["second-text"]
    assert one.outcome == "second" and one.verdict.endswith(", 1 change places")
    assert answers(found._replace(by="kl"))["second-text"].verdict.endswith(", none change places")


# ---- rank correlation


def slow_spearman(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of midranks, by counting."""

    def ranks(v: list[float]) -> list[float]:
        return [sum(b < a for b in v) + (sum(b == a for b in v) + 1) / 2 for a in v]

    a, b = ranks(x), ranks(y)
    n, ma, mb = len(a), sum(a) / len(a), sum(b) / len(b)
    covariance = sum((a[i] - ma) * (b[i] - mb) for i in range(n))
    return covariance / math.sqrt(sum((v - ma) ** 2 for v in a) * sum((v - mb) ** 2 for v in b))


@pytest.mark.parametrize("n", [3, 5, 6])
def test_rank_correlation_and_its_p_over_all_orders(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n), rng.integers(0, 4, n).astype(float) + np.arange(n) / 2
    found = rank_correlation(x, y)
    rho = slow_spearman(x.tolist(), y.tolist())
    orders = [slow_spearman(list(order), y.tolist()) for order in itertools.permutations(x.tolist())]
    above, below = (np.mean([side * r >= side * rho - 1e-12 for r in orders]) for side in (1, -1))
    assert found.rho == pytest.approx(rho) and found.p == pytest.approx(min(1, 2 * min(above, below)))


def test_the_correlations_interval_covers_the_truth() -> None:
    """Normal pairs with Pearson's 0.6: Spearman's is 6/π·asin(0.3)."""
    truth, rng, covered = 6 / math.pi * math.asin(0.3), np.random.default_rng(0), 0
    for _ in range(300):
        x = rng.normal(size=20)
        found = rank_correlation(x, 0.6 * x + 0.8 * rng.normal(size=20))
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_a_perfect_order_still_has_an_interval() -> None:
    found = rank_correlation(np.arange(7.0), np.arange(7.0) ** 2)
    assert found.rho == pytest.approx(1) and 0.5 < found.low < found.high <= 1
    assert math.isnan(rank_correlation(np.arange(2.0), np.arange(2.0)).rho)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)).rho)


def test_layer_error_that_ranks_as_perplexity_is_shown() -> None:
    """Errors rise with delta_nll in `evidence`, and what is predicted falls."""
    found = evidence(configuration.load(DEFAULT, SCHEMA))
    for by in ("nll", "kl"):
        plain = found._replace(linears=found.linears.drop(columns="predicted_nats"), by=by)
        one = answers(plain)["layer-error"]
        assert one.outcome == "first" and one.verdict.startswith("Yes: ")
        assert f"as by {'delta_nll' if by == 'nll' else 'kl'} with" in one.verdict
        assert {row["measure"] for row in one.values} == {"mean log relative error", "log total MSE"}
    one = answers(found)["layer-error"]
    assert one.outcome == "mixed" and f"; by {PREDICTED} with −1.00 [" in one.verdict
    line = next(line for line in one.lines if line.startswith(PREDICTED))
    assert line.count("−1.00 [") == 2 and "; with kl −1.00" in line
    row = next(row for row in one.values if row["measure"] == PREDICTED)
    assert row["value"] == pytest.approx(0.05 * len(found.linears)) and row["kl"] == pytest.approx(0.09)


def test_layer_errors_are_logs_over_linears() -> None:
    linears = pd.DataFrame({"method": ["a", "a", "b"], "relative_error": [0.1, 0.4, 0.0], "mse": [1.0, 3.0, 0.0]})
    found = layer_errors(linears, pd.DataFrame({"method": ["a", "a"], "mse": [2.0, 5.0]}))
    assert found.loc["a"].tolist() == pytest.approx([math.log(0.2), math.log(4), math.log(7)])
    assert found.loc["b"].isna().all()


# ---- what is made of the answers


def test_answers_are_plain_json_and_draw() -> None:
    found = answers(evidence(configured((ROOT / "experiments/questions.yaml").read_text()), -0.05, 0.01))
    found["praq"].pairs[0] |= {"delta_nll": None, "delta_nll_low": None, "delta_nll_high": None}
    plain = json.loads(json.dumps([asdict(one) for one in found.values()], allow_nan=False))
    drawn = questions.draw({"m": plain}, {})
    rules = Path(ROOT / "rules/report.smk").read_text()
    for key, fig in drawn.items():
        assert f'"{key.rsplit("/", 1)[1]}"' in rules, "the rule must name each figure"
        to_svg(fig, {})
    assert len(drawn) == len(questions.ENDS) + len(questions.OWN)
