"""Weights and statistics in, a checkpoint and a record out, one decoder block at a time; the model is never built."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quant.calibration.reader import Statistics
from quant.checkpoints import packed
from quant.checkpoints.coverage import quantized_share
from quant.files import naming, pieces, shards, tensorfile
from quant.files.artifacts import copy, read_json, write_plain_json
from quant.files.tensorfile import put_finite
from quant.files.weight_names import is_weights
from quant.methods.block import Block
from quant.methods.packing import why_not_packed, without_kernels
from quant.methods.shared import Shared, shared_groups
from quant.recipe.grids import Codes
from quant.recipe.quantized import rounding_statistics
from quant.recipe.recipe import Recipe
from quant.records.method import MethodRecord, Provenance, Summary

logger = logging.getLogger("quant")


# a block, its groups, the statistics, the recipe, and what random numbers are drawn by
QuantizeBlock = Callable[[Block, list[Shared], Statistics, Recipe, torch.Generator], None]


def quantize_checkpoint(
    source: Path,
    target: Path,
    folds_path: Path,
    linears: dict[str, int],
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    provenance: Provenance,
    left: Mapping[str, str] = MappingProxyType({}),
    unpacked: Mapping[str, str] = MappingProxyType({}),
    quantize_block: QuantizeBlock | None = None,
    keep: dict[str, Codes] | None = None,
) -> MethodRecord:
    """Writes target's weights, in shards as the source's are, beside copies of the source's other files, and the folds.

    linears: names and blocks, as convert recorded them; left: other linears of the model, and why they stay in 16 bit;
    unpacked: on which grids no reader of packed weights reads this model's (`asymmetric`, `any`), and why. Returns a
    row per linear and the summary. Where the format holds what the recipe makes, linears are packed
    (checkpoints.packed); otherwise they are dense in the source's dtype, and the summary's storage_reason says why.
    quantize_block: in place of each group for itself, on its own statistics. keep: takes every linear's codes as
    stored, in the host's memory.
    """
    config = read_json(source / "config.json")
    generator = torch.Generator().manual_seed(recipe.seed)
    rows: list[dict[str, Any]] = []
    folds: dict[str, Tensor] = {}
    bits = weights = 0
    with tensorfile.opened(source / "model.safetensors") as model, statistics:
        provenance = {**provenance, "token_fingerprint": statistics.token_fingerprint}
        dense = layout = model.layout()
        reason = unpacked.get("any") or (None if recipe.symmetric else unpacked.get("asymmetric"))
        reason = reason or why_not_packed(recipe, {name: dense[f"{name}.weight"][1] for name in linears})
        if reason is None:
            grids = dict.fromkeys(linears, recipe.grid)
            layout = packed.layout(dense, grids)
            config |= {"quantization_config": packed.quantization_config(grids, dense, left, model.naming)}
        begun = time.perf_counter()
        metadata = {"format": "pt", "provenance": json.dumps(provenance)}
        metadata |= {key: model.metadata[key] for key in (pieces.KEY, naming.KEY) if key in model.metadata}
        untouched = set(model.names)
        with shards.writing(target / model.path.name, layout, metadata) as out:
            by_block = [(i, list(names)) for i, names in groupby(linears, key=linears.__getitem__)]
            for at, (layer, names) in enumerate(tqdm(by_block, desc="quantize", unit="block")):
                for following in [names for _, names in by_block[at + 1 : at + 2]]:
                    model.prefetch((f"{name}.weight" for name in following), device)
                    statistics.prefetch(following, device)
                block = Block(model, config, device)
                prefix = names[0].partition(f".{layer}.")[0] + f".{layer}"
                groups = shared_groups(names, prefix, recipe.scope, config)
                if quantize_block is not None:
                    quantize_block(block, groups, statistics, recipe, generator)
                else:
                    for group in groups:
                        block.quantize(group, statistics, recipe, generator)
                for name in names:
                    result = block.done[name]
                    if keep is not None:
                        keep[name] = in_host_memory(block.codes(name), dense[f"{name}.weight"][0])
                    folds |= {key: value.cpu() for key, value in block.folds(name)}
                    if reason is None:
                        written = packed.pack(name, block.codes(name))
                        own_bits = packed.bits_of({key: layout[key] for key in written})
                    else:
                        written = {f"{name}.weight": block.weight(name)}
                        own_bits = result.storage_bits(name in block.folded)
                    bits, weights = bits + own_bits, weights + block.weights[name].numel()
                    row = {"linear": name, "layer": layer, "storage_bits": own_bits}
                    row |= {"alpha": result.alpha, "objective": result.objective}
                    row |= {"damp": result.damp, "milliseconds": block.milliseconds[name]}
                    if result.damp is not None and result.damp > recipe.parameters["damp"]:
                        logger.warning("%s: needed damp %g instead of %g", name, result.damp, recipe.parameters["damp"])
                    rows.append(row | rounding_statistics(block.weights[name], result))
                    put_finite(out, written, target)
                    untouched.remove(f"{name}.weight")
                put_finite(out, block.others, target)
                untouched -= set(block.others)
            for name in sorted(untouched):
                out.put(name, model.get(name))
    tensorfile.save(folds_path, folds, {"provenance": json.dumps(provenance)})
    for file in source.iterdir():
        if file.is_file() and not is_weights(file) and file.name != "config.json":
            copy(file, target / file.name)
    write_plain_json(target / "config.json", config)
    (target / "README.md").unlink(missing_ok=True)  # the card of what was here before
    summary: Summary = {
        "bits_per_weight": bits / weights,
        "quantize_s": time.perf_counter() - begun,
        "storage": "packed" if reason is None else "simulated",
        "storage_reason": reason or "",
        "no_kernels": (without_kernels(dense, grids) if reason is None else None) or "",
        **quantized_share(dense, linears),
        "left": dict(left),
    }
    return {"linears": rows, "summary": summary, "provenance": provenance}


def in_host_memory(codes: Codes, dtype: torch.dtype) -> Codes:
    """Codes and zeros in a byte each, steps as a file of that dtype has them."""
    byte = torch.int8 if codes.grid.symmetric else torch.uint8
    parts = (codes.codes.to(byte), codes.step.to(dtype), codes.zero.to(byte))
    own, step, zero = (part.cpu() for part in parts)
    return Codes(own, step, zero, codes.grid, codes.n_in)
