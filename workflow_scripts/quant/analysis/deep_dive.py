"""One layer in detail: AWQ's and PRAQ's importance of every channel, and how far the two agree.

Output channels have protection scores (which rows to keep in 16 bit): AWQ's E|z_k| and Fast-R-PRAQ v3's, row by row.
Input channels have saliences (which columns to scale up): AWQ's E|x_j| and PRAQ's. On attention linears PRAQ's salience
is AWQ's by definition.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from quant.analysis.preactivations import Files, channel_table
from quant.comparison.correlation import interval_of
from quant.recipe.saliences.l1 import l1
from quant.recipe.saliences.praq import praq
from quant.recipe.scores.awq import awq as awq_score
from quant.recipe.scores.praq import praq_score


def spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of a and b [n] and its 95 % interval; NaN where either is constant, no interval under
    four channels. Alike in every channel is ρ 1 for certain: PRAQ's salience of attention is AWQ's."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan, math.nan
    rho = min(max(float(spearmanr(a, b).statistic), -1.0), 1.0)
    if abs(rho) > 1 - 1e-12:
        return round(rho), round(rho), round(rho)
    if len(a) < 4:
        return rho, -1.0, 1.0
    return rho, *interval_of(rho, len(a))


def overlap(a: np.ndarray, b: np.ndarray, share: float) -> float:
    """Share of the round(share·n) highest of a that are among as many highest of b; the lower index on a tie.

    Independent scores would share `share` of them on average.
    """
    n = max(round(share * len(a)), 1)
    best_a, best_b = (set(np.argsort(-scores, kind="stable")[:n].tolist()) for scores in (a, b))
    return len(best_a & best_b) / n


def output_channels(
    files: Files,
    linear: str,
    patterns: dict[str, list[str]],
    thresholds: dict[str, float],
    parameters: dict[str, float],
) -> pd.DataFrame:
    """The channel table with each output channel's protection scores, AWQ's and PRAQ's; parameters: beta, tau,
    noise_factor."""
    w, known = files.weight(linear), files.means(linear, patterns)
    table = channel_table(files, linear, thresholds)
    scores = {"awq": awq_score(w, known), "praq": praq_score(w, known, **parameters)}
    return table.assign(**{f"score_{name}": score.numpy() for name, score in scores.items()})


def input_channels(files: Files, linear: str, patterns: dict[str, list[str]]) -> pd.DataFrame:
    """linear, channel, salience_awq E|x_j|, salience_praq of each input channel."""
    w, known = files.weight(linear), files.means(linear, patterns)
    saliences = {"salience_awq": l1(w, known).numpy(), "salience_praq": praq(w, known).numpy()}
    return pd.DataFrame({"linear": linear, "channel": range(w.shape[1])} | saliences)


def agreement(linear: str, side: str, awq: np.ndarray, praq: np.ndarray, shares: list[float]) -> dict[str, Any]:
    """A row: the rank correlation of the two importances, what their top channels share, and the rank that AWQ's first
    channel has by PRAQ (1: its first too)."""
    rho, low, high = spearman(awq, praq)
    row = {"linear": linear, "side": side, "channels": len(awq), "spearman": rho, "low": low, "high": high}
    tops = {f"overlap_{share:g}": overlap(awq, praq, share) for share in shares}
    return row | tops | {"praq_rank_of_first": 1 + int((praq > praq[awq.argmax()]).sum())}


def dive(
    files: Files,
    layer: int,
    patterns: dict[str, list[str]],
    thresholds: dict[str, float],
    parameters: dict[str, float],
    shares: list[float],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Of one layer: output channels, input channels, and a row per linear and side that says how the two agree."""
    outputs, inputs, rows = [], [], []
    for linear in files.linears(layer):
        out = output_channels(files, linear, patterns, thresholds, parameters)
        into = input_channels(files, linear, patterns)
        outputs.append(out)
        inputs.append(into)
        rows.append(agreement(linear, "output", out.score_awq.to_numpy(), out.score_praq.to_numpy(), shares))
        rows.append(agreement(linear, "input", into.salience_awq.to_numpy(), into.salience_praq.to_numpy(), shares))
    return pd.concat(outputs, ignore_index=True), pd.concat(inputs, ignore_index=True), pd.DataFrame(rows)
