"""Recipes that take the model's own forward pass: inputs as the quantised model gives them, and tuning."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.checkpoints import packed
from quant.data.tokens import Tokens
from quant.files import shards, tensorfile
from quant.files.artifacts import read_json
from quant.files.tensorfile import put_finite
from quant.methods.quantize import quantize_checkpoint
from quant.methods.reconstruct import Reconstruction
from quant.methods.sequential import Sequential
from quant.methods.tune import Tuner, Tuning, load_original, split
from quant.methods.vocabulary import Rounded
from quant.models.architectures import ARCHITECTURES
from quant.models.compute import Compute
from quant.recipe.grids import Codes
from quant.recipe.recipe import Recipe, Widths
from quant.records.method import MethodRecord, Provenance
from quant.records.model import Vocabulary


def tuned_tensors(tuner: Tuner, is_packed: bool) -> dict[str, Tensor]:
    """What tuning changed, by its name in the checkpoint, float32 on the host."""
    changed = {f"{name}.weight": norm.detach().cpu() for name, norm in tuner.norms.items()}
    for name, linear in tuner.linears.items():
        codes = linear.tuned()
        changed |= (
            {f"{name}.weight_scale": packed.scales(codes)} if is_packed else {f"{name}.weight": codes.dequantize()}
        )
    return changed


def rewrite(path: Path, changed: dict[str, Tensor]) -> None:
    """A checkpoint with some of its tensors changed, in the dtypes that it has them in."""
    with tensorfile.opened(path) as old:
        metadata = {key: value for key, value in old.metadata.items() if key != "checksums"}
        layout = old.layout()
        with shards.writing(old.path, layout, metadata) as out:
            for name in sorted(layout.keys() - changed.keys()):
                out.put(name, old.get(name))
            put_finite(out, changed, path.parent)


def refold(path: Path, norms: dict[str, tuple[Tensor, Tensor]], kind: str) -> None:
    """Brings the folds up to date with tuned norms: of what a norm puts out, a linear now gets (new + offset) / (old +
    offset) times what it got. norms: by name, the weights before and after, float32."""
    with tensorfile.opened(path) as file:
        folds, provenance = {name: file.get(name) for name in file.names}, file.info("provenance")
    known = ARCHITECTURES[kind].groups if kind in ARCHITECTURES else ()
    for norm, (old, new) in norms.items():
        for group in known:
            prefix = norm.removesuffix(group.fold.module)
            if group.fold.kind != "norm" or prefix == norm:
                continue
            for linear in group.linears:
                name, offset = f"{prefix}{linear}.input", group.fold.offset
                folds[name] = folds.get(name, torch.ones_like(old)) * (old + offset) / (new + offset)
    tensorfile.save(path, folds, {"provenance": json.dumps(provenance)})


def tune_checkpoint(
    source: Path,
    target: Path,
    folds: Path,
    codes: dict[str, Codes],
    calibration: Tokens,
    tuning: Tuning,
    seed: int,
    compute: Compute,
    ends: Sequence[Rounded] = (),
) -> dict[str, Any]:
    """Tunes a written checkpoint whose linears, embedding and head have these codes; returns what `Tuner.tune` says."""
    weights, config = target / "model.safetensors", read_json(target / "config.json")
    with tensorfile.opened(weights) as file:
        own = {name: each.codes.dequantize() for each in ends for name in each.owners}
        tuner = Tuner(load_original(source, compute.device, compute.dtype), file, codes, compute.device, own)
        old = {name: norm.detach().cpu().clone() for name, norm in tuner.norms.items()}
        found = tuner.tune(calibration.sequences, tuning, seed)
    if found["epoch"]:
        changed = tuned_tensors(tuner, "quantization_config" in config)
        rewrite(weights, changed)
        refold(folds, {name: (before, changed[f"{name}.weight"]) for name, before in old.items()}, config["model_type"])
    return found


def reconstruction_of(recipe: dict[str, Any], n_sequences: int) -> tuple[Reconstruction | None, frozenset[int]]:
    """And what it does not look at: the sequences that tuning holds out."""
    if recipe["reconstruct"] is None:
        return None, frozenset()
    tune = recipe["tune"]
    drawn = torch.Generator().manual_seed(recipe["seed"])
    kept_out = [] if tune is None else split(n_sequences, tune["held_out"], drawn)[0]
    return Reconstruction.of(recipe["reconstruct"]), frozenset(kept_out)


def quantize_with_model(
    source: Path,
    target: Path,
    folds: Path,
    linears: dict[str, int],
    statistics: Statistics,
    recipe: dict[str, Any],
    calibration: Tokens,
    compute: Compute,
    provenance: Provenance,
    left: Mapping[str, str] = MappingProxyType({}),
    unpacked: Mapping[str, str] = MappingProxyType({}),
    vocabulary: Vocabulary | None = None,
    end_loss: str | None = None,
    widths: Widths = MappingProxyType({}),
) -> MethodRecord:
    """`quantize_checkpoint` of a recipe as the configuration has it; its record says also how tuning went. widths: of a
    budget, as Recipe has them."""
    chosen = Recipe.of(recipe, widths)
    codes: dict[str, Codes] | None = {} if recipe["tune"] else None
    way, ends = None, list[Rounded]()
    if chosen.inputs == "sequential":
        way = Sequential(source, calibration, *compute, *reconstruction_of(recipe, len(calibration.sequences)), ends)
    given = (source, target, folds, linears, statistics, chosen, compute.device, provenance, left, unpacked)
    record = quantize_checkpoint(
        *given, quantize_block=way, keep=codes, vocabulary=vocabulary, end_loss=end_loss, keep_ends=ends
    )
    if way is not None and way.errors:
        record["reconstruction"] = way.errors
    if codes is not None:
        begun = time.perf_counter()
        record["tuning"] = tune_checkpoint(
            source, target, folds, codes, calibration, Tuning.of(recipe["tune"]), chosen.seed, compute, ends
        )
        record["summary"]["quantize_s"] += time.perf_counter() - begun
    return record
