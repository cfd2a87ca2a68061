"""Paired comparison of methods: differences in NLL per token with bootstrap intervals over sequences."""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

CONFIDENCE = 0.95
PARTS = ("linears", "embeddings", "head", "other")  # of a checkpoint's bytes: quant.sizes


class Difference(NamedTuple):
    """mean per token, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> Difference:
    """Σ(a-b)/Σw over n sequences that both saw, with a BCa interval (Efron 1987) from resampled sequences.

    a, b [n]: sums over a sequence; weights [n]: what they are summed over (tokens). One sequence, or no difference in
    any, gives an interval that says so: infinite, or 0 to 0.
    """
    difference = a - b
    mean = difference.sum() / weights.sum()
    if len(difference) < 2:
        return Difference(mean, -np.inf, np.inf)
    if np.ptp(difference / weights) == 0:
        return Difference(mean, mean, mean)

    def ratio(d: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        return d.sum(axis) / w.sum(axis)

    interval = bootstrap(
        (difference, weights),
        ratio,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(float(mean), float(interval.low), float(interval.high))


def compare_pair(a: pd.DataFrame, b: pd.DataFrame, resamples: int, seed: int) -> Difference:
    """Of two evaluations' rows (sequence, tokens, nll), which must be of the same sequences."""
    if not a[["sequence", "tokens"]].equals(b[["sequence", "tokens"]]):
        raise ValueError("the two evaluations are of different sequences")
    return paired_difference(
        a["nll"].to_numpy(float), b["nll"].to_numpy(float), a["tokens"].to_numpy(float), resamples, seed
    )


def summary_row(evaluation: dict[str, Any], original: dict[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    """A row of summary.csv from a method's evaluation and the original's."""
    rows, reference = pd.DataFrame(evaluation["sequences"]), pd.DataFrame(original["sequences"])
    difference = compare_pair(rows, reference, resamples, seed)
    nll = rows["nll"].sum() / rows["tokens"].sum()
    return {
        "model": evaluation["model"],
        "method": evaluation["method"],
        "dataset": evaluation["dataset"],
        **{key: evaluation[key] for key in ("bits_per_weight", "size_mb")},
        "ppl": float(np.exp(nll)),
        "nll": nll,
        "delta_nll": difference.mean,
        "delta_nll_low": difference.low,
        "delta_nll_high": difference.high,
        **{key: evaluation[key] for key in ("kl", "top1_agreement", "tokens_per_s", "quantize_s", "storage")},
        "storage_reason": evaluation["storage_reason"],
        **{f"{part}_mb": evaluation[f"{part}_mb"] for part in PARTS},
        "compression": original["size_mb"] / evaluation["size_mb"],
        "linears_compression": original["linears_mb"] / evaluation["linears_mb"],
        "tokens": int(rows["tokens"].sum()),
        "sequences": len(rows),
        **{key: evaluation[key] for key in ("protocol", "seq_len", "kl_tokens")},
    }


def comparison_rows(evaluations: dict[str, dict[str, Any]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """A row per unordered pair of methods on one model and data set."""
    frames = {method: pd.DataFrame(evaluation["sequences"]) for method, evaluation in evaluations.items()}
    rows = []
    for a, b in combinations(frames, 2):
        difference = compare_pair(frames[a], frames[b], resamples, seed)
        rows.append(
            {
                "model": evaluations[a]["model"],
                "dataset": evaluations[a]["dataset"],
                "method_a": a,
                "method_b": b,
                "delta_nll": difference.mean,
                "delta_nll_low": difference.low,
                "delta_nll_high": difference.high,
                "sequences": len(frames[a]),
            }
        )
    return rows
