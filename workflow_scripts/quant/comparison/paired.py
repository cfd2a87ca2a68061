"""Paired comparison of methods: differences in NLL per token, with intervals and p-values over sequences.

A difference is the ratio estimator Σd/Σw of n sequences' sums d over their tokens w. Its interval comes from the
studentised bootstrap (Efron and Tibshirani 1993, section 12.5): with skewed differences of 32 sequences it covers 94 to
95 %, where BCa covers 92 to 93 %. Its p is the larger of that bootstrap's and of Student's t test: each alone rejects
too often far out in the tail, where corrected verdicts are made, the one for symmetric and the other for skewed
differences (tests/unit/comparison/test_paired.py simulates both).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from quant.comparison.measures import MEASURES
from quant.comparison.numbers import LEVEL

FEW = 8  # with fewer sequences most resamples repeat another: Student's t instead of the bootstrap
RESAMPLES_PER_COMPARISON = (
    200  # p is at least 2/(resamples + 1); corrected, it must be able to fall to a fifth of LEVEL
)
DRAWN_BYTES = 2**27  # of resamples' counts at a time
PIVOT_BYTES = 2**28  # of differences' pivots at a time; for more the same resamples are drawn again


class Estimate(NamedTuple):
    """mean per token, the ends of its 95 % interval, the two-sided p of no difference, and the standard error."""

    mean: float
    low: float
    high: float
    p: float
    error: float


def paired_differences(differences: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> list[Estimate]:
    """Σd/Σw of each row of differences [m, n] over n sequences, weights [n] (tokens).

    One sequence, or no difference in any, gives an interval that says so: infinite, or 0 to 0.
    """
    m, n = differences.shape
    mean = differences.sum(1) / weights.sum()
    if n < 2:
        return [Estimate(float(x), -np.inf, np.inf, 1.0, np.inf) for x in mean]
    same = np.ptp(differences / weights, axis=1) == 0
    # what is left of each sequence's sum when the common rate is taken off; sums to 0
    rest = np.where(same[:, None], 0.0, differences - mean[:, None] * weights)
    error = np.sqrt(n / (n - 1) * (rest**2).sum(1)) / weights.sum()
    observed = np.divide(mean, error, out=np.zeros(m), where=~same)
    chances = 2 * student.sf(abs(observed), n - 1)
    pivots = pivots_of(rest[~same], weights, resamples, seed) if n >= FEW else iter(())
    found = []
    for i in range(m):
        if same[i]:
            found.append(Estimate(float(mean[i]), float(mean[i]), float(mean[i]), float(mean[i] == 0), 0.0))
            continue
        p = chances[i]
        if n < FEW:
            low, high = student.ppf([LEVEL / 2, 1 - LEVEL / 2], n - 1)
        else:
            own = next(pivots)
            low, high = np.quantile(own, [LEVEL / 2, 1 - LEVEL / 2])
            tail = min((own >= observed[i]).sum(), (own <= observed[i]).sum())
            p = max(p, min(1.0, 2 * (tail + 1) / (len(own) + 1)))
        ends = float(mean[i] - high * error[i]), float(mean[i] - low * error[i])
        found.append(Estimate(float(mean[i]), *ends, float(p), float(error[i])))
    return found


def draws(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n sequences is in each resample [some, n], as many at a time as DRAWN_BYTES hold."""
    generator, at_once = np.random.default_rng(seed), max(1, DRAWN_BYTES // (8 * n))
    for first in range(0, resamples, at_once):
        yield generator.multinomial(n, np.full(n, 1 / n), min(at_once, resamples - first)).astype(float)


def pivots_of(rest: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """`studentised` of each row of rest [m, n], all of the same resamples."""
    at_once = max(1, PIVOT_BYTES // (8 * resamples))
    for first in range(0, len(rest), at_once):
        some = rest[first : first + at_once]
        parts: list[list[np.ndarray]] = [[] for _ in some]
        for counts in draws(len(weights), resamples, seed):
            drawn = counts @ np.stack([weights, weights**2], axis=1)
            for row, own in zip(some, parts, strict=True):
                own.append(studentised(row, weights, counts, drawn))
        for own in parts:
            yield np.concatenate(own)


def studentised(rest: np.ndarray, weights: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(r* - r)/se* of each resample; rest [n] = d - r·w, weights [n], counts [resamples, n]: how often it drew each,
    drawn [resamples, 2]: its sums of weights and of their squares.

    A resample without any spread (one sequence drawn n times) has no standard error and is left out.
    """
    n = len(rest)
    sums = counts @ np.stack([rest, rest**2, rest * weights], axis=1)
    shift = sums[:, 0] / drawn[:, 0]
    squares = sums[:, 1] - 2 * shift * sums[:, 2] + shift**2 * drawn[:, 1]
    spread = squares > 1e-9 * (rest**2).sum()
    return sums[spread, 0] / np.sqrt(n / (n - 1) * squares[spread])


def paired_difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Σ(a-b)/Σw over n sequences that both saw; a, b [n]: sums over a sequence; weights [n]: its tokens."""
    return paired_differences((a - b)[None], weights, resamples, seed)[0]


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number (Holm 1979), in the order given; NaN is no comparison and stays."""
    values = np.asarray(p, dtype=float)
    corrected = np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]
    steps = np.arange(len(order), 0, -1) * values[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def detectable(error: float, sequences: int, comparisons: int) -> float:
    """The smallest difference that could have been seen: the half width that a 95 % interval corrected for that many
    comparisons (Bonferroni, Holm's first step) has here. A true difference of this size is shown half of the time."""
    if sequences < 2:
        return np.inf
    return float(error * student.ppf(1 - LEVEL / (2 * max(comparisons, 1)), sequences - 1))


def corrected(frame: pd.DataFrame, by: str = "nll") -> pd.DataFrame:
    """Rows that are one family by that measure, with its p_holm and detectable."""
    p, error, p_holm, smallest = (f"{name}{MEASURES[by].suffix}" for name in ("p", "error", "p_holm", "detectable"))
    size, counts = int(frame[p].notna().sum()), frame[MEASURES[by].sequences]
    seen = [detectable(one, n, size) for one, n in zip(frame[error], counts, strict=True)]
    return frame.assign(**{p_holm: holm(frame[p]), smallest: np.array(seen, dtype=float)})


def compare_pair(a: pd.DataFrame, b: pd.DataFrame, resamples: int, seed: int) -> Estimate:
    """Of two evaluations' rows (sequence, tokens, nll), which must be of the same sequences."""
    check_same(a, b)
    return paired_difference(
        a["nll"].to_numpy(float), b["nll"].to_numpy(float), a["tokens"].to_numpy(float), resamples, seed
    )


def check_same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    same = [name for name in ("sequence", "tokens", "kl_tokens") if name in a and name in b]
    if not a[same].equals(b[same]):
        raise ValueError("the two evaluations are of different sequences")
