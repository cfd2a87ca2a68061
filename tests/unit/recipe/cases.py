"""Recipes on one linear and on the tiny checkpoint: what tests of many packages begin with."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.calibration.channels import Channels
from quant.calibration.reader import LinearStatistics, Statistics
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from tests.unit import reference
from tests.unit.group import quantize_group

PATTERNS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "out_proj", "attention"],
    "mlp": ["mlp", "fc", "gate", "up_proj", "down_proj", "ffn"],
}
PLAIN: dict[str, Any] = {
    "salience": "none",
    "format": "int",
    "activations": "none",
    "bits": 4,
    "group_size": -1,
    "symmetric": False,
    "clip": False,
    "n_grid": 20,
    "search_bits": 0,
    "search_group_size": 0,
    "objective": "uniform",
    "plain_share": 0.0,
    "scope": "linear",
    "rounding": "nearest",
    "outlier_percent": 0.05,
    "damp": 0.01,
    "row_feedback": 0.0,
    "row_linears": "",
    "refine": 0,
    "inputs": "parallel",
    "correction": 0.0,
    "reconstruct": None,
    "keep": "none",
    "keep_ratio": 0.5,
    "beta": 3.0,
    "tau": -3.0,
    "noise_factor": 0.2,
    "noise_injection": 0.0,
    "noise_std": 0.0,
    "seed": 42,
}
LINEARS = {
    f"model.layers.{layer}.{name}": layer
    for layer in (0, 1)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
}


def case() -> tuple[np.ndarray, np.ndarray]:
    """w [6, 24] and x [30, 24] with loud channels."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(6, 24)), rng.normal(size=(30, 24)) * np.exp(rng.normal(size=24)) + 0.2


def statistics_of(w: np.ndarray, x: np.ndarray, is_mlp: bool) -> LinearStatistics:
    means = reference.input_statistics(x) | reference.output_statistics(x @ w.T)
    channels = {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
    return LinearStatistics(Channels(**channels, is_mlp=is_mlp), torch.from_numpy(reference.second_moment(x)))


def quantized(w: np.ndarray, statistics: LinearStatistics, **changes: Any) -> QuantizedLinear:
    """PLAIN with changes, on one linear."""
    (found,) = quantize_group([torch.from_numpy(w)], [statistics], Recipe.of(PLAIN | changes), torch.Generator())
    return found


MADE = {"by": "test", "model_fingerprint": "tiny"}


def run(
    source: Path | Source, target: Path, paths: dict[str, str], model: str = "tiny", **changes: Any
) -> dict[str, Any]:
    """quantize_checkpoint by PLAIN with changes; a path is that of the tiny model or of one that has its linears."""
    statistics = Statistics(paths, model, PATTERNS)
    folds = target.with_name(f"{target.name}.folds.safetensors")
    return quantize_checkpoint(
        Source(source, LINEARS) if isinstance(source, Path) else source,
        Output(target, folds),
        statistics,
        Recipe.of(PLAIN | changes),
        "cpu",
        {"by": "test", "model_fingerprint": "tiny"},
    )


def recast(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target
