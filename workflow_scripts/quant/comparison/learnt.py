"""learnt.csv: has a method learnt the calibration's kind of text? What it gains in NLL beyond what it gains in KL.

Of two recipes alike but that the first is fitted further to the calibration text (a; b is the other), a text's
sequences give the rise of the NLL over the original's, D, and the divergence from the original, K. What brings a
nearer to the original takes the same share off both: D_a/D_b = K_a/K_b. Where D has fallen further, a says what the
text says, not what the original says: learnt = ((K_a/K_b)·D_b - D_a)/tokens, nats per token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from quant.comparison.numbers import LEVEL
from quant.comparison.paired import RESAMPLES_PER_COMPARISON, Estimate, check_same, paired_differences
from quant.comparison.pairs import Recipes, fitted_further

NUMBERS = [
    *("sequences", "delta_nll", "delta_nll_before", "kl", "kl_before", "learnt", "learnt_low", "learnt_high"),
    *("p", "error", "ratio", "ratio_error"),
]
COLUMNS = ["model", "dataset", "group", "method", "before", *NUMBERS]


def learnt_terms(d_a: np.ndarray, d_b: np.ndarray, k_a: np.ndarray, k_b: np.ndarray) -> np.ndarray:
    """Each sequence's part [n] of (K_a/K_b)·D_b - D_a, whose sum it is; linear in the sequence (delta method), so that
    their spread is that of the estimate. D and K are the sums of d and k [n]."""
    share = k_a.sum() / k_b.sum()
    return share * d_b - d_a + d_b.sum() / k_b.sum() * (k_a - share * k_b)


def ratio_error(d_a: np.ndarray, d_b: np.ndarray) -> float:
    """Standard error of D_a/D_b over the n sequences (delta method)."""
    n, ratio = len(d_a), d_a.sum() / d_b.sum()
    return float(math.sqrt(n / (n - 1) * ((d_a - ratio * d_b) ** 2).sum()) / abs(d_b.sum())) if n > 1 else math.inf


def learnt_table(
    groups: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]],
    originals: Mapping[tuple[str, str], Mapping[str, Any]],
    recipes: Recipes,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """A row per pair of methods (pairs.fitted_further) of each model and data set, the evaluations by method.

    Over the sequences whose every prediction was compared. No number but delta_nll and kl where a share means nothing:
    where the recipe that is fitted less does no harm.
    """
    pairs = fitted_further(recipes)
    resamples = max(resamples, RESAMPLES_PER_COMPARISON * len(pairs) * len(groups))
    rows = []
    for (model, dataset), evaluations in groups.items():
        for group, method, before in pairs:
            if {method, before} <= evaluations.keys():
                three = [originals[model, dataset], evaluations[method], evaluations[before]]
                numbers = _numbers([pd.DataFrame(one["sequences"]) for one in three], resamples, seed)
                rows.append([model, dataset, group, method, before, *numbers])
    return pd.DataFrame(rows, columns=COLUMNS)


def _numbers(frames: Sequence[pd.DataFrame], resamples: int, seed: int) -> list[float]:
    """Under NUMBERS, of the original's, the method's and the other's rows."""
    for frame in frames[1:]:
        check_same(frames[0], frame)
    whole = (frames[0]["kl_tokens"] == frames[0]["tokens"]).to_numpy()
    tokens, nll, *_ = (frames[0][name].to_numpy(float)[whole] for name in ("tokens", "nll"))
    d_a, d_b = (frame["nll"].to_numpy(float)[whole] - nll for frame in frames[1:])
    k_a, k_b = (frame["kl"].to_numpy(float)[whole] for frame in frames[1:])
    means = [float(values.sum() / tokens.sum()) if len(tokens) else math.nan for values in (d_a, d_b, k_a, k_b)]
    if not (all(map(math.isfinite, means)) and means[1] > 0 and means[3] > 0):
        return [len(tokens), *means, *[math.nan] * 7]
    found = paired_differences(learnt_terms(d_a, d_b, k_a, k_b)[None], tokens, resamples, seed)[0]
    return [len(tokens), *means, *found, float(d_a.sum() / d_b.sum()), ratio_error(d_a, d_b)]


def between_texts(own: Any, another: Any) -> Estimate:
    """The share of delta_nll that a method leaves on another text minus that on the calibration's kind, of two rows of
    the table: above 0 it gains more on its own. Two samples, so Student's t with the fewer degrees of freedom."""
    mean, error = another.ratio - own.ratio, math.hypot(own.ratio_error, another.ratio_error)
    n = min(own.sequences, another.sequences)
    if n < 2 or not (math.isfinite(mean) and 0 < error < math.inf):
        return Estimate(mean, -math.inf, math.inf, math.nan, math.inf)
    half = float(student.ppf(1 - LEVEL / 2, n - 1)) * error
    return Estimate(mean, mean - half, mean + half, float(2 * student.sf(abs(mean) / error, n - 1)), error)
