"""What tasks show: scores, paired differences item by item, and how much could have been seen.

Of two methods' answers to the same items those alone say something that one has right and the other wrong: McNemar's
exact test. How likely the right answer is moves long before the answer does, so it is compared too, as NLL is:
Student's t and the bootstrap over items (quant.comparison.paired).
"""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from quant.comparison.numbers import CONFIDENCE, LEVEL
from quant.comparison.paired import RESAMPLES_PER_COMPARISON, detectable, holm, paired_differences
from quant.comparison.verdicts import ORIGINAL

ONE_PERCENT = 0.01  # of the items


class Answers(NamedTuple):
    """Difference of two scores on n items: first minus second, its 95 % interval, McNemar's p, its standard error if
    there were no difference, and how many items only the first, and only the second, has right."""

    delta: float
    low: float
    high: float
    p: float
    error: float
    gained: int
    lost: int


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % interval of a share right/n (Wilson 1927), beginning at 0 where none is right, ending at 1 where all are.

    Its ends are the roots of (1 + z²/n)x² - (2·share + z²/n)x + share²; each is taken from the product of the two (of
    the wrong ones' share for the upper), since their difference does not come out as 0.
    """
    z, share, wrong = float(norm.ppf(0.5 + CONFIDENCE / 2)), right / n, (n - right) / n
    wide = z**2 / (2 * n) + z * math.sqrt(share * wrong / n + z**2 / (4 * n**2))
    return share**2 / (share + wide), 1 - wrong**2 / (wrong + wide)


def newcombe(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """95 % interval of (b - c)/n, the difference of two paired shares; a: items that both have right, b and c: only the
    first, only the second, d: neither. Newcombe (1998), method 10: Wilson's intervals joined by the answers'
    correlation. It has a width where no answer differs."""
    n = a + b + c + d
    p, q = (a + b) / n, (a + c) / n
    (low_p, high_p), (low_q, high_q) = wilson(a + b, n), wilson(a + c, n)
    spread = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    cross = a * d - b * c
    phi = 0.0 if spread == 0 else (max(cross - n / 2, 0) if cross > 0 else cross) / spread
    below, above = p - low_p, high_q - q
    over, under = high_p - p, q - low_q
    low = math.sqrt(max(below**2 - 2 * phi * below * above + above**2, 0))
    high = math.sqrt(max(over**2 - 2 * phi * over * under + under**2, 0))
    return (p - q) - low, (p - q) + high


def compare_answers(first: np.ndarray, second: np.ndarray) -> Answers:
    """first, second [n]: whether each item's answer is right."""
    a, b = int((first & second).sum()), int((first & ~second).sum())
    c, d = int((~first & second).sum()), int((~first & ~second).sum())
    n = len(first)
    p = float(binomtest(b, b + c).pvalue) if b + c else 1.0
    # one item that differs is the least that could have been seen to differ at all
    return Answers((b - c) / n, *newcombe(a, b, c, d), p, math.sqrt(max(b + c, 1)) / n, b, c)


def items_to_show(error: float, items: int, size: float, comparisons: int) -> float:
    """Items after which a difference of that size would be shown half of the time, answers differing as often."""
    z = float(norm.ppf(1 - LEVEL / (2 * max(comparisons, 1))))
    return math.ceil(items * (z * error / size) ** 2)


def check_same(answers: Sequence[dict[str, Any]]) -> None:
    """Refuses answers to different items, which are never paired."""
    prints = {one["provenance"]["task_fingerprint"] for one in answers}
    if len(prints) > 1:
        raise ValueError("the answers are to different items")


def right(answers: dict[str, Any]) -> np.ndarray:
    return np.array([row["right"] for row in answers["items"]], dtype=bool)


def log_p(answers: dict[str, Any]) -> np.ndarray:
    """Of the right answer of each item, nats."""
    return np.array([row["right_log_p"] for row in answers["items"]], dtype=float)


def given(answers: dict[str, Any]) -> np.ndarray:
    """The answer to each item, right or wrong."""
    return np.array([row["answer"] for row in answers["items"]])


def kept_counts(first: np.ndarray, second: np.ndarray, original: np.ndarray) -> dict[str, int]:
    """Items to which only the first, and only the second, gives the original's answer; answers [n] each."""
    a, b = first == original, second == original
    return {"kept_gained": int((a & ~b).sum()), "kept_lost": int((~a & b).sum())}


def differences(
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Columns of each pair's first against its second, of one task: scores, and nats per item of the right answer's
    NLL (below 0: the first gives it more)."""
    if not pairs:
        return []
    rows = np.stack([log_p(b) - log_p(a) for a, b in pairs])
    likelihoods = paired_differences(rows, np.ones(rows.shape[1]), resamples, seed)
    found = []
    for (a, b), nll in zip(pairs, likelihoods, strict=True):
        score = compare_answers(right(a), right(b))
        found.append(
            {f"delta_{key}": value for key, value in score._asdict().items() if key in ("low", "high")}
            | {"delta": score.delta, "p": score.p, "error": score.error, "gained": score.gained, "lost": score.lost}
            | {"changed": float(np.mean(given(a) != given(b)))}
            | {"delta_nll": nll.mean, "delta_nll_low": nll.low, "delta_nll_high": nll.high}
            | {"p_nll": nll.p, "error_nll": nll.error}
        )
    return found


def corrected(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """Tables that are one family, both p of all their rows: with p_holm, p_nll_holm, what could have been seen in each
    measure, and the items that would show a difference of 1 %."""
    every = [frame[name].to_numpy(float) for frame in frames for name in ("p", "p_nll")]
    size, ends = int(np.isfinite(np.concatenate(every)).sum()), np.cumsum([len(one) for one in every])
    found = np.split(holm(np.concatenate(every).tolist()), ends[:-1])
    return [
        with_corrected(frame, score, nll, size)
        for frame, score, nll in zip(frames, found[::2], found[1::2], strict=True)
    ]


def with_corrected(frame: pd.DataFrame, score: np.ndarray, nll: np.ndarray, size: int) -> pd.DataFrame:
    """A table with both its corrected p, of a family of that size, and what follows from its size."""
    items = frame["items"]
    return frame.assign(
        p_holm=score,
        p_nll_holm=nll,
        detectable=[detectable(e, n, size) for e, n in zip(frame["error"], items, strict=True)],
        detectable_nll=[detectable(e, n, size) for e, n in zip(frame["error_nll"], items, strict=True)],
        items_for_1_percent=[
            items_to_show(e, n, ONE_PERCENT, size) if np.isfinite(e) else np.nan
            for e, n in zip(frame["error"], items, strict=True)
        ],
    )


Groups = dict[tuple[str, str], dict[str, dict[str, Any]]]  # by model and task, then by method, the original first


def task_tables(groups: Groups, resamples: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """tasks.csv and task_pairs.csv, whose p are one family."""
    size = sum(len(group) * (len(group) - 1) // 2 for group in groups.values())
    resamples = max(resamples, 2 * RESAMPLES_PER_COMPARISON * size)
    tasks, pairs = corrected(task_rows(groups, resamples, seed), pair_rows(groups, resamples, seed))
    return tasks, pairs


def task_rows(groups: Groups, resamples: int, seed: int) -> pd.DataFrame:
    """A row per model, task and method, each but the original compared with the original."""
    rows = []
    for (model, task), group in groups.items():
        check_same(list(group.values()))
        original = group[ORIGINAL]
        methods = [method for method in group if method != ORIGINAL]
        against = dict(zip(methods, differences([(group[m], original) for m in methods], resamples, seed), strict=True))
        nothing = {"delta": 0.0, "delta_low": 0.0, "delta_high": 0.0, "p": np.nan, "error": np.nan}
        nothing |= {"gained": 0, "lost": 0, "changed": 0.0, "delta_nll": 0.0, "delta_nll_low": 0.0}
        nothing |= {"delta_nll_high": 0.0, "p_nll": np.nan, "error_nll": np.nan}
        for method, answers in group.items():
            made, hits = answers["provenance"], right(answers)
            low, high = wilson(float(hits.sum()), len(hits))
            rows.append(
                {"model": model, "method": method, "task": task, "scored_by": answers["score"]}
                | {"items": len(hits), "chance": answers["chance"]}
                | {"score": float(hits.mean()), "score_low": low, "score_high": high}
                | {"nll": float(-log_p(answers).mean())}
                | against.get(method, nothing)
                | {"seconds": answers["seconds"], "recipe": json.dumps(made.get("recipe")), "seed": made.get("seed")}
                | {"versions": json.dumps(made["versions"]), "task_fingerprint": made["task_fingerprint"]}
                | {"rule": answers["rule"]}
            )
    return pd.DataFrame(rows)


def pair_rows(groups: Groups, resamples: int, seed: int) -> pd.DataFrame:
    """A row per model, task and pair of methods; kept_gained, kept_lost: items to which only the first,
    and only the second, gives the original's answer."""
    pairs = {key: list(combinations([m for m in group if m != ORIGINAL], 2)) for key, group in groups.items()}
    rows: list[dict[str, Any]] = []
    for (model, task), group in groups.items():
        names = pairs[model, task]
        found = differences([(group[a], group[b]) for a, b in names], resamples, seed)
        items = len(group[ORIGINAL]["items"])
        rows += [
            {"model": model, "task": task, "method_a": a, "method_b": b, "items": items}
            | columns
            | kept_counts(*(given(group[name]) for name in (a, b, ORIGINAL)))
            for (a, b), columns in zip(names, found, strict=True)
        ]
    empty = ["model", "task", "method_a", "method_b", "items", "p", "p_nll", "error", "error_nll", "kept_gained"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*empty, "kept_lost"])


def above_chance(rows: pd.DataFrame) -> bool:
    """Whether the original answers better than by guessing: its interval begins above chance."""
    original = rows[rows.method == ORIGINAL]
    return bool((original.score_low > original.chance).all())


class Found(NamedTuple):
    """What one row shows: better, worse (by the corrected p of the score, else of the likelihood) or none; and by which
    of the two."""

    outcome: str
    by: str


def found(row: Any) -> Found:
    """Of a row of tasks.csv or task_pairs.csv, the first of the pair."""
    if row.p_holm <= LEVEL:
        return Found("better" if row.delta > 0 else "worse", "answers")
    if row.p_nll_holm <= LEVEL:
        return Found("better" if row.delta_nll < 0 else "worse", "likelihood")
    return Found("none", "")


def kept(frame: pd.DataFrame) -> list[tuple[str, float]]:
    """Methods with the share of answers, over all tasks, that are the original's; the most first."""
    rows = frame[frame.method != ORIGINAL]
    totals = {
        str(method): 1 - float((one.changed * one["items"]).sum() / one["items"].sum())
        for method, one in rows.groupby("method", sort=False)
    }
    return sorted(totals.items(), key=lambda one: (-one[1], one[0]))


def damage(frame: pd.DataFrame) -> pd.Series:
    """Of each method the rise of the right answers' NLL, nats per item, each task in units of its largest, the mean."""
    rows = frame[frame.method != ORIGINAL]
    scaled = rows.delta_nll / rows.groupby("task").delta_nll.transform(lambda x: x.abs().max() or 1.0)
    return scaled.groupby(rows.method, sort=False).mean()
