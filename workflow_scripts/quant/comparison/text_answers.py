"""Two questions about texts: does the order of methods hold on a second one, and has a method learnt the first one's
kind?"""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from quant.comparison.answers import NO_ANSWER, NO_DIFFERENCE, Answered, Evidence
from quant.comparison.correlation import rank_correlation
from quant.comparison.learnt import between_texts
from quant.comparison.measures import MEASURES
from quant.comparison.numbers import LEVEL, interval, number, signed
from quant.comparison.paired import Estimate, detectable, holm
from quant.comparison.pairs import TUNED
from quant.comparison.verdicts import ORIGINAL, p_words


def second_text(evidence: Evidence, answered: Answered) -> None:
    """Pairs told apart on two texts: do any change places?"""
    if len(evidence.datasets) < 2:
        return
    measure = MEASURES[evidence.by]
    p, difference = f"p_holm{measure.suffix}", measure.difference
    first, *others = evidence.datasets
    for other in others:
        tables = [evidence.comparisons[evidence.comparisons.dataset == name] for name in (first, other)]
        both = tables[0].merge(tables[1], on=["method_a", "method_b"], suffixes=("", "_other"))
        if both.empty:
            continue
        shown = both[(both[p] <= LEVEL) & (both[f"{p}_other"] <= LEVEL)]
        turned = shown[np.sign(shown[difference]) != np.sign(shown[f"{difference}_other"])]
        verdict = (
            f"No difference shown on both {first} and {other} in any of {len(both)} pairs"
            if shown.empty
            else f"{'No' if len(turned) else 'Yes'}: of {len(shown)} pairs told apart on both {first} and {other}, "
            f"{len(turned) or 'none'} change places"
        )
        rises = evidence.summary[evidence.summary.method != ORIGINAL].pivot(
            index="method", columns="dataset", values=measure.rise
        )
        rises = rises[[first, other]].replace([np.inf, -np.inf], np.nan).dropna()
        rho = rank_correlation(rises[first].to_numpy(), rises[other].to_numpy())
        answered.lines.append(
            f"Between {first} and {other}, Spearman's ρ of {measure.rise} over methods is {rho.text()}."
        )
        answered.values += [
            {"method": method, first: number(row[first], 4), other: number(row[other], 4),
             "place": f"{int(place)} and {int(place_other)}"}
            for (method, row), place, place_other in zip(
                rises.iterrows(), rankdata(rises[first]), rankdata(rises[other]), strict=True)
        ]  # fmt: skip
        if answered.outcome == NO_ANSWER:
            answered.outcome = NO_DIFFERENCE if shown.empty else "second" if len(turned) else "first"
            answered.verdict = verdict
        else:
            answered.lines.append(verdict + ".")


LEARNT, SUITED, OWN_KIND, ANOTHER = "learnt", "suits it", "the calibration's", "another"


def learnt(evidence: Evidence, answered: Answered) -> None:
    """What each method that is fitted further gains in NLL beyond its gain in KL, on every data set; and, of tuned
    ones, what it gains on the calibration's kind of text beyond its gain on another. One family of tests.

    Only tuning sees predictions: an untuned method's errors may suit a text, but it has learnt nothing of it.
    """
    table = evidence.learnt
    if table is None or table.empty:
        return
    kinds = evidence.kinds or {}
    rows = [row for row in table.itertuples() if math.isfinite(row.p)]
    own = [row for row in rows if kinds.get(row.dataset, False)]
    crossed = [
        (row, another)
        for row in own
        for another in rows
        if row.group == TUNED and (row.method, row.before) == (another.method, another.before) and another not in own
    ]
    within = [Estimate(row.learnt, row.learnt_low, row.learnt_high, row.p, row.error) for row in rows]
    across = [between_texts(row, another) for row, another in crossed]
    p = [float(each) for each in holm([one.p for one in [*within, *across]])]
    told: dict[str, list[str]] = {}
    for row, one, each in zip(rows, within, p, strict=False):
        answered.values.append(learnt_values(row, one, each, kinds))
        if row not in own or each > LEVEL or one.mean <= 0:
            continue
        words = (
            f"on {row.dataset} it takes {share(row.delta_nll, row.delta_nll_before)} off {row.before}'s delta_nll but "
            f"{share(row.kl, row.kl_before)} off its KL: {number(one.mean, 4)} {interval(one.low, one.high, 4)} nats "
            f"per token more than its share ({p_words(each)})"
        )
        if row.group == TUNED:
            told.setdefault(row.method, []).append(words)
        else:
            answered.lines.append(f"{row.method} is not tuned, but its errors suit the text: {words}.")
    for (row, another), one, each in zip(crossed, across, p[len(rows) :], strict=True):
        words = (
            f"of {row.before}'s delta_nll it leaves {100 * row.ratio:.1f} % on {row.dataset} and "
            f"{100 * another.ratio:.1f} % on {another.dataset}, text of another kind ({p_words(each)})"
        )
        if each <= LEVEL and one.mean > 0:
            told.setdefault(row.method, []).append(words)
        else:
            answered.lines.append(f"{row.method}: {words}: no difference shown.")
    named = [f"{method}{HAS_LEARNT}{'; '.join(words)}." for method, words in told.items()]
    answered.lines = [*named, *answered.lines, *harmless(table)]
    answered.outcome, answered.verdict = learnt_verdict(own, list(told), len(p))


def learnt_verdict(own: list[Any], told: list[str], tests: int) -> tuple[str, str]:
    """Outcome and verdict. own: rows on the calibration's kind of text; told: methods that have learnt it."""
    rows = [row for row in own if row.group == TUNED]
    tuned = list(dict.fromkeys(row.method for row in rows))
    if not own:
        return "described", "Not told: no data set is of the calibration's kind of text"
    if not tuned:
        return "described", "None is tuned, and nothing else sees predictions"
    if told:
        return "first", f"Yes: {', '.join(told)}, of {len(tuned)} tuned"
    seen = max(detectable(row.error, int(row.sequences), tests) for row in rows)
    return NO_DIFFERENCE, (
        f"Not shown: {', '.join(tuned)} {'gain' if len(tuned) > 1 else 'gains'} no more in NLL than in KL; "
        f"{number(seen, 4)} nats per token could have been seen"
    )


def share(now: float, before: float) -> str:
    """How much of a damage is gone."""
    return f"{signed(100 * (1 - now / before), 1).lstrip('+')} %"


def learnt_values(row: Any, one: Estimate, p: float, kinds: dict[str, bool]) -> dict[str, Any]:
    """A row of the answer's table."""
    more = LEARNT if row.group == TUNED else SUITED
    return {
        "method": row.method,
        "fitted less": row.before,
        "text": row.dataset,
        "its kind": OWN_KIND if kinds.get(row.dataset, False) else ANOTHER,
        "off delta_nll": share(row.delta_nll, row.delta_nll_before),
        "off KL": share(row.kl, row.kl_before),
        "beyond KL, nats": f"{signed(one.mean, 4)} {interval(one.low, one.high, 4)}".strip(),
        "p": p_words(p).removeprefix("p "),
        "verdict": (more if one.mean > 0 else "the contrary") if p <= LEVEL else "not shown",
    }


def harmless(table: pd.DataFrame) -> list[str]:
    """A line for each pair without a share to compare."""
    return [
        f"{row.method} on {row.dataset}: nothing to compare, since {row.before} does no harm there."
        for row in table.itertuples()
        if not math.isfinite(row.p) and not row.delta_nll_before > 0
    ]


HAS_LEARNT = " has learnt the text: "


def learnt_lines(answered: list[dict[str, Any]], methods: list[str]) -> list[str]:
    """Of a model's answers as plain data, those that say of one of these methods that it has learnt the text."""
    one = next((one for one in answered if one["anchor"] == "learnt"), None)
    starts = tuple(f"{method}{HAS_LEARNT}" for method in methods)
    return [] if one is None else [line for line in one["lines"] if line.startswith(starts)]
