"""What the configuration's `moments:` decide about a model, so that another number that decides the same makes nothing
stale."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from quant.calibration.moment_sizes import Sizes, deciding, triangle_bytes

PARTS = {"float32": 1.0, "bfloat16": 0.5}  # of float32's bytes


def settled(keeping: Mapping[str, Any], model: str) -> dict[str, Any]:
    """`moments:` with the number that stands for all budgets that decide alike, as soon as convert's record is there:
    Snakemake asks again once a job's inputs are."""
    path = Path("results") / model / "original/convert.json"
    try:
        blocks = _experts(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return dict(keeping)
    return {**keeping, "budget_gb": deciding(keeping["budget_gb"], PARTS[keeping["store"]], blocks)}


@lru_cache(maxsize=64)
def _experts(path: str, changed: int) -> list[Sizes]:
    found = json.loads(Path(path).read_text(encoding="utf-8"))["experts"]
    return [[(triangle_bytes(width), n) for width, n in block] for block in found]
