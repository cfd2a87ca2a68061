"""How each research question is answered from what a study measured.

A question about methods is asked of every two that are alike but for one choice; verdicts come from paired p-values
corrected for the question's own pairs (Holm), never from the numbers alone: what a study compares besides hides nothing
that a question shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from quant.comparison.measures import MEASURES, other
from quant.comparison.numbers import duration, number, percent, signed
from quant.comparison.pairs import Finder, Recipes
from quant.comparison.part_names import OTHER, RISKY
from quant.comparison.verdicts import (
    ORIGINAL,
    Difference,
    difference_of,
    difference_words,
    family,
    increase,
    kl_words,
    otherwise_words,
    p_words,
    pair_difference,
    quality,
)

NO_ANSWER, NO_DIFFERENCE = "not asked", "no difference shown"


class Evidence(NamedTuple):
    """What a study measured of one model; datasets and methods in the study's order.

    by: the measure that verdicts on pairs rest on; kinds: whether a data set is of the calibration's kind of text;
    contrasts, tasks, task_pairs: contrasts.csv, tasks.csv and task_pairs.csv.
    """

    model: str
    datasets: list[str]
    recipes: Recipes
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    linears: pd.DataFrame
    rounding: pd.DataFrame
    sensitivity: pd.DataFrame
    channels: dict[str, dict[str, int]]
    check: dict[str, Any] | None = None
    heldout: pd.DataFrame | None = None
    by: str = "nll"
    learnt: pd.DataFrame | None = None
    kinds: dict[str, bool] | None = None
    contrasts: pd.DataFrame | None = None
    tasks: pd.DataFrame | None = None
    task_pairs: pd.DataFrame | None = None


@dataclass
class Answered:
    """outcome: first, second (is better), mixed, no difference shown, described, or not asked; verdict: the answer in
    one sentence. pairs: one row a paired difference; values: rows of a table of its own."""

    anchor: str
    question: str
    outcome: str = NO_ANSWER
    verdict: str = "Not asked: its methods are not in this study"
    lines: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    yaml: str = ""


def words_of(outcome: str, names: tuple[str, str], counts: tuple[int, int, int], yes: bool) -> str:
    """The verdict on several pairs: (better, worse, all) of the first."""
    better, worse, total = counts
    first, second = names
    pairs, all_pairs = f"of {total} {'pair' if total == 1 else 'pairs'}", f"{total} {'pair' if total == 1 else 'pairs'}"
    sure = {"first": "Yes: ", "second": "No: "}.get(outcome, "") if yes else ""
    return {
        "first": f"{sure}{first} is better than {second} in {better} {pairs}, worse in none",
        "second": f"{sure}{first} is worse than {second} in {worse} {pairs}, better in none",
        "mixed": f"It depends: {first} is better than {second} in {better} and worse in {worse} {pairs}",
        NO_DIFFERENCE: f"No difference shown between {first} and {second} in {all_pairs}",
    }[outcome]


def judge(outcomes: Sequence[str]) -> str:
    """One outcome from those of several pairs."""
    better, worse = "better" in outcomes, "worse" in outcomes
    return "mixed" if better and worse else "first" if better else "second" if worse else NO_DIFFERENCE


def finite(value: float | None) -> float | None:
    """A number that JSON has, or null."""
    return None if value is None or not math.isfinite(value) else float(value)


def pair_row(
    label: str, first: str, second: str, dataset: str, found: Difference, another: Difference | None = None
) -> dict[str, Any]:
    """A paired difference as plain data; another: by the other measure, if there is one.

    outcome is the verdict's measure's (`by`), outcome_nll and outcome_kl each one's.
    """
    row: dict[str, Any] = {"group": label, "first": first, "second": second, "dataset": dataset, "by": found.by}
    for one in (found, *([] if another is None else [another])):
        name, suffix = MEASURES[one.by].difference, MEASURES[one.by].suffix
        row |= {name: finite(one.delta), f"{name}_low": finite(one.low), f"{name}_high": finite(one.high)}
        row |= {f"p_holm{suffix}": finite(one.p), f"detectable{suffix}": finite(one.detectable)}
        row |= {MEASURES[one.by].sequences: one.sequences, f"outcome_{one.by}": one.outcome}
    return row | {"outcome": found.outcome}


def of_pairs(
    groups: dict[str, Finder], names: tuple[str, str], yes: bool = False
) -> Callable[[Evidence, Answered], None]:
    """Answers by every pair that the finders give, each group of pairs under its label."""

    def answer(evidence: Evidence, answered: Answered) -> None:
        places = [
            (label, first, second, dataset)
            for dataset in evidence.datasets
            for label, find in groups.items()
            for first, second in find(evidence.recipes)
            if pair_difference(evidence.comparisons, evidence.model, dataset, first, second) is not None
        ]
        found, others = (
            family([one for place in places if (one := difference_at(evidence, place, by)) is not None])
            for by in (evidence.by, other(evidence.by))
        )
        measured = [
            (pair_row(*place, one, another), one, another)
            for place, one, another in zip(places, found, others, strict=True)
        ]
        for dataset in evidence.datasets:
            own = [each for each in measured if each[0]["dataset"] == dataset]
            if not own:
                continue
            rows = [row for row, _, _ in own]
            outcome = judge([row["outcome"] for row in rows])
            verdict = judged_words([one for _, one, _ in own], names, yes)
            verdict = verdict[0].upper() + verdict[1:] + (smallest(rows) if outcome == NO_DIFFERENCE else "")
            verdict += otherwise([one for _, one, _ in own], [another for _, _, another in own], names)
            if answered.outcome == NO_ANSWER:
                answered.outcome, answered.verdict = outcome, verdict
                answered.lines += group_lines(own)
            else:
                answered.lines.append(f"On {dataset}: {verdict[0].lower() + verdict[1:]}.")
            answered.pairs += rows

    return answer


def difference_at(evidence: Evidence, place: tuple[str, str, str, str], by: str) -> Difference | None:
    """Of a pair's (label, first, second, data set)."""
    _, first, second, dataset = place
    return pair_difference(evidence.comparisons, evidence.model, dataset, first, second, by)


def judged_words(found: Sequence[Difference], names: tuple[str, str], yes: bool) -> str:
    """The verdict on several pairs."""
    outcomes = [one.outcome for one in found]
    return words_of(judge(outcomes), names, (outcomes.count("better"), outcomes.count("worse"), len(found)), yes)


def otherwise(found: Sequence[Difference], others: Sequence[Difference], names: tuple[str, str]) -> str:
    """What the other measure says of the same pairs, where that is another verdict; else nothing."""
    told = [one for one in others if one.outcome != "unknown"]
    if len(told) < len(others) or judge([one.outcome for one in found]) == judge([one.outcome for one in told]):
        return ""
    words = judged_words(told, names, False)
    return f"; by {MEASURES[told[0].by].words}: {words[0].lower() if words.startswith('No ') else words[0]}{words[1:]}"


def smallest(rows: Sequence[dict[str, Any]]) -> str:
    """What difference could have been seen in every pair, by the verdict's measure."""
    keys = [f"detectable{MEASURES[row.get('by', 'nll')].suffix}" for row in rows]
    seen = [row[key] for row, key in zip(rows, keys, strict=True) if row[key] is not None]
    return f"; {signed(max(seen), 4).lstrip('+')} nats per token could have been seen" if seen else ""


def group_lines(own: Sequence[tuple[dict[str, Any], Difference, Difference]]) -> list[str]:
    """A line for each pair, with its group, and the other measure's word where it is another."""
    return [
        f"{row['group'][0].upper() + row['group'][1:]}: {difference_words(row['first'], row['second'], one)}"
        f"{otherwise_words(one, another)}."
        for row, one, another in own
    ]


def cost(evidence: Evidence, answered: Answered) -> None:
    """Nearest rounding alone at 4 bits against the original."""
    plain = {"salience": "none", "rounding": "nearest", "clip": False, "keep": "none", "bits": 4, "noise_injection": 0}
    methods = [
        name
        for name, recipe in evidence.recipes.items()
        if all(recipe.get(key) == value for key, value in plain.items())
    ]
    table = evidence.summary[evidence.summary.dataset.isin(evidence.datasets) & evidence.summary.method.isin(methods)]
    found = dict(zip(table.index, family(list(map(difference_of, table.itertuples()))), strict=True))
    for dataset in evidence.datasets:
        rows = table[table.dataset == dataset].sort_values("delta_nll", ascending=False)
        for row in rows.itertuples():
            one = found[row.Index]
            answered.pairs.append(pair_row("against the original", row.method, ORIGINAL, dataset, one))
            answered.lines.append(
                f"On {dataset}, {row.method}: perplexity {number(row.ppl, 2)}, {percent(increase(row))} "
                f"({quality(increase(row))}); {difference_words(row.method, 'the original', one)}{kl_words(row)}."
            )
        if len(rows) and answered.outcome == NO_ANSWER:
            answered.outcome = judge([found[i].outcome for i in rows.index])
            least, most = rows.delta_nll.idxmin(), rows.delta_nll.idxmax()
            ends = [
                f"{percent(increase(rows.loc[i])).lstrip('+')} ({rows.method[i]})" for i in dict.fromkeys((least, most))
            ]
            shown = any(found[i].outcome == "worse" for i in rows.index)
            start = "The perplexity rises by" if shown else "No rise of the perplexity is shown:"
            answered.verdict = f"{start} {' to '.join(ends)}"


def risk(evidence: Evidence, answered: Answered) -> None:
    """Risky rows only, against equally many others of the same linears."""
    table = evidence.sensitivity
    if not evidence.channels:
        return
    total = {key: sum(row[key] for row in evidence.channels.values()) for key in ("rows", "dead", "risky")}
    exist = f"{total['dead']:,} of {total['rows']:,} output channels are dead and {total['risky']:,} of them risky"
    answered.values = [{"kind of linear": kind, **counts} for kind, counts in evidence.channels.items()]
    rows = table[(table.by == "risk") & (table.against == OTHER)]
    if not total["risky"] or rows.empty:
        answered.outcome, answered.verdict = "described", f"There are none to quantise: {exist}"
        return
    for row in rows.itertuples():
        found = difference_of(row)
        answered.pairs.append(pair_row(row.method, RISKY, OTHER, row.dataset, found))
        alone = table[(table.by == "risk") & (table.part == RISKY) & (table.method == row.method)]
        against = [difference_of(x) for x in alone[alone.against == "original"].itertuples()]
        damage = f"quantised alone they move the NLL by {against[0].text(5)}; " if against else ""
        answered.lines.append(
            f"{row.method}: {damage}minus equally many other rows of the same linears, {found.text(5)}"
            f"{', ' + p_words(found.p) if found.p is not None else ''}."
        )
    answered.outcome = judge([row["outcome"] for row in answered.pairs])
    damage = {
        "second": "quantising the risky rows alone does more damage than equally many others: the risk predicts it",
        "first": "quantising them alone does less damage than equally many others: the risk predicts the contrary",
        "mixed": "with one method they do more damage than equally many others, with another less",
        NO_DIFFERENCE: "no difference shown between the damage of quantising them and equally many others"
        + smallest(answered.pairs),
    }[answered.outcome]
    answered.verdict = f"They exist ({exist}); {damage}"


def directions(evidence: Evidence, answered: Answered) -> None:
    """Shares of weights rounded up and down, and flips, over all linears of each method."""
    if evidence.rounding.empty:
        return
    shares = [name for name in ("rounded_up", "rounded_down", "unchanged", "flipped") if name in evidence.rounding]
    means = evidence.rounding.groupby("method", sort=False)[[*shares, "distance_median"]].mean()
    balance = evidence.rounding.assign(balance=evidence.rounding.rounded_up - evidence.rounding.rounded_down)
    spread = balance.groupby("method", sort=False).balance
    answered.values = [
        {
            "method": row.Index,
            **{name.replace("_", " "): f"{100 * getattr(row, name):.2f} %" for name in shares},
            "up − down, by linear": f"{signed(100 * spread.min()[row.Index], 2)} to "
            f"{signed(100 * spread.max()[row.Index], 2)} %",
            "median distance, steps": f"{row.distance_median:.3f}",
        }
        for row in means.itertuples()
    ]
    widest = (means.rounded_up - means.rounded_down).abs().idxmax()
    gap = 100 * (means.rounded_up - means.rounded_down)[widest]
    flipped = means.flipped[means.flipped > 0] if "flipped" in means else means.rounded_up[:0]
    answered.outcome = "described"
    answered.verdict = (
        f"Up and down are even: the widest gap over a whole model is {signed(gap, 2)} percentage points ({widest})"
        if abs(gap) < 1
        else f"{widest} rounds {'up' if gap > 0 else 'down'} more often, by {abs(gap):.2f} percentage points"
    )
    answered.lines += [
        f"{method}: {100 * share:.2f} % of its weights do not go to their nearest point."
        for method, share in flipped.items()
    ]


def of_library(find: Finder, names: tuple[str, str]) -> Callable[[Evidence, Answered], None]:
    """Answers by every pair of a library and a recipe; size and time as they were measured."""

    def answer(evidence: Evidence, answered: Answered) -> None:
        of_pairs({"same bits, groups and calibration": find}, names, yes=True)(evidence, answered)
        if answered.pairs:
            answered.values = measured(evidence, answered)

    return answer


def measured(evidence: Evidence, answered: Answered) -> list[dict[str, Any]]:
    """Perplexity, size and time of each method of the pairs on the first data set."""
    methods = dict.fromkeys(name for row in answered.pairs for name in (row["first"], row["second"]))
    rows = evidence.summary[
        (evidence.summary.dataset == evidence.datasets[0]) & evidence.summary.method.isin(list(methods))
    ]
    return [
        {
            "method": row.method,
            "perplexity": number(row.ppl, 2),
            "size, MB": number(row.size_mb, 1),
            "bits/weight": number(row.bits_per_weight, 2),
            "quantise": duration(row.quantize_s),
            "storage": row.storage,
        }
        for row in rows.itertuples()
    ]
