"""How long methods write what the original writes, and how their texts are: repetitions, broken characters."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.paired import paired_difference
from quant.comparison.verdicts import ORIGINAL

GRAM = 4  # tokens of what counts as repeated
BROKEN = "\ufffd"  # bytes that are no character
MARK = "‖"  # where a text parts from the original's


def agreed(ids: Sequence[int], original: Sequence[int]) -> int:
    """Tokens until they part."""
    return next(
        (i for i, (a, b) in enumerate(zip(ids, original, strict=False)) if a != b), min(len(ids), len(original))
    )


def repeated(ids: Sequence[int]) -> float:
    """Share of a text's runs of GRAM tokens that stood in it before (rep-4 of Welleck et al. 2020)."""
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def marked(row: dict[str, Any], original: dict[str, Any]) -> str:
    """A text with MARK before the first token that is not the original's; without one where none differs."""
    same = agreed(row["ids"], original["ids"])
    if row["ids"] == original["ids"]:
        return row["text"]
    at = row["ends"][same - 1] if same else 0
    return f"{row['text'][:at]} {MARK}{row['text'][at:]}"


def words_table(written: Sequence[dict[str, Any]], resamples: int, seed: int) -> pd.DataFrame:
    """words.csv: a row per model and method; agreed: mean tokens until its texts part from the original's, with its
    95 % interval over texts (a text that never does counts with its length); whole: share of texts that are the
    original's; repeated: mean share of repeated runs; broken: texts with bytes that are no character."""
    originals = {one["model"]: one for one in written if one["method"] == ORIGINAL}
    rows = []
    for one in written:
        original, made = originals[one["model"]], one["provenance"]
        if made["task_fingerprint"] != original["provenance"]["task_fingerprint"]:
            raise ValueError("the texts follow different contexts")
        pairs = list(zip(one["texts"], original["texts"], strict=True))
        lengths = np.array([agreed(a["ids"], b["ids"]) for a, b in pairs], dtype=float)
        mean = paired_difference(lengths, np.zeros(len(lengths)), np.ones(len(lengths)), resamples, seed)
        rows.append(
            {"model": one["model"], "method": one["method"], "task": one["task"], "texts": len(pairs)}
            | {"tokens": one["tokens"], "agreed": mean.mean, "agreed_low": mean.low, "agreed_high": mean.high}
            | {"whole": float(np.mean([a["ids"] == b["ids"] for a, b in pairs]))}
            | {"repeated": float(np.mean([repeated(a["ids"]) for a, _ in pairs]))}
            | {"broken": sum(BROKEN in a["text"] for a, _ in pairs), "seconds": one["seconds"]}
            | {"recipe": json.dumps(made.get("recipe")), "seed": made.get("seed")}
            | {"versions": json.dumps(made["versions"]), "task_fingerprint": made["task_fingerprint"]}
        )
    return pd.DataFrame(rows)


def examples(written: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The first n texts of every model: {"model", "prompt", "texts": by method, marked}."""
    found = []
    for original in (one for one in written if one["method"] == ORIGINAL):
        of_model = [one for one in written if one["model"] == original["model"]]
        for i, row in enumerate(original["texts"][:n]):
            texts = {one["method"]: marked(one["texts"][i], row) for one in of_model}
            found.append({"model": original["model"], "prompt": row["prompt"], "texts": texts})
    return found
