"""comparisons.csv: every two methods by the NLL and by the divergence from the original, each measure a family."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.measures import MEASURES
from quant.comparison.paired import (
    RESAMPLES_PER_COMPARISON,
    Estimate,
    check_same,
    corrected,
    paired_differences,
)

PLACE = ["model", "dataset", "method_a", "method_b"]


def columns(by: str) -> list[str]:
    """Of a pair by that measure, before it is corrected for others."""
    _, _, _, difference, suffix, sequences = MEASURES[by]
    return [difference, f"{difference}_low", f"{difference}_high", sequences, f"p{suffix}", f"error{suffix}"]


def comparison_table(groups: Sequence[Mapping[str, Mapping[str, Any]]], resamples: int, seed: int) -> pd.DataFrame:
    """A row per unordered pair of methods in each group, the evaluations on one model and data set by method.

    p_holm and p_holm_kl are corrected for all rows; where they are many, more than `resamples` are drawn.
    """
    total = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    resamples = max(resamples, RESAMPLES_PER_COMPARISON * total)
    rows = [row for group in groups for row in _group_rows(group, resamples, seed)]
    table = pd.DataFrame(rows, columns=PLACE + [name for by in MEASURES for name in columns(by)])
    for by in MEASURES:
        table = corrected(table, by)
    return table


def _group_rows(evaluations: Mapping[str, Mapping[str, Any]], resamples: int, seed: int) -> list[dict[str, Any]]:
    frames = {method: pd.DataFrame(evaluation["sequences"]) for method, evaluation in evaluations.items()}
    pairs = list(combinations(frames, 2))
    if not pairs:
        return []
    for a, b in pairs:
        check_same(frames[a], frames[b])
    first = frames[pairs[0][0]]
    found = {
        "nll": _differences(frames, pairs, "nll", first["tokens"], resamples, seed),
        "kl": _differences(frames, pairs, "kl", first["kl_tokens"], resamples, seed),
    }
    rows = []
    for i, (a, b) in enumerate(pairs):
        row = dict(zip(PLACE, (evaluations[a]["model"], evaluations[a]["dataset"], a, b), strict=True))
        for by, (sequences, differences) in found.items():
            mean, low, high, p, error = differences[i]
            row |= dict(zip(columns(by), (mean, low, high, sequences, p, error), strict=True))
        rows.append(row)
    return rows


def _differences(
    frames: dict[str, pd.DataFrame],
    pairs: Sequence[tuple[str, str]],
    column: str,
    weights: pd.Series,
    resamples: int,
    seed: int,
) -> tuple[int, list[Estimate]]:
    """How many sequences count, and of each pair the difference of a column's sums a token over them."""
    some = weights.to_numpy() > 0
    sums = {method: frame[column].to_numpy(float)[some] for method, frame in frames.items()}
    stacked = np.stack([sums[a] - sums[b] for a, b in pairs])
    return int(some.sum()), paired_differences(stacked, weights.to_numpy(float)[some], resamples, seed)
