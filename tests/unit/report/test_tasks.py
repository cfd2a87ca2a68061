"""The section of tasks: what it says, and that it says nothing in HTML of its own."""

import re

import numpy as np
import pandas as pd
import pytest

from quant.comparison.tasks import task_tables
from quant.report.figures import tasks as figure
from quant.report.figures.style import method_colours, to_svg
from quant.report.sections import tasks as section
from tests.unit.comparison.items import ITEMS, answers, likelihoods

EFFECTS = {"original": 0.0, "<b>far</b>": 0.9, "near": 0.3, "middle": 0.5, "same": 0.0}


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """tasks.csv and task_pairs.csv of four methods on two tasks, the second of which the original guesses."""
    rng = np.random.default_rng(5)
    groups = {}
    for task, right_above in (("t0", -1.0), ("t1", 0.9)):
        log_p = dict(zip(EFFECTS, likelihoods(rng, np.array(list(EFFECTS.values()))), strict=True))
        groups["m", task] = {name: answers(name, one > right_above, one, task) for name, one in log_p.items()}
    return task_tables(groups, 999, 0)


def test_it_says_who_differs_and_what_could_be_seen(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    rows, pairs = tables
    unsure = (rows.method == "near") & (rows.p_nll_holm < 0.05)  # whose answers, among fewer methods, might not show it
    rows = rows.assign(p_holm=rows.p_holm.mask(unsure, 1.0))
    found = section.tasks("", rows, pairs, method_colours(EFFECTS), "<svg/>", 9)
    some = "on at least one of 2 tasks"
    assert found.headline == (
        f"<b>far</b>, middle: fewer right answers than the original {some}; near: less sure of right answers {some}, "
        "though fewer right ones are not shown; same: no difference shown"
    )
    assert found.lines[0].startswith("4 of the study's 9 methods were asked, and the original (study.task_methods: all")
    assert section.who_was_asked(rows, 4) == []
    text = "\n".join(found.lines)
    assert f"t0: a rule. {ITEMS} items, chance 25 %, the original " in text
    assert "t1: a rule." in text and "not above chance: this task shows nothing here" in text
    assert re.search(r"t0: a difference of \d+\.\d % in the score could have been seen .* would take about \d", text)
    assert re.search(r"same's answers come out as the original's most often: \d\d\.\d %; <b>far</b>'s least", text)
    scores, compared = (table for _, table in found.tables)
    assert len(scores.rows) == 10 and len(compared.rows) == 12
    verdict = {(row[0].text, row[1].text): row[3].text for row in scores.rows}
    assert verdict["<b>far</b>", "t0"] == "worse (by answers)" and verdict["same", "t0"] == "no difference shown"


def test_the_figure_is_the_same_for_the_same_rows(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    drawn = [to_svg(figure.tasks(tables[0], method_colours(EFFECTS)), {}) for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) > 5000
    alone = tables[0][tables[0].method == "original"]
    assert "has answered" not in drawn[0] and len(to_svg(figure.tasks(alone, {}), {})) < len(drawn[0])
