"""Where damage sits: whether a method loses more on rare tokens than on common ones, and more late in a sequence."""

from typing import Any

import pandas as pd

from quant.comparison.answers import NO_DIFFERENCE, Answered, Evidence, finite
from quant.comparison.numbers import interval, number, percent, signed
from quant.comparison.profiles import shown
from quant.comparison.verdicts import p_words

PLACES = {"frequency": "on rare tokens", "position": "at late places"}
OTHERS = {"frequency": "on common tokens", "position": "at early places"}


def counted(rows: pd.DataFrame, by: str) -> str:
    """How many of a data set's methods lose more there, and how many elsewhere."""
    outcomes = [shown(row) for row in rows.itertuples()]
    more, less, n = outcomes.count("larger"), outcomes.count("smaller"), len(outcomes)
    words = [f"{PLACES[by]} in {more} of {n} methods"] if more or not less else []
    return " and ".join([*words, *([f"{OTHERS[by]} in {less} of {n}"] if less else [])])


def line(rows: pd.DataFrame, by: str) -> str:
    """How much of the damage sits there, of how much of the text; rows of one data set."""
    most, least = rows.loc[rows.damage_share.idxmax()], rows.loc[rows.damage_share.idxmin()]
    words = rows.part.iloc[0]
    start = f"{words[0].upper()}{words[1:]}: {percent(rows.share.iloc[0]).lstrip('+')} of the predictions"
    return (
        f"{start}, and between {percent(least.damage_share).lstrip('+')} ({least.method}) and "
        f"{percent(most.damage_share).lstrip('+')} ({most.method}) of the damage."
    )


def place(evidence: Evidence, answered: Answered) -> None:
    """Every method's damage on rare tokens against that on common ones, and late against early, on every data set; the
    verdict is the first data set's."""
    table = evidence.contrasts
    if table is None or table.empty:
        return
    for dataset in evidence.datasets:
        rows = table[table.dataset == dataset]
        bys = [by for by in PLACES if (rows.by == by).any()]
        if not bys:
            continue
        words = "; ".join(counted(rows[rows.by == by], by) for by in bys)
        if not answered.values:
            some = any(shown(row) != "none" for row in rows.itertuples())
            answered.outcome = "described" if some else NO_DIFFERENCE
            answered.verdict = f"Damage is larger {words}" if some else f"No difference shown on {dataset}"
            answered.lines += [
                line(own, by) for by in bys if len(own := rows[(rows.by == by) & rows.damage_share.notna()])
            ]
        else:
            answered.lines.append(f"On {dataset} damage is larger {words}.")
        answered.values += [value(row) for row in rows.itertuples()]


def value(row: Any) -> dict[str, Any]:
    """A row of the answer's table."""
    share = finite(row.damage_share)
    return {
        "method": row.method,
        "text": row.dataset,
        "where": PLACES[row.by].removeprefix("on ").removeprefix("at "),
        "rise there": number(row.delta_nll, 3),
        "rise elsewhere": number(row.delta_nll_rest, 3),
        "difference": f"{signed(row.contrast, 3)} {interval(row.contrast_low, row.contrast_high, 3)}".strip(),
        "of the damage": "–" if share is None else f"{number(100 * share, 0)} %",
        "of the text": f"{100 * row.share:.0f} %",
        "p": p_words(row.p_holm).removeprefix("p "),
        "verdict": {"none": "no difference shown"}.get(shown(row), f"{shown(row)} there"),
    }
