"""Methods of a study whose checkpoints hold the same tensors: one method, measured more than once."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from quant.recipe.keys import OF_CALIBRATION, whole


class Twins(NamedTuple):
    """Methods of one model with equal tensors, in the study's order."""

    model: str
    methods: tuple[str, ...]


def twins(summary: pd.DataFrame) -> list[Twins]:
    """All of a study's, by the marks in summary.csv; a GGUF file is not the checkpoint that it was made of."""
    rows = summary.drop_duplicates(["model", "method"])
    groups = rows.groupby(["model", "tensors", "storage"], sort=False).method
    return [Twins(model, tuple(methods)) for (model, *_), methods in groups if len(methods) > 1]


def said(found: Twins, recipes: Mapping[str, dict[str, Any]]) -> str:
    """In a sentence: which, and what about them makes no difference."""
    own = [whole(recipes.get(method, {})) for method in found.methods]
    keys = dict.fromkeys(key for recipe in own for key in recipe)
    values = {key: list(dict.fromkeys(json.dumps(recipe.get(key)) for recipe in own)) for key in keys}
    idle = {key for key in OF_CALIBRATION if "null" in values.get(key, ())}  # of one that is calibrated on nothing
    differing = [f"{key} ({', '.join(some)})" for key, some in values.items() if len(some) > 1 and key not in idle]
    changes = "changes" if len(differing) == 1 else "change"
    why = f"{' and '.join(differing)} {changes} no weight" if differing else "their recipes are one"
    *names, last = found.methods
    return f"{', '.join(names)} and {last} have the same tensors: {why}. What differs in their rows is chance."
