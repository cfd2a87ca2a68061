"""What a method would change for somebody who uses the model and knows no perplexity: the page's first words."""

from typing import Any

import pandas as pd

from quant.comparison.numbers import number
from quant.comparison.tasks import above_chance, found
from quant.comparison.verdicts import ORIGINAL
from quant.files.units import megabytes
from quant.records.method import REAL
from quant.report.study import Study

MOST = 3  # tasks that are said


def changes(study: Study, model: str, dataset: str, method: str) -> dict[str, Any] | None:
    """The headline and a few lines on one method of a model; None where the summary has it not."""
    rows = study.rows(model, dataset).set_index("method")
    if method not in rows.index or ORIGINAL not in rows.index:
        return None
    asked = _of(study, "tasks.csv", model)
    lines = [_size(rows, method), *_answers(asked, method), *_next_word(rows, method)]
    lines += _writing(_of(study, "words.csv", model), method)
    return {
        "method": method,
        "colour": study.colours.get(method, ""),
        "headline": headline(asked, method),
        "lines": lines,
    }


def _of(study: Study, table: str, model: str) -> pd.DataFrame:
    frame = study.sources.get(table)
    return pd.DataFrame() if frame is None or frame.empty else frame[frame.model == model]


def headline(asked: pd.DataFrame, method: str) -> str:
    """Whether it answers questions worse than the original; empty where none was asked."""
    own = [row for row in asked.itertuples() if row.method == method]
    if not own:
        return ""
    outcomes = [found(row) for row in own]
    if any(one == ("worse", "answers") for one in outcomes):
        return "It answers fewer questions right than the original"
    answered = asked[asked.method == method]
    items = f"{answered['items'].sum():,} questions"
    if any(one.outcome == "worse" for one in outcomes):
        return f"It is less sure of right answers than the original, but {items} do not show that it gives fewer"
    if any(one.outcome == "better" for one in outcomes):
        return "It answers questions no worse than the original"
    known = [above_chance(asked[asked.task == task]) for task in answered.task]
    telling = int(answered.loc[known, "items"].sum())
    if not telling:
        return f"Nothing shown: the original itself answers {items} no better than by guessing"
    return f"No loss of right answers shown on {telling:,} questions"


def _size(rows: pd.DataFrame, method: str) -> str:
    before, after = (float(rows.size_mb[name]) for name in (ORIGINAL, method))
    if rows.storage[method] not in REAL:
        return "Its file is as large as the original's here, since no reader knows a smaller form of it."
    times = f"{number(before / after, 1)} times smaller" if after < before else "no smaller"
    return f"Its file takes {megabytes(after)} MB instead of {megabytes(before)} MB: {times}."


def _answers(asked: pd.DataFrame, method: str) -> list[str]:
    """A line a task: right answers beside the original's and the worst method's, and how many are the original's."""
    said = []
    for task, rows in asked.groupby("task", sort=False) if len(asked) else ():
        by_method = rows.set_index("method")
        if method not in by_method.index:
            continue
        row, original = by_method.loc[method], by_method.loc[ORIGINAL]
        n, others = int(row["items"]), by_method.drop(index=ORIGINAL)
        right, before = (round(float(one.score) * n) for one in (row, original))
        shown = found(row).by == "answers"
        seen = number(float(row.detectable) * n, 0)
        sure = "" if shown else f" (a true difference of {seen} would have been shown half of the time)"
        what = _asked(str(task), str(row.rule))
        line = (
            f"Of {n:,} questions ({what}) it answers {right} right, the original {before}{sure}; "
            f"{number(100 * (1 - float(row.changed)), 0)} of 100 come out as the original's do"
        )
        worst = str(others.score.idxmin())
        least = others.loc[worst]
        if worst != method:
            line += f". The worst method asked, {worst}, answers {round(float(least.score) * n)} right"
        said.append(f"{line}.")
    return said[:MOST]


def _asked(task: str, rule: str) -> str:
    """What a task asks, in a few words; its name where its rule does not begin with that."""
    return task if rule.startswith("lm-eval ") else rule.partition(",")[0]


def _next_word(rows: pd.DataFrame, method: str) -> list[str]:
    known = rows[(rows.index != ORIGINAL) & rows.top1_agreement.notna()]
    if method not in known.index:
        return []
    worst = str(known.top1_agreement.astype(float).idxmin())
    same = number(100 * float(rows.top1_agreement[method]), 0)
    places = f"{int(rows.kl_tokens[method]):,} places of a text"
    line = f"Asked for the next word at {places}, it picks the original's in {same} of 100"
    if worst != method:
        line += f"; {worst}, the worst of all, in {number(100 * float(rows.top1_agreement[worst]), 0)}"
    return [f"{line} (words, or pieces of them)."]


def _writing(words: pd.DataFrame, method: str) -> list[str]:
    own = words[words.method == method] if len(words) else words
    return [
        f"Writing by itself it writes what the original writes for {number(row.agreed, 0)} of {int(row.tokens)} words "
        "or pieces, on average; from there on the text is another one, not always a worse one."
        for row in own.itertuples()
    ]
