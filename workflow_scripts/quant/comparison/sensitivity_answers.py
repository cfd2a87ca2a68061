"""Which parts of a model suffer when they alone are quantised: said of those whose loss is shown."""

import math
from typing import Any

import pandas as pd

from quant.comparison.answers import NO_ANSWER, NO_DIFFERENCE, Answered, Evidence, pair_row, smallest
from quant.comparison.part_names import OTHER
from quant.comparison.verdicts import ORIGINAL, difference_of, p_words
from quant.models.structure.names import linear_kind

PARTS = {"kind": "kind of linear", "layer": "layer"}
ALL_PARTS = {"kind": "kinds of linear", "layer": "layers"}


def sensitivity(evidence: Evidence, answered: Answered) -> None:
    """Which parts suffer when only they are quantised, and which gain from a zero point; the verdict is of the first
    method, by kind where there are kinds."""
    table = evidence.sensitivity
    for by, what in PARTS.items():
        alone = table[(table.by == by) & (table.against == "original")]
        for method, rows in alone.groupby("method", sort=False):
            ordered = rows.sort_values("delta_nll", ascending=False)
            pairs = [
                pair_row(f"{by}, {method}", row.part, ORIGINAL, row.dataset, difference_of(row))
                for row in (ordered if by == "kind" else rows).itertuples()
            ]
            outcome, words = suffers(by, ordered)
            answered.pairs += pairs
            answered.lines.append(f"{method}, one {what} at a time: {words}.")
            if answered.outcome == NO_ANSWER:
                answered.outcome = outcome
                seen = smallest(pairs) if outcome == NO_DIFFERENCE else ""
                answered.verdict = f"Quantised alone by {method}, {words}{seen}"
        gains = table[(table.by == by) & ~table.against.isin(["original", OTHER])]
        for (method, twin), rows in gains.groupby(["method", "against"], sort=False):
            answered.pairs += [
                pair_row(f"{by}, {method} against {twin}", row.part, twin, row.dataset, difference_of(row))
                for row in rows.itertuples()
            ]
            answered.lines.append(
                f"A zero point ({method} against {twin}) {gained(by, rows.sort_values('delta_nll'))}."
            )


def of_outcome(ordered: pd.DataFrame, outcome: str) -> list[Any]:
    """The rows whose difference is shown to be that, in their order."""
    return [row for row in ordered.itertuples() if difference_of(row).outcome == outcome]


def numbers_of(row: Any) -> str:
    """Nats per token with the interval and the corrected p."""
    found = difference_of(row)
    return ", ".join(words for words in (found.text(), p_words(found.p)) if words)


def suffers(by: str, ordered: pd.DataFrame) -> tuple[str, str]:
    """Outcome and words on which part suffers most when it alone is quantised, of those whose loss is shown; else that
    none is shown to, and the largest change. ordered: a method's parts, the largest loss first."""
    shown, n = of_outcome(ordered, "worse"), len(ordered)
    worst = [*shown, *ordered.itertuples()][0]
    part, numbers = part_words(by, worst.part), numbers_of(worst)
    if not shown:
        largest = f"the largest change of the NLL, {part}'s {numbers}, is no loss that is shown"
        return NO_DIFFERENCE, f"none of {n} {ALL_PARTS[by]} is shown to suffer by itself; {largest}"
    size = f"{worst.weights / 1e6:.1f} million weights, {100 * worst.weights / ordered.weights.sum():.0f} % of all"
    # where a part's NLL falls, a share of the sum is none of a whole
    share = (
        f", {100 * worst.delta_nll / ordered.delta_nll.sum():.0f} % of the sum over all"
        if worst.delta_nll > 0 and ordered.delta_nll.between(0, math.inf, inclusive="left").all()
        else ""
    )
    words = f"{len(shown)} of {n} {ALL_PARTS[by]} {'is' if len(shown) == 1 else 'are'} shown to suffer, {part} the most"
    return "described", f"{words}: NLL {numbers}{share}; it holds {size}"


def gained(by: str, ordered: pd.DataFrame) -> str:
    """In which part a zero point gains most, of those where it is shown to; else that it is in none."""
    shown, n = of_outcome(ordered, "better"), len(ordered)
    best = [*shown, *ordered.itertuples()][0]
    part, numbers = part_words(by, best.part), numbers_of(best)
    if not shown:
        return f"is not shown to gain in any of {n} {ALL_PARTS[by]}; the least NLL is {part}'s: {numbers}"
    named = f" ({', '.join(row.part for row in shown)})" if len(shown) < 9 else ""
    return f"gains most in {part}: {numbers}; shown in {len(shown)} of {n}{named}"


def part_words(by: str, part: str) -> str:
    return f"layer {part}" if by == "layer" else linear_kind(part)
