"""The table of sensitivity: paired differences of parts, from the records of their evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.paired import corrected, paired_differences
from quant.comparison.part_names import OTHER, RISKY

COLUMNS = [
    *("model", "dataset", "by", "part", "method", "against", "rows", "weights"),
    *("delta_nll", "delta_nll_low", "delta_nll_high", "sequences", "p", "p_holm", "detectable"),
]


def table(
    records: Sequence[dict[str, Any]], pairs: Callable[[str, str], bool], resamples: int, seed: int
) -> pd.DataFrame:
    """Rise of the NLL by part with its interval: against the original, against the same part by another method where
    pairs(method, other) says so, and of risky rows against the mean of the draws of other rows.

    records: of `measure_sensitivity`; p_holm is corrected for all rows but those against the original, which say how
    large a part's damage is and are corrected among themselves.
    """
    rows: list[dict[str, Any]] = []
    for record in records:
        base = np.array(record["original"])
        nll = {(row["by"], row["part"]): np.array(row["nll"]) for row in record["parts"]}
        cells = {(row["by"], row["part"]): row for row in record["parts"]}
        compared = [(key, "original", nll[key] - base) for key in nll]
        for other in records:
            if (other["model"], other["dataset"]) != (record["model"], record["dataset"]):
                continue
            if pairs(record["method"], other["method"]):
                theirs = {(row["by"], row["part"]): np.array(row["nll"]) for row in other["parts"]}
                compared += [(key, other["method"], nll[key] - theirs[key]) for key in nll if key in theirs]
        draws = [value for (by, name), value in nll.items() if by == "risk" and name != RISKY]
        if draws:
            compared.append((("risk", RISKY), OTHER, nll["risk", RISKY] - np.mean(draws, axis=0)))
        weights = np.array(record["tokens"], dtype=float)
        found = paired_differences(np.stack([d for *_, d in compared]), weights, resamples, seed)
        rows += [
            {
                **{key: record[key] for key in ("model", "dataset", "method")},
                **{"by": key[0], "part": key[1], "against": against},
                **{name: cells[key][name] for name in ("rows", "weights")},
                **{"delta_nll": x.mean, "delta_nll_low": x.low, "delta_nll_high": x.high, "p": x.p},
                **{"sequences": len(weights), "error": x.error},
            }
            for (key, against, _), x in zip(compared, found, strict=True)
        ]
    frame = pd.DataFrame(rows, columns=[*(name for name in COLUMNS if name not in ("p_holm", "detectable")), "error"])
    is_original = frame["against"] == "original"
    families = [corrected(frame[is_original == which]) for which in (True, False)]
    return pd.concat([family for family in families if len(family)] or families[:1]).sort_index()[COLUMNS]
