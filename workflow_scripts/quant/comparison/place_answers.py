"""Where damage sits: whether a method loses more on rare tokens than on common ones, and more late in a sequence."""

import math
from typing import Any

import pandas as pd

from quant.comparison.answers import NO_DIFFERENCE, Answered, Evidence
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


def share_words(row: Any) -> str:
    """A share of a damage, which is above 1 where the NLL falls elsewhere."""
    return f"{number(100 * row.damage_share, 1)} %"


def line(rows: pd.DataFrame, by: str) -> str:
    """How much of the damage sits there, of how much of the text; rows of one data set."""
    words = rows.part.iloc[0]
    start = f"{words[0].upper()}{words[1:]}: {percent(rows.share.iloc[0]).lstrip('+')} of the predictions"
    damaged = rows[rows.damage_share.notna()].sort_values("damage_share", kind="stable")
    none = ", ".join(rows.method[rows.damage_share.isna()])
    if damaged.empty:
        return f"{start}; no method is shown to do damage, of which a share could sit there."
    ends = [f"{share_words(row)} ({row.method})" for row in damaged.iloc[[0, -1][: len(damaged)]].itertuples()]
    share = f"between {ends[0]} and {ends[1]}" if len(ends) == 2 else ends[0]
    return f"{start}, and {share} of the damage{f'; none to share is shown of {none}' if none else ''}."


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
            answered.lines += [line(rows[rows.by == by], by) for by in bys]
        else:
            answered.lines.append(f"On {dataset} damage is larger {words}.")
        answered.values += [value(row) for row in rows.itertuples()]


def value(row: Any) -> dict[str, Any]:
    """A row of the answer's table."""
    return {
        "method": row.method,
        "text": row.dataset,
        "where": PLACES[row.by].removeprefix("on ").removeprefix("at "),
        "rise there": number(row.delta_nll, 3),
        "rise elsewhere": number(row.delta_nll_rest, 3),
        "difference": f"{signed(row.contrast, 3)} {interval(row.contrast_low, row.contrast_high, 3)}".strip(),
        "of the damage": "none shown" if math.isnan(row.damage_share) else f"{number(100 * row.damage_share, 0)} %",
        "of the text": f"{100 * row.share:.0f} %",
        "p": p_words(row.p_holm).removeprefix("p "),
        "verdict": {"none": "no difference shown"}.get(shown(row), f"{shown(row)} there"),
    }
