"""Recipes that run the model, on weights and inputs of nothing, constants, and numbers at the ends of their type."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.evaluation.perplexity import load_model
from quant.methods import block
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.structure.linears import all_linears, skeleton
from quant.runtime.compute import Compute
from tests.unit.methods.damages import DAMAGES, Watched, damaged, statistics_of
from tests.unit.methods.with_model.given import CALIBRATION
from tests.unit.recipe.cases import PATTERNS, PLAIN

SEQUENTIAL = {"inputs": "sequential", "rounding": "gptq"}
TUNE = {"epochs": 1, "rate": 0.002, "batch": 2, "held_out": 0.3}
RECIPES: dict[str, dict[str, Any]] = {
    "sequential": SEQUENTIAL | {"salience": "l2", "scope": "shared", "clip": True, "correction": 0.5, "refine": 2},
    "tuned": {"salience": "l2", "scope": "shared", "tune": TUNE},
    "both": SEQUENTIAL | {"symmetric": True, "correction": 1.0, "tune": TUNE},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_recipes_that_run_the_model_are_finite(
    tiny_checkpoint: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight, number of the record, and logit; and no worse than where they began: each linear than nearest
    rounding by what it minimises, the tuned model than the untuned one on the part held out."""
    source = damaged(tiny_checkpoint, tmp_path / "source", damage)
    paths = {key: path for key, path in statistics_of(source, tmp_path).items() if key != "weighted"}
    ids = torch.stack([sequence[:12] for sequence in CALIBRATION.sequences])
    for name, changes in RECIPES.items():
        recipe = PLAIN | {"bits": 4, "group_size": 16, "n_grid": 5, "tune": None} | changes
        names, statistics, target = all_linears(skeleton(source)), Statistics(paths, "tiny", PATTERNS), tmp_path / name
        out = Output(target, tmp_path / f"{name}.folds.safetensors")
        given = (Source(source, names), out, statistics, recipe, CALIBRATION)
        monkeypatch.setattr(block, "round_linear", watched := Watched())
        record = quantize_with_model(*given, Compute("cpu", torch.float32, 64), {"model_fingerprint": "tiny"})
        assert watched.seen == len(names)
        if recipe["tune"]:
            assert record["tuning"]["kl_tuned"] <= record["tuning"]["kl_start"]
        tensors = load_file(target / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point()), name
        for row in record["linears"]:
            assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), (name, row)
        with torch.inference_mode():
            logits = load_model(target, "cpu", torch.float32)(ids).logits
        assert torch.isfinite(logits).all(), name
