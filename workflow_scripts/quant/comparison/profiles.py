"""Where a method's damage sits: its rise of the NLL by place in the sequence, and by how often the token stands in the
text; and whether it is larger on late places than on early ones, on rare tokens than on common ones.

Everything is paired over sequences. A difference of two rates Σa/Σv - Σb/Σw is taken by its sequences' shares of it,
linearised: n·((a - r·v)/Σv - (b - s·w)/Σw) + r - s, with r and s the two rates (the delta method; Cochran 1977, 6.9).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.numbers import LEVEL
from quant.comparison.paired import (
    RESAMPLES_PER_COMPARISON,
    detectable,
    holm,
    paired_difference,
    paired_differences,
)
from quant.comparison.verdicts import ORIGINAL

BY = ("position", "frequency")
RESAMPLES = 999  # of intervals that no verdict rests on
Groups = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]  # evaluations by model and data set, then method


def binned(evaluation: Mapping[str, Any], by: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and summed NLL [sequences, bins]."""
    found = evaluation["profile"][by]
    return np.array(found["tokens"], dtype=float), np.array(found["nll"], dtype=float)


def half(tokens: np.ndarray) -> int:
    """The bin at which the upper part begins: each part as near half of the predictions as bins allow, none empty;
    tokens [bins]."""
    below = np.cumsum(tokens)[:-1]
    inside = (below > 0) & (below < tokens.sum())
    if not inside.any():
        return 0
    return 1 + int(np.argmin(np.where(inside, np.abs(below - tokens.sum() / 2), np.inf)))


def shares(a: np.ndarray, v: np.ndarray, b: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Each sequence's share of Σa/Σv - Σb/Σw, whose mean that is; all [n]."""
    r, s = a.sum() / v.sum(), b.sum() / w.sum()
    return len(a) * ((a - r * v) / v.sum() - (b - s * w) / w.sum()) + r - s


def parts(by: str, tokens: np.ndarray) -> tuple[slice, slice, str] | None:
    """Bins where damage might gather, all others, and the first in words; None where all stand in one bin; tokens
    [bins]."""
    cut = half(tokens)
    if not cut:
        return None
    if by == "position":
        return slice(cut, None), slice(cut), f"after {2**cut} tokens or more"
    often = "once" if cut == 1 else f"at most {2**cut - 1} times"
    return slice(cut), slice(cut, None), f"tokens that stand in the text {often}"


def profile_rows(
    methods: Mapping[str, Mapping[str, Any]], original: Mapping[str, Any], by: str, seed: int
) -> list[dict[str, Any]]:
    """A row per method and bin that has predictions."""
    tokens, before = binned(original, by)
    rises = {method: binned(evaluation, by)[1] - before for method, evaluation in methods.items()}
    rows = []
    for i in np.flatnonzero(tokens.sum(0)):
        some = tokens[:, i] > 0
        weights, stacked = tokens[some, i], np.stack([rise[some, i] for rise in rises.values()])
        for method, one in zip(rises, paired_differences(stacked, weights, RESAMPLES, seed), strict=True):
            rows.append(
                {"method": method, "by": by, "first": 2**i, "last": 2 ** (i + 1) - 1, "tokens": int(weights.sum())}
                | {"nll": before[:, i].sum() / weights.sum() + one.mean, "delta_nll": one.mean}
                | {"delta_nll_low": one.low, "delta_nll_high": one.high}
            )
    return rows


def contrast_row(
    evaluation: Mapping[str, Any], original: Mapping[str, Any], by: str, resamples: int, seed: int
) -> dict[str, Any] | None:
    """A method's damage in one part of its predictions minus that in the rest, nats per token; damage_share is NaN
    where no damage is shown, since there is nothing to share where the whole rise's interval reaches 0."""
    tokens, before = binned(original, by)
    rise, cut = binned(evaluation, by)[1] - before, parts(by, tokens.sum(0))
    if cut is None:
        return None
    there, rest, words = cut
    (a, v), (b, w) = ((rise[:, part].sum(1), tokens[:, part].sum(1)) for part in (there, rest))
    one = paired_difference(shares(a, v, b, w), np.zeros(len(a)), np.ones(len(a)), resamples, seed)
    whole = paired_difference(rise.sum(1), np.zeros(len(a)), tokens.sum(1), RESAMPLES, seed)
    return {
        **{"method": evaluation["method"], "by": by, "part": words, "share": v.sum() / tokens.sum()},
        **{"delta_nll": a.sum() / v.sum(), "delta_nll_rest": b.sum() / w.sum()},
        "damage_share": a.sum() / rise.sum() if whole.low > 0 else np.nan,
        **{"contrast": one.mean, "contrast_low": one.low, "contrast_high": one.high, "p": one.p, "error": one.error},
        "sequences": len(a),
    }


def profile_tables(groups: Groups, resamples: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """profiles.csv, a row per model, data set, method, BY and octave; and contrasts.csv, a row per model, data set,
    method and BY, whose p are one family. groups: the methods' evaluations, with the original's under its name."""
    rows: list[dict[str, Any]] = []
    contrasts: list[dict[str, Any]] = []
    resamples = max(resamples, RESAMPLES_PER_COMPARISON * len(BY) * sum(len(group) - 1 for group in groups.values()))
    for (model, dataset), group in groups.items():
        names = {"model": model, "dataset": dataset}
        original, methods = group[ORIGINAL], {name: one for name, one in group.items() if name != ORIGINAL}
        for by in BY:
            if methods:
                rows += [names | row for row in profile_rows(methods, original, by, seed)]
            found = (contrast_row(one, original, by, resamples, seed) for one in methods.values())
            contrasts += [names | row for row in found if row is not None]
    return pd.DataFrame(rows, columns=PROFILE), corrected(pd.DataFrame(contrasts, columns=CONTRAST))


PROFILE = ["model", "dataset", "method", "by", "first", "last", "tokens", "nll", "delta_nll", "delta_nll_low",
           "delta_nll_high"]  # fmt: skip
CONTRAST = ["model", "dataset", "method", "by", "part", "share", "delta_nll", "delta_nll_rest", "damage_share",
            "contrast", "contrast_low", "contrast_high", "p", "error", "sequences"]  # fmt: skip


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """All rows as one family."""
    size = int(frame["p"].notna().sum())
    seen = [detectable(e, n, size) for e, n in zip(frame["error"], frame["sequences"], strict=True)]
    return frame.assign(p_holm=holm(frame["p"].tolist()), detectable=np.array(seen, dtype=float))


def shown(row: Any) -> str:
    """Of a row of contrasts.csv: whether damage is larger in that part, smaller, or no difference is shown (none)."""
    if not row.p_holm <= LEVEL:
        return "none"
    return "larger" if row.contrast > 0 else "smaller"
