"""What tasks say beside perplexity: whether they order methods alike, and which method keeps the original's answers."""

import math
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from quant.comparison.answers import NO_DIFFERENCE, Answered, Evidence, finite
from quant.comparison.correlation import rank_correlation
from quant.comparison.numbers import LEVEL, number, signed
from quant.comparison.paired import holm
from quant.comparison.tasks import damage, found, kept
from quant.comparison.verdicts import ORIGINAL, p_words, pair_difference

MOST = 5  # pairs that a line names
ORDERED_BY = {"delta_nll": "perplexity", "kl": "KL"}


def lost_points(rows: pd.DataFrame) -> pd.Series:
    """Of each method the answers that it has right fewer than the original, percentage points, the tasks' mean."""
    quantised = rows[rows.method != ORIGINAL]
    return -100 * quantised.groupby("method", sort=False).delta.mean()


def tasks_order(evidence: Evidence, answered: Answered) -> None:
    """Rank correlations over the methods that answer, of their damage on tasks with that by NLL and by KL on the first
    data set; the p of the likelihoods' two are one family."""
    rows = evidence.tasks
    if rows is None or rows.empty:
        return
    first = evidence.datasets[0]
    summary = evidence.summary[evidence.summary.dataset == first].set_index("method")
    both = summary[list(ORDERED_BY)].join(
        pd.DataFrame({"damage": damage(rows), "points": lost_points(rows)}), how="inner"
    )
    answered.values = [
        {
            "method": str(row.Index),
            "right answers lost, points": finite(row.points),
            "damage to the right answers (1: the worst)": finite(row.damage),
            "delta_nll": finite(row.delta_nll),
            "KL": finite(row.kl),
        }
        for row in both.sort_values("damage", kind="stable").itertuples()
    ]
    by = {
        column: {key: rank_correlation(both[column].to_numpy(float), both[key].to_numpy(float)) for key in ORDERED_BY}
        for column in ("damage", "points")
    }
    usable = {key: one for key, one in by["damage"].items() if math.isfinite(one.rho)}
    if not usable:
        answered.outcome = "described"
        answered.verdict = f"Not told: {len(both)} methods answer, and an order takes three that differ"
        return
    p = dict(zip(usable, holm([one.p for one in usable.values()]), strict=True))
    shown = [key for key in usable if p[key] <= LEVEL and usable[key].rho > 0]
    answered.outcome = "first" if len(shown) == len(usable) else "mixed" if shown else NO_DIFFERENCE
    start = {"first": "Yes", "mixed": "In part", NO_DIFFERENCE: "Not shown"}[answered.outcome]
    words = [f"as {ORDERED_BY[key]} does with a rank correlation of {one.text()}" for key, one in usable.items()]
    answered.verdict = f"{start}: by the likelihood of the right answers, {', '.join(words)}"
    answered.lines += [
        f"By that likelihood, on {first}: p {p_words(p[key]).removeprefix('p ')} of no correlation with "
        f"{ORDERED_BY[key]}, corrected for {len(usable)}."
        for key in usable
    ]
    answered.lines += [
        f"By right answers alone, which are coarser: {one.text()} with {ORDERED_BY[key]}."
        for key, one in by["points"].items()
        if math.isfinite(one.rho)
    ]
    answered.lines += turned_line(evidence)


def turned_line(evidence: Evidence) -> list[str]:
    """Of the pairs that a task, by likelihoods, and the first data set both tell apart: in how many the same method is
    better, and those where it is not."""
    pairs, first = evidence.task_pairs, evidence.datasets[0]
    both, turned = 0, []
    for row in () if pairs is None else pairs[pairs.p_nll_holm <= LEVEL].itertuples():
        a, b = str(row.method_a), str(row.method_b)
        on_text = pair_difference(evidence.comparisons, evidence.model, first, a, b)
        if on_text is None or on_text.outcome not in ("better", "worse"):
            continue
        both += 1
        if (row.delta_nll < 0) != (on_text.outcome == "better"):
            turned.append(f"{a} over {b} on {row.task}" if row.delta_nll < 0 else f"{b} over {a} on {row.task}")
    if pairs is None or not both:
        return []
    more = f" and {len(turned) - MOST} more" if len(turned) > MOST else ""
    words = f"; only by the task {', '.join(turned[:MOST])}{more}" if turned else ""
    return [
        f"A task's likelihoods and {first} both tell {both} of {len(pairs)} pairs apart; the same method is better in "
        f"{both - len(turned)}{words}."
    ]


def kept_pairs(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """Of every two methods, over all tasks: items whose answer only the first, and only the second, has as the original
    has it; the exact p of no difference (McNemar's, summed over tasks), corrected for all pairs."""
    sums = pairs.groupby(["method_a", "method_b"], sort=False)[["kept_gained", "kept_lost"]].sum()
    rows: list[dict[str, Any]] = [
        {"a": str(a), "b": str(b), "gained": int(row.kept_gained), "lost": int(row.kept_lost)}
        for (a, b), row in sums.iterrows()
    ]
    p = [
        float(binomtest(row["gained"], row["gained"] + row["lost"]).pvalue) if row["gained"] + row["lost"] else 1.0
        for row in rows
    ]
    return [row | {"p": float(each)} for row, each in zip(rows, holm(p), strict=True)]


def answers_kept(evidence: Evidence, answered: Answered) -> None:
    """The method whose answers come out as the original's most often (the same choice; of words, right or wrong on the
    same item), and which of the others' do less often."""
    rows, pairs = evidence.tasks, evidence.task_pairs
    if rows is None or pairs is None or not (shares := kept(rows)):
        return
    (best, most), *rest = shares
    items = int(rows[rows.method == best]["items"].sum())
    tested = {frozenset((row["a"], row["b"])): row["p"] for row in (kept_pairs(pairs) if len(pairs) else [])}
    p = {name: tested.get(frozenset((best, name)), math.nan) for name, _ in rest}
    fewer = [name for name, _ in rest if p[name] <= LEVEL]
    level = [name for name, _ in rest if not p[name] <= LEVEL]
    answered.outcome = "described" if not rest else "first" if not level else "mixed" if fewer else NO_DIFFERENCE
    share = f"{best}'s answers come out as the original's on {100 * most:.1f} % of {items} items"
    sure = f"; {', '.join(fewer)} on fewer" if fewer else ""
    unsure = f"; no difference shown from {', '.join(level)}" if level else ""
    answered.verdict = share + sure + unsure
    told = {
        str(method): {found(row).outcome for row in one.itertuples()}
        for method, one in rows[rows.method != ORIGINAL].groupby("method", sort=False)
    }
    for name, each in shares:
        one = rows[rows.method == name]
        right = float((one.delta * one["items"]).sum() / one["items"].sum())
        outcome = "worse" if "worse" in told[name] else "better" if "better" in told[name] else "no difference shown"
        answered.values.append(
            {
                "method": name,
                "answers kept": f"{100 * each:.1f} %",
                "right ones lost": number(float(one.lost.sum()), 0),
                "right ones gained": number(float(one.gained.sum()), 0),
                "score, points": f"{signed(100 * right, 1)}",
                "p against the best": "–" if name == best else p_words(p[name]).removeprefix("p ") or "–",
                "against the original": outcome,
            }
        )
