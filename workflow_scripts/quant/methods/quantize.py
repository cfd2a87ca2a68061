"""Weights and statistics in, a checkpoint and a record out, one decoder block at a time; the model is never built."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from quant.calibration.reader import Statistics
from quant.checkpoints import embeddings, packed
from quant.checkpoints.around import metadata_of
from quant.errors import InputError
from quant.files import shards, tensorfile
from quant.files.finite import put_finite
from quant.files.waits import together
from quant.methods.block import Block
from quant.methods.embeddings import RoundedEmbedding, rounded, write_rounded
from quant.methods.form import Form
from quant.methods.packing import activations_refused, why_dense
from quant.methods.shared import Shared, fused, shared_groups
from quant.methods.source import Output, Source
from quant.recipe.grids import Codes
from quant.recipe.quantized import Counted, moves_of, statistics_of
from quant.recipe.recipe import Recipe
from quant.records.method import MethodRecord, Provenance
from quant.runtime.replay import recording

logger = logging.getLogger("quant")


SMALL_FLOATS = ("nvfp4", "mxfp4", "fp8", "nf4")  # whose codes are no whole numbers
QuantizeBlock = Callable[[Block, list[Shared]], None]


@dataclass
class Kept:
    """Codes as stored, in the host's memory: the embedding's and the head's, filled before the first block comes, and
    where they are asked for every linear's."""

    with_linears: bool = True
    linears: dict[str, Codes] = field(default_factory=dict)
    embeddings: list[RoundedEmbedding] = field(default_factory=list)


def form_of(model: tensorfile.TensorFile, source: Source, recipe: Recipe, provenance: Provenance) -> Form:
    """What a recipe makes of a source: packed where the format holds it."""
    dense, linears, unpacked = model.layout(), source.linears, source.unpacked
    ends = embeddings.wanted(recipe.parameters.get("embeddings"), source.embeddings, dense)
    reason = why_dense(recipe, {name: dense[f"{name}.weight"][1] for name in linears}, unpacked)
    inputs = recipe.activations != "none"
    if reason is not None and inputs:
        raise InputError(activations_refused(recipe.activations, reason))
    grids = {name: recipe.at(name).grid for name in linears}
    return Form.of(model, source, provenance, reason or grids, ends, inputs)


class Made(NamedTuple):
    """A linear, or at a block's end what took over scales: tensors as the checkpoint has them but for their types; then
    also the rows of the block's linears."""

    written: dict[str, Tensor]
    folds: dict[str, Tensor]
    rows: list[dict[str, Any]]


def quantize_checkpoint(
    source: Source,
    target: Output,
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    provenance: Provenance,
    *,
    end_loss: str | None = None,
    quantize_block: QuantizeBlock | None = None,
    keep: Kept | None = None,
) -> MethodRecord:
    """Writes the target's weights, in shards as the source's are, beside copies of the source's other files, and the
    folds. Returns a row per linear and the summary.

    Where the format holds what the recipe makes, linears are packed (checkpoints.packed); otherwise they are dense in
    the source's dtype, and the summary's storage_reason says why. end_loss: statistics of embedding and head, for a
    recipe that quantises them; quantize_block: in place of each group for itself, on its own statistics.
    """
    rows: list[dict[str, Any]] = []
    folds: dict[str, Tensor] = {}
    with recording(), tensorfile.opened(source.folder / "model.safetensors") as model, statistics:
        provenance = {**provenance, "token_fingerprint": statistics.token_fingerprint}
        form = form_of(model, source, recipe, provenance)
        begun = time.perf_counter()
        untouched = set(model.names)
        with shards.writing(target.folder / model.path.name, form.layout, metadata_of(model, provenance)) as out:
            outer = list(rounded(model, form.embeddings, recipe, end_loss, device, provenance))
            embedding_rows = write_rounded(out, model, outer, form.reason is None)
            if keep is not None:
                keep.embeddings += outer
            untouched -= {f"{end.name}.weight" for end in form.embeddings}
            for _, names in blocks_of(source.linears)[:1]:
                read_ahead(model, statistics, names, device)
            first = {name for name in untouched if not any(part.isdigit() for part in name.split("."))}
            form.put_rest(out, model, first)  # of no block: written while the first one is read and quantised
            untouched -= first
            codes = keep.linears if keep is not None and keep.with_linears else None
            given = (form, source.linears, statistics, recipe, device, quantize_block, codes)
            for made in blocks_made(model, *given):
                folds |= made.folds
                put_finite(out, made.written, target.folder)
                rows += made.rows
                untouched -= {*made.written, *(f"{row['linear']}.weight" for row in made.rows)}
            form.put_rest(out, model, untouched)
    tensorfile.save(target.folds, folds, {"provenance": json.dumps(provenance)})
    return form.finish(target.folder, rows, time.perf_counter() - begun, embedding_rows)


def blocks_of(linears: dict[str, int]) -> list[tuple[int, list[str]]]:
    """Each block's number and linears."""
    return [(i, list(names)) for i, names in groupby(linears, key=linears.__getitem__)]


def read_ahead(model: tensorfile.TensorFile, statistics: Statistics, linears: list[str], device: str) -> None:
    """What a block's linears will ask for."""
    statistics.prefetch(linears, device)  # the largest first
    model.prefetch((f"{name}.weight" for name in linears), device)


def blocks_made(
    model: tensorfile.TensorFile,
    form: Form,
    linears: dict[str, int],
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    quantize_block: QuantizeBlock | None = None,
    keep: dict[str, Codes] | None = None,
) -> Iterator[Made]:
    """Quantises one block after another. linears: in their blocks' order; quantize_block: as `quantize_checkpoint`
    has it; keep: takes every linear's codes."""
    generator, config = torch.Generator().manual_seed(recipe.seed), form.config
    by_block = blocks_of(linears)
    for at, (layer, names) in enumerate(tqdm(by_block, desc="quantize", unit="block")):
        for following in [names for _, names in by_block[at + (at > 0) : at + 2]]:
            read_ahead(model, statistics, following, device)
        prefix = names[0].partition(f".{layer}.")[0] + f".{layer}"
        block = Block(model, config, device, fused(names, prefix, config), statistics, recipe, generator)
        groups = shared_groups(names, prefix, recipe.scope, config)
        with together():
            if quantize_block is not None:
                quantize_block(block, groups)
            else:
                for group in groups:
                    block.quantize(group)
            yield from linears_made(block, dict.fromkeys(names, layer), form, keep)


def linears_made(block: Block, linears: dict[str, int], form: Form, keep: dict[str, Codes] | None) -> Iterator[Made]:
    """What a block whose linears are rounded becomes."""
    rows: list[dict[str, Any]] = []
    counted: list[tuple[Counted, Callable[[], Tensor]]] = []
    for name, layer in linears.items():
        result = block.rounded(name)
        if keep is not None:
            keep[name] = in_host_memory(block.codes(name, result), form.dense[f"{name}.weight"][0])
        folds = {key: value.cpu() for key, value in block.folds(name)}
        if form.reason is None:
            written = packed.pack(name, block.codes(name, result))
            own_bits = packed.bits_of({key: form.layout[key] for key in written})
        else:
            written = {f"{name}.weight": block.weight(name, result)}
            own_bits = result.storage_bits(name in block.folded)
        row: dict[str, Any] = {"linear": name, "layer": layer, "storage_bits": own_bits}
        row |= {"alpha": result.alpha, "objective": result.objective}
        row |= {"damp": result.damp, "milliseconds": 0.0}
        if result.damp is not None and result.damp > block.recipe.parameters["damp"]:
            logger.warning("%s: needed damp %g instead of %g", name, result.damp, block.recipe.parameters["damp"])
        rows.append(row)
        moved = Counted.of(*moves_of(block.original(name), result))
        counted.append((moved, partial(distances, block, name)))
        yield Made(written, folds, [])
        del result, written  # before the next block takes their place in memory
    for row, own in zip(rows, statistics_of(counted), strict=True):  # all are waited for here
        row |= own | {"milliseconds": block.milliseconds(row["linear"])}
    yield Made(block.others, {}, rows)


def distances(block: Block, name: str) -> Tensor:
    """How far each weight of a rounded linear moved, in thousandths of a step."""
    return moves_of(block.original(name), block.rounded(name))[0]


def in_host_memory(codes: Codes, dtype: torch.dtype) -> Codes:
    """Codes and zeros in a byte each, those that no byte holds as they are; steps as a file of that dtype has them."""
    byte = torch.int8 if codes.grid.symmetric else torch.uint8
    if codes.grid.format in SMALL_FLOATS:
        byte = torch.float32 if codes.grid.format == "nf4" else torch.float8_e4m3fn
    step_dtype = dtype if codes.grid.steps.digits is None else torch.float32
    parts = (codes.codes.to(byte), codes.step.to(step_dtype), codes.zero.to(byte))
    own, step, zero = (part.cpu() for part in parts)
    return codes._replace(codes=own, step=step, zero=zero)
