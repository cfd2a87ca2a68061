"""A model quantised in shards: each some of its blocks, which a last job puts together into one checkpoint.

A block's recipe reads nothing of another block, so the checkpoint is that of one job to the bit.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from quant.calibration.reader import Statistics
from quant.checkpoints import embeddings
from quant.checkpoints.around import metadata_of
from quant.data.tokens import Shard
from quant.files import shards, tensorfile
from quant.files.artifacts import read_json, require, write_json
from quant.files.finite import put_finite
from quant.methods.embeddings import rounded, write_rounded
from quant.methods.quantize import blocks_made, blocks_of, form_of
from quant.methods.source import Output, Source
from quant.recipe.recipe import Recipe
from quant.records.method import MethodRecord, Provenance


class Part(NamedTuple):
    """A shard's files: tensors as the checkpoint has them, folds, and rows with what made them."""

    weights: str
    folds: str
    record: str


def quantize_shard(
    source: Source,
    part: Part,
    shard: Shard,
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    provenance: Provenance,
) -> None:
    """Quantises a shard's blocks."""
    blocks = blocks_of(source.linears)
    start, stop = (len(blocks) * i // shard.shards for i in (shard.shard, shard.shard + 1))
    own = {name: layer for layer, names in blocks[start:stop] for name in names}
    prefixes = tuple({f"{name.partition(f'.{layer}.')[0]}.{layer}." for name, layer in own.items()})
    rows: list[dict[str, Any]] = []
    folds: dict[str, Tensor] = {}
    with tensorfile.opened(source.folder / "model.safetensors") as model, statistics:
        provenance = {**provenance, "token_fingerprint": statistics.token_fingerprint}
        form = form_of(model, source._replace(embeddings=None), recipe, provenance)
        layout = {name: value for name, value in form.layout.items() if name.startswith(prefixes)} if own else {}
        begun, missing = time.perf_counter(), set(layout)
        with tensorfile.writing(part.weights, layout, {"provenance": json.dumps(provenance)}) as out:
            for made in blocks_made(model, form, own, statistics, recipe, device) if own else ():
                put_finite(out, made.written, Path(part.weights))
                missing -= set(made.written)
                folds |= made.folds
                rows += made.rows
            form.put_rest(out, model, missing)
    tensorfile.save(part.folds, folds, {"provenance": json.dumps(provenance)})
    seconds = time.perf_counter() - begun
    write_json(part.record, {"provenance": provenance, **shard._asdict(), "linears": rows, "seconds": seconds})


def join(
    source: Source,
    target: Output,
    parts: Sequence[Part],
    recipe: Recipe,
    device: str,
    provenance: Provenance,
    *,
    end_loss: str | None = None,
) -> MethodRecord:
    """What `quantize_checkpoint` writes and returns, from all shards; refuses what was made from something else. The
    embedding and the head, of no block, are quantised here."""
    begun = time.perf_counter()
    records = [read_json(part.record) for part in parts]
    made: Provenance = {**provenance, "token_fingerprint": records[0]["provenance"]["token_fingerprint"]}
    for i, (part, record) in enumerate(zip(parts, records, strict=True)):
        require(part.record, record, provenance=made, shard=i, shards=len(parts))
    folds: dict[str, Tensor] = {}
    with tensorfile.opened(source.folder / "model.safetensors") as model:
        form = form_of(model, source, recipe, made)
        missing = set(form.layout)
        with shards.writing(target.folder / model.path.name, form.layout, metadata_of(model, made)) as out:
            for part in parts:
                with tensorfile.opened(part.weights) as file:
                    require(part.weights, {"provenance": file.info("provenance")}, provenance=made)
                    for name in sorted(file.names, key=shards.in_order):
                        out.put(name, file.get(name))
                    missing -= file.names
                with tensorfile.opened(part.folds) as file:
                    folds |= {name: file.get(name) for name in sorted(file.names)}
            ends = rounded(model, form.embeddings, recipe, end_loss, device, made)
            embedding_rows = write_rounded(out, model, ends, form.reason is None)
            missing -= {name for end in form.embeddings for name in embeddings.kept_in(end, form.layout)}
            form.put_rest(out, model, missing)
    tensorfile.save(target.folds, folds, {"provenance": json.dumps(made)})
    rows = [row for record in records for row in record["linears"]]
    seconds = sum(record["seconds"] for record in records) + time.perf_counter() - begun
    return form.finish(target.folder, rows, seconds, embedding_rows)
