"""Recipes that take the model's own forward pass: inputs as the quantised model gives them, and tuning."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.checkpoints import packed
from quant.data.tokens import Tokens
from quant.files import shards, stage, tensorfile
from quant.files.artifacts import read_json
from quant.files.finite import put_finite
from quant.methods.quantize import Kept, quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.reconstruct import Reconstruction
from quant.methods.with_model.sequential import Sequential
from quant.methods.with_model.tune import Tuner, Tuning, load_original, split
from quant.models.structure.architectures import ARCHITECTURES
from quant.recipe.recipe import Recipe, Widths
from quant.records.method import MethodRecord, Provenance
from quant.runtime.compute import Compute


def tuned_tensors(tuner: Tuner, is_packed: bool) -> dict[str, Tensor]:
    """What tuning changed, by its name in the checkpoint, float32 on the host."""
    changed = {f"{name}.weight": norm.detach().cpu() for name, norm in tuner.norms.items()}
    for name, linear in tuner.linears.items():
        codes = linear.tuned()
        changed |= (
            {f"{name}.weight_scale": packed.scales(codes).cpu()}
            if is_packed
            else {f"{name}.weight": codes.dequantize().cpu()}
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
                ratio = torch.where(old + offset == 0, 1.0, (old + offset) / (new + offset))  # of nothing: none
                folds[name] = folds.get(name, torch.ones_like(old)) * ratio
    tensorfile.save(path, folds, {"provenance": json.dumps(provenance)})


def tune_checkpoint(
    source: Path,
    target: Output,
    kept: Kept,
    calibration: Tokens,
    tuning: Tuning,
    seed: int,
    compute: Compute,
) -> dict[str, Any]:
    """Tunes a written checkpoint of these codes; returns what `Tuner.tune` says. source: the original's folder."""
    weights, config = target.folder / "model.safetensors", read_json(target.folder / "config.json")
    with tensorfile.opened(weights) as file:
        own = {name: each.codes.dequantize() for each in kept.embeddings for name in each.owners}
        tuner = Tuner(load_original(source, compute.device, compute.dtype), file, kept.linears, compute.device, own)
        old = {name: norm.detach().cpu().clone() for name, norm in tuner.norms.items()}
        found = tuner.tune(calibration.sequences, tuning, seed)
    if found["epoch"]:
        changed = tuned_tensors(tuner, "quantization_config" in config)
        rewrite(weights, changed)
        refold(
            target.folds,
            {name: (before, changed[f"{name}.weight"]) for name, before in old.items()},
            config["model_type"],
        )
    return found


def reconstruction_of(recipe: dict[str, Any], n_sequences: int) -> tuple[Reconstruction | None, frozenset[int]]:
    """And what it does not look at: the sequences that tuning holds out."""
    tune = recipe["tune"]
    drawn = torch.Generator().manual_seed(recipe["seed"])
    kept_out = [] if tune is None else split(n_sequences, tune["held_out"], drawn)[0]
    if recipe["reconstruct"] is None:
        return None, frozenset()
    return Reconstruction.of(recipe["reconstruct"]), frozenset(kept_out)


def quantize_with_model(
    source: Source,
    target: Output,
    statistics: Statistics,
    recipe: dict[str, Any],
    calibration: Tokens,
    compute: Compute,
    provenance: Provenance,
    *,
    end_loss: str | None = None,
    widths: Widths = MappingProxyType({}),
) -> MethodRecord:
    """`quantize_checkpoint` of a recipe as the configuration has it; its record says also how tuning went. widths: of a
    budget, as Recipe has them."""
    chosen, kept = Recipe.of(recipe, widths), Kept(with_linears=bool(recipe["tune"]))
    aims = reconstruction_of(recipe, len(calibration.sequences))  # what cannot be held out is refused before all else

    def rounded(made: Output) -> MethodRecord:
        """Two models' streams go with it, before models are tuned."""
        way = None
        if chosen.inputs == "sequential":
            way = Sequential(source.folder, calibration, *compute, *aims, kept.embeddings)
        given = (source, made, statistics, chosen, compute.device, provenance)
        record = quantize_checkpoint(*given, end_loss=end_loss, quantize_block=way, keep=kept)
        if way is not None and way.errors:
            record["reconstruction"] = way.errors
        return record

    with staged(target) if recipe["tune"] else contextlib.nullcontext(target) as made:
        record = rounded(made)
        if recipe["tune"]:
            begun = time.perf_counter()
            record["tuning"] = tune_checkpoint(
                source.folder, made, kept, calibration, Tuning.of(recipe["tune"]), chosen.seed, compute
            )
            record["summary"]["quantize_s"] += time.perf_counter() - begun
    return record


@contextlib.contextmanager
def staged(target: Output) -> Iterator[Output]:
    """An output under names that are not final, which gets the target's once tuning is through: a killed job leaves no
    untuned weights that look like tuned ones."""
    with stage.hidden(target.folder.parent, "tuned") as folder:
        made = Output(folder / target.folder.name, folder / target.folds.name)
        yield made
        (target.folder / "README.md").unlink(missing_ok=True)  # the card of what was here before
        stage.publish(made.folder, target.folder)
        made.folds.replace(target.folds)
