"""What a report answers of tasks, and of where damage sits."""

import re

import pytest

from quant.comparison.answers import NO_DIFFERENCE
from quant.comparison.numbers import LEVEL
from quant.comparison.task_answers import kept_pairs, turned_line
from quant.workflow import configuration
from tests.unit.comparison.studies import BY_ANCHOR, answers, evidence
from tests.unit.workflow.configurations import DEFAULT, SCHEMA, configured


def test_tasks_order_methods_by_both_measures_or_say_that_they_are_too_few() -> None:
    config = configured(BY_ANCHOR["tasks-order"].yaml)
    found = answers(evidence(config))["tasks-order"]
    assert found.outcome == "first" and found.verdict.startswith("Yes: by the likelihood of the right answers, as perp")
    n = len(config["study"]["methods"])
    assert found.verdict.count(f"over {n} methods") == 2 and "[+0." in found.verdict and len(found.values) == n
    assert sum("right answers alone" in line for line in found.lines) == 2
    few = configured("study: {methods: [gw_awq, gw_praq], tasks: [module], task_methods: all}")
    found = answers(evidence(few))["tasks-order"]
    assert found.outcome == "described" and found.verdict.startswith("Not told: 2 methods answer")


def test_pairs_that_both_tell_apart_are_counted_and_those_that_turn_named() -> None:
    """Each later method loses more on both tasks; the text has it so, or the other way round."""
    config = configured("study: {methods: [gw_awq, gw_praq, rtn_g], tasks: [last_word, module], task_methods: all}")
    found = evidence(config, delta=-0.1, p=0.01)
    assert turned_line(found._replace(task_pairs=found.task_pairs.assign(p_nll_holm=0.5))) == []
    told = found.task_pairs.assign(p_nll_holm=0.01, delta_nll=-1.0)
    said = "A task's likelihoods and python_reference both tell 6 of 6 pairs apart; the same method is better in "
    assert turned_line(found._replace(task_pairs=told)) == [f"{said}6."]
    turned = evidence(config, delta=0.1, p=0.01)._replace(task_pairs=told)
    (line,) = turned_line(turned)
    assert line.startswith(
        f"{said}0; only by the task gw_awq over gw_praq on last_word, gw_awq over rtn_g on last_word"
    )
    assert line.endswith(" and 1 more.")


def test_who_keeps_the_answers_is_tested_over_all_tasks() -> None:
    config = configured(BY_ANCHOR["answers-kept"].yaml)
    found = evidence(config)
    answered, methods = answers(found)["answers-kept"], config["study"]["methods"]
    best, *_, worst = (row["method"] for row in answered.values)
    assert answered.verdict.startswith(f"{best}'s answers come out as the original's on ")
    assert answered.outcome == "mixed" and re.search(rf"of 180 items; .*\b{worst} on fewer; no diff", answered.verdict)
    assert answered.values[0]["p against the best"] == "–" and worst == methods[-1]
    rows = kept_pairs(found.task_pairs)
    assert len(rows) == len(methods) * (len(methods) - 1) // 2
    own = found.task_pairs[(found.task_pairs.method_a == methods[0]) & (found.task_pairs.method_b == methods[-1])]
    row = next(row for row in rows if (row["a"], row["b"]) == (methods[0], methods[-1]))
    assert len(own) == 3 and (row["gained"], row["lost"]) == (own.kept_gained.sum(), own.kept_lost.sum())
    alone = found._replace(tasks=found.tasks[found.tasks.method.isin(["original", methods[0]])])
    assert answers(alone)["answers-kept"].outcome == "described"


@pytest.mark.parametrize(("p", "outcome"), [(0.01, "described"), (0.5, NO_DIFFERENCE)])
def test_where_damage_sits_is_claimed_only_where_shown(p: float, outcome: str) -> None:
    found = answers(evidence(configuration.load(DEFAULT, SCHEMA), p=p))["place"]
    n = 9
    assert found.outcome == outcome and len(found.values) == n * 2 * 2
    if p < LEVEL:
        assert found.verdict == (
            f"Damage is larger on rare tokens in {n} of {n} methods; at late places in {n} of {n} methods"
        )
        assert "A part by frequency: 40.0 % of the predictions, and between 50.0 %" in found.lines[0]
        assert found.lines[-1].startswith("On docstrings damage is larger on rare tokens")
    else:
        assert found.verdict == "No difference shown on python_reference"


def test_a_share_of_damage_is_told_of_methods_that_are_shown_to_do_any() -> None:
    found = evidence(configuration.load(DEFAULT, SCHEMA), p=0.01)
    table, names = found.contrasts, found.contrasts.method.unique()

    def first_line(damaged: list[str]) -> str:
        shares = table.damage_share.where(table.method.isin(damaged))
        one = answers(found._replace(contrasts=table.assign(damage_share=shares)))["place"]
        assert [row["of the damage"] == "none shown" for row in one.values] == shares.isna().tolist()
        return one.lines[0]

    start = "A part by frequency: 40.0 % of the predictions"
    assert first_line([]) == f"{start}; no method is shown to do damage, of which a share could sit there."
    rest = f"of the damage; none to share is shown of {', '.join(names[1:])}."
    assert first_line([names[0]]) == f"{start}, and 50.0 % ({names[0]}) {rest}"
    assert (
        first_line(list(names)) == f"{start}, and between 50.0 % ({names[0]}) and 58.0 % ({names[-1]}) of the damage."
    )
