"""How many sequences a study takes where its user has not said so: a message names such a number as the default."""

from pathlib import Path
from typing import Any

import yaml


def default_counts(schema: dict[str, Any], config: Path) -> dict[str, set[int]]:
    """Of n_calib and n_samples: the schema's default, and what the embedded study's own config.yaml has."""
    written = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    calibration, named = (written.get(key) or {} for key in ("calibration", "datasets"))
    properties = schema["properties"]
    datasets = properties["datasets"]["additionalProperties"]["properties"]
    return {
        "n_calib": {
            properties["calibration"]["properties"]["n_calib"]["default"],
            calibration.get("n_calib"),
        },
        "n_samples": {
            datasets["n_samples"]["default"],
            *(entry.get("n_samples") for entry in named.values()),
        },
    }
