"""A library as a method: what it is given, and its packed checkpoint back to dense weights, measured like any other's.

The library runs in an environment of its own ({name}_worker.py), since it wants other versions than the workflow. What
is its own stands in quant.recipe.libraries and, found by its name so that a job depends on its library alone, in
quant.methods.libraries.
"""

import importlib
import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints.around import metadata_of, put_around
from quant.checkpoints.coverage import quantized_share
from quant.data.tokens import Tokens
from quant.data.tokens import load as load_tokens
from quant.errors import InputError
from quant.files import pieces, shards, stage, tensorfile
from quant.files.artifacts import read_json
from quant.files.finite import put_finite
from quant.files.tensorfile import TensorFile
from quant.methods.library_environment import interpreter_of, run_worker
from quant.methods.source import Output, Source
from quant.recipe import grids
from quant.recipe.grids import Codes
from quant.recipe.libraries import library_of, module_of
from quant.recipe.quantized import QuantizedLinear, rounding_statistics
from quant.records.method import MethodRecord, Provenance, Summary
from quant.runtime.compute import halving

logger = logging.getLogger("quant")


def adapter_of(recipe: dict[str, Any]) -> ModuleType:
    """The library's module in quant.methods.libraries: check, read, PACKED, REASON, CHANGES_OTHERS, SPLITS_BATCHES."""
    return importlib.import_module(module_of(recipe["algorithm"]))


# ---- what the library is given


def check_model(checkpoint: Path, linears: dict[str, int], recipe: dict[str, Any]) -> None:
    """Refuses what the library would end on, or leave as it is: an architecture, or shapes, that it does not take."""
    library = library_of(recipe)
    assert library is not None
    name, title = recipe["algorithm"], library.title
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        shapes = {linear: file.layout()[f"{linear}.weight"][1] for linear in linears}
        inside = [linear for linear in linears if f"{linear}.weight" in pieces.read(file.metadata, name).pieces]
    if inside:
        raise InputError(
            f"{checkpoint}: its experts ({inside[0]} and others) are parts of one parameter, which is not given to "
            f"{title}; leave {name} out of study.methods for this model"
        )
    size = recipe["group_size"]
    for linear, (_, n_in) in shapes.items():
        if n_in % size:
            fitting = [g for g in (128, 64, 32, 16, 8) if all(shape[1] % g == 0 for shape in shapes.values())]
            raise InputError(
                f"{linear}: its {n_in} inputs are no multiple of group_size {size}, which {title} needs; "
                + (f"write group_size: {fitting[0]}" if fitting else f"leave {name} out of study.methods")
            )
    adapter_of(recipe).check(checkpoint, shapes, recipe)


def used(tokens: Tokens) -> int:
    """Tokens that a library calibrates on: the sequences joined and cut at the longest one's length, less the rest."""
    width = max(len(sequence) for sequence in tokens.sequences)
    return tokens.count // width * width


# ---- what it left, as a checkpoint like any other


def quantized(codes: Codes) -> QuantizedLinear:
    """Codes as a library stores them; a group of nothing, whose step a 16-bit type took for 0, has step 1."""
    empty = codes.step == 0
    step = torch.where(empty, torch.ones_like(codes.step), codes.step)
    return QuantizedLinear(torch.where(empty, codes.zero, codes.codes), step, codes.zero, codes.grid, codes.n_in)


def write_checkpoint(
    source: Source,
    packed: TensorFile,
    target: Path,
    folds: dict[str, Tensor],
    provenance: Provenance,
    result: dict[str, Any],
) -> tuple[list[dict[str, Any]], float]:
    """target/model.safetensors, dense in the source's dtypes, beside its other files; rows per linear, bits a weight.

    Norms and biases are as the library left them, where it changes any; what it left alone is the original's, not its
    float16 copy.
    """
    recipe, linears = provenance["recipe"], source.linears
    adapter, library = adapter_of(recipe), library_of(recipe)
    assert library is not None
    found = {key.removesuffix(adapter.PACKED) for key in packed.names if key.endswith(adapter.PACKED)}
    if found != set(linears):
        odd = min(found ^ set(linears))
        raise InputError(f"{library.title} and this workflow differ about {odd}: only one quantises it")
    rows: list[dict[str, Any]] = []
    bits = weights = 0
    with tensorfile.opened(source.folder / "model.safetensors") as model:
        layout = model.layout()
        with shards.writing(target / model.path.name, layout, metadata_of(model, provenance)) as out:
            for name in linears:
                w = model.get(f"{name}.weight", dtype=torch.float32)
                linear = quantized(adapter.read(packed, name, recipe, result))
                put_finite(out, {f"{name}.weight": linear.dequantize()}, target)
                bits += grids.storage_bits(w.shape[0], w.shape[1], linear.grid)
                weights += w.numel()
                scaled = w * folds.get(f"{name}.input", torch.ones(1))
                scaled = scaled * folds.get(f"{name}.output", torch.ones(1))[:, None]
                row = {"linear": name, "layer": linears[name], "alpha": None, "objective": None}
                rows.append(row | rounding_statistics(scaled, linear))
            for name in sorted(set(model.names) - {f"{linear}.weight" for linear in linears}):
                value = model.get(name)
                stored = value
                if adapter.CHANGES_OTHERS and name in packed.names:
                    stored = packed.get(name, dtype=value.dtype)
                if not torch.equal(value.half().to(value.dtype), stored):
                    value = stored
                put_finite(out, {name: value}, target)
    put_around(source.folder, target, read_json(source.folder / "config.json"))
    return rows, bits / weights


def quantize_library(
    source: Source,
    target: Output,
    tokens_path: Path,
    environment: Path,
    provenance: Provenance,
    device: str,
    batch_tokens: int,
) -> MethodRecord:
    """One model through a library; writes checkpoint and folds, returns the record (see quant.methods.quantize).

    batch_tokens: of a forward pass. packed_mb (10⁶ bytes) is the library's own checkpoint.
    """
    recipe = provenance["recipe"]
    library, adapter = library_of(recipe), adapter_of(recipe)
    assert library is not None
    check_model(source.folder, source.linears, recipe)
    tokens = load_tokens(tokens_path, model_fingerprint=provenance["model_fingerprint"])
    python = interpreter_of(environment, library.title)
    longest = max(len(sequence) for sequence in tokens.sequences)
    title, name = library.title, recipe["algorithm"]
    logger.info("%s calibrates on %d of the %d tokens, %d at a time", title, used(tokens), tokens.count, longest)
    with stage.hidden(target.folder.parent, name) as made:
        folder = made.absolute()
        job: dict[str, Any] = {
            "model": str(source.folder.absolute()),
            "tokens": str(tokens_path.absolute()),
            "out": str(folder / "packed"),
        }
        job |= {"device": device, "threads": torch.get_num_threads(), "linears": list(source.linears)}
        job |= {key: recipe[key] for key in (*library.keys, "seed")}
        at_once = batch_tokens if adapter.SPLITS_BATCHES else recipe["batch"] * longest
        result = halving(
            lambda n: run_worker(python, name, title, job | {"parallel": max(1, n // longest)}, folder),
            at_once,
            tokens.sequences,
        )
        packed_path = folder / "packed" / "model.safetensors"
        packed_mb = packed_path.stat().st_size / 1e6
        provenance = {
            **provenance,
            "versions": provenance["versions"] | result["versions"],
            "token_fingerprint": tokens.fingerprint,
            "calibration_tokens": used(tokens),
        }
        folds = read_folds(folder / "packed" / "scales.safetensors")
        with tensorfile.opened(packed_path) as packed:
            rows, bits = write_checkpoint(source, packed, target.folder, folds, provenance, result)
    tensorfile.save(target.folds, folds, {"provenance": json.dumps(provenance)})
    share_among_linears(rows, result["seconds_of"])
    logger.info("%s's packed checkpoint: %.1f MB, %.3f bits a weight", title, packed_mb, bits)
    with tensorfile.opened(source.folder / "model.safetensors") as file:
        coverage = quantized_share(file.layout(), source.linears)
    summary: Summary = {
        "bits_per_weight": bits,
        "quantize_s": result["seconds"],
        "storage": "simulated",
        "packed_mb": packed_mb,
        "storage_reason": adapter.REASON,
        **coverage,
        "left": dict(source.left),
        "no_kernels": "",
    }
    return {"linears": rows, "summary": summary, "provenance": provenance}


def read_folds(path: Path) -> dict[str, Tensor]:
    """The scales that a library folded, by linear; none where it leaves no such file."""
    if not path.is_file():
        return {}
    with tensorfile.opened(path) as file:
        return {name: file.get(name) for name in sorted(file.names)}


def share_among_linears(rows: list[dict[str, Any]], seconds_of: dict[str, float]) -> None:
    """Gives each row `milliseconds`: its part of its block's time, where a library goes by whole blocks, or its own.
    seconds_of: by a block's name or a linear's."""
    parts = [next(name for name in seconds_of if f"{row['linear']}.".startswith(f"{name}.")) for row in rows]
    for row, part in zip(rows, parts, strict=True):
        row["milliseconds"] = 1e3 * seconds_of[part] / parts.count(part)
