"""What the report says of tasks: scores, and what differs from the original."""

from typing import Any

import pandas as pd

from quant.comparison.numbers import interval, number, signed
from quant.comparison.tasks import above_chance, found, kept
from quant.comparison.verdicts import ORIGINAL, p_words
from quant.report.page import Cell, Picture, Section, Table, data_uri, number_cell, sortable, spans
from quant.report.sections.cells import of_model, pct, text_cell

NOTE = (
    "Score: share of right answers (of words: that are the model's own greedy guess). Differences are paired item by "
    "item. The first p is McNemar's exact test of answers that only one of the two has right; the second of how likely "
    "each makes the right answer (nats per item, below 0: likelier). All of both, on every task, against the original "
    "and between methods, are corrected together (Holm); the verdicts on NLL are a family of their own. “Could be "
    "seen”: a true difference of that size would be shown half of the time."
)
CAPTION = (
    "Left: right answers, minus the original's. Right: how likely the right answer is made, minus the original's, "
    "which moves long before an answer does. Better is to the right. Filled: differs by that measure's corrected p. "
    "Intervals are 95 %, each on its own."
)
MOST = 40  # pairs that a table lists


def tasks(
    place: str, rows: pd.DataFrame, pairs: pd.DataFrame, colours: dict[str, str], figure: str, studied: int
) -> Section:
    """Of one model; rows of tasks.csv and task_pairs.csv; figure: SVG; studied: methods of the study."""
    model = str(rows.model.iloc[0])
    title = f"Tasks{of_model(model, place)}"
    picture = Picture(data_uri("image/svg+xml", figure), f"Scores on tasks. {headline(rows)}.", CAPTION)
    tables = [("Scores by task and method", scores_table(rows, colours))]
    if len(pairs):
        tables.append(("Pairs of methods by task", pairs_table(pairs, colours)))
    said = (*who_was_asked(rows, studied), *lines(rows))
    return Section(f"tasks{place}", title, headline(rows), said, (picture,), tuple(tables), (NOTE,))


def who_was_asked(rows: pd.DataFrame, studied: int) -> list[str]:
    """How many of the study's methods answer, where others do not."""
    n = rows.method[rows.method != ORIGINAL].nunique()
    more = "study.task_methods: all asks the others too"
    return [f"{n} of the study's {studied} methods were asked, and the original ({more})."] if n < studied else []


TOLD = {
    ("worse", "answers"): "fewer right answers than the original{of}",
    ("worse", "likelihood"): "less sure of right answers{of}, though fewer right ones are not shown",
    ("better", "answers"): "more right answers than the original{of}",
    ("better", "likelihood"): "surer of right answers{of}",
    ("none", ""): "no difference shown",
}


def headline(rows: pd.DataFrame) -> str:
    """Of each method the gravest that a task shows, by answers before likelihoods."""
    told: dict[tuple[str, str], list[str]] = {key: [] for key in TOLD}
    for method, of_method in rows[rows.method != ORIGINAL].groupby("method", sort=False):
        outcomes = {(one.outcome, one.by) for one in map(found, of_method.itertuples())}
        told[next(key for key in TOLD if key in outcomes)].append(str(method))
    n = rows.task.nunique()
    of = "" if n == 1 else f" on at least one of {n} tasks"
    words = [f"{', '.join(names)}: {TOLD[key].format(of=of)}" for key, names in told.items() if names]
    return "; ".join(words) or "No quantised method has answered"


def lines(rows: pd.DataFrame) -> list[str]:
    said = []
    for task, of_task in rows.groupby("task", sort=False):
        row = of_task[of_task.method == ORIGINAL].iloc[0]
        known = f"{pct(row.score, 1)} [{number(100 * row.score_low, 1)}, {number(100 * row.score_high, 1)}]"
        line = f"{task}: {row.rule}. {int(row['items']):,} items, chance {pct(row.chance, 0)}, the original {known}"
        said.append(f"{line}." if above_chance(of_task) else f"{line}, not above chance: this task shows nothing here.")
        others = of_task[of_task.method != ORIGINAL]
        if len(others):
            seen, needed = others.detectable.median(), others.items_for_1_percent.median()
            said.append(
                f"{task}: a difference of {pct(seen, 1)} in the score could have been seen (half of the time, the "
                f"median method); 1 % would take about {number(needed, 0)} items."
            )
    if share := kept(rows):
        (first, most), (last, least) = share[0], share[-1]
        line = f"{first}'s answers come out as the original's most often: {pct(most, 1)}"
        said.append(line + (f"; {last}'s least: {pct(least, 1)}." if len(share) > 1 else "."))
    return said


def difference_cells(row: Any) -> list[Cell]:
    """Score and likelihood, first minus second, and what they show."""
    score = f"{signed(100 * row.delta, 1)} {interval(100 * row.delta_low, 100 * row.delta_high, 1)}"
    shown = found(row)
    verdict = f"{shown.outcome} (by {shown.by})" if shown.by else "no difference shown"
    nll = f"{signed(row.delta_nll, 3)} {interval(row.delta_nll_low, row.delta_nll_high, 3)}"
    return [
        Cell(verdict, verdict),
        Cell(score.strip(), sortable(row.delta), css="num"),
        Cell(p_words(row.p_holm).removeprefix("p ") or "–", sortable(row.p_holm), css="num"),
        Cell(f"{pct(row.detectable, 1)}", sortable(row.detectable), css="num"),
        Cell(nll.strip(), sortable(row.delta_nll), css="num"),
        Cell(p_words(row.p_nll_holm).removeprefix("p ") or "–", sortable(row.p_nll_holm), css="num"),
        Cell(pct(row.changed, 1), sortable(row.changed), css="num"),
    ]


DIFFERENCES = [
    ("verdict", "of the first, by the corrected p, at 5 %"),
    ("score difference, points", "percentage points, first minus second, with its 95 % interval (Newcombe)"),
    ("p", "McNemar's exact test, corrected"),
    ("could be seen", "a true difference of this size would be shown half of the time"),
    ("NLL of the right answer", "nats per item, first minus second; below 0 the first makes it likelier"),
    ("p of that", "paired by item, corrected"),
    ("answers changed", "share of items that come out differently (another choice; of words, right by one alone)"),
]


def scores_table(rows: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Every method's score beside the original's."""
    ends = [(row.score_low, row.score, row.score_high) for row in rows.itertuples()]
    cells = []
    for row, span in zip(rows.itertuples(), spans(ends), strict=True):
        original = row.method == ORIGINAL
        cells.append(
            [
                Cell(row.method, row.method, colours.get(row.method, "")),
                text_cell(str(row.task)),
                Cell(pct(row.score, 1), sortable(row.score), css="num", span=span),
                *([text_cell("–")] * len(DIFFERENCES) if original else difference_cells(row)),
                Cell("–", -1.0) if original else number_cell(row.items_for_1_percent, 0),
            ]
        )
    needed = ("items for 1 %", "items after which a difference of 1 % would be shown half of the time")
    return Table(
        "tasks", [("method", ""), ("task", ""), ("score", "with its 95 % interval"), *DIFFERENCES, needed], cells
    )


def pairs_table(pairs: pd.DataFrame, colours: dict[str, str]) -> Table:
    """Pairs of methods, those that differ first."""
    ordered = pairs.assign(least=pairs[["p_holm", "p_nll_holm"]].min(axis=1)).sort_values("least", kind="stable")
    cells = [
        [
            text_cell(str(row.task)),
            *(Cell(name, name, colours.get(name, "")) for name in (row.method_a, row.method_b)),
            *difference_cells(row),
        ]
        for row in ordered.head(MOST).itertuples()
    ]
    note = f"The first {MOST} of {len(pairs)}; all are in task_pairs.csv." if len(pairs) > MOST else ""
    return Table("task-pairs", [("task", ""), ("first", ""), ("second", ""), *DIFFERENCES], cells, note)
