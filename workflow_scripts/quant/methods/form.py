"""What a quantised checkpoint will be: all of it but its weights, which come one after another."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quant.checkpoints import byte_codes, embeddings, packed
from quant.checkpoints.around import put_around
from quant.checkpoints.coverage import quantized_share
from quant.checkpoints.embeddings import Embedding
from quant.files.artifacts import read_json
from quant.files.finite import Sink
from quant.files.tensorfile import Layout, TensorFile
from quant.methods.packing import without_kernels
from quant.methods.source import Source
from quant.recipe.grids import Grid
from quant.recipe.widths import UNTOUCHED
from quant.records.method import MethodRecord, Provenance, Summary

LEFT = "16 bit by its budget"


class Form(NamedTuple):
    """Of a source, made as provenance says: its config.json, the source's layout and its own; grids: of what is packed,
    the head among it; reason: why nothing is; embeddings: those that are quantised, the head among them; inputs:
    whether readers round inputs too."""

    source: Source
    provenance: Provenance
    config: dict[str, Any]
    dense: Layout
    layout: Layout
    grids: dict[str, Grid]
    reason: str | None
    embeddings: Sequence[Embedding]
    inputs: bool = False

    @classmethod
    def of(
        cls,
        model: TensorFile,
        source: Source,
        provenance: Provenance,
        grids: dict[str, Grid] | str,
        ends: Sequence[Embedding],
        inputs: bool = False,
    ) -> "Form":
        """model: the source's weights; grids: of the linears to pack, or why none is packed."""
        config, dense = read_json(source.folder / "config.json"), model.layout()
        if isinstance(grids, str):
            return cls(source, provenance, config, dense, dense, {}, grids, ends)
        grids = grids | embeddings.heads(ends)
        layout = embeddings.layout_with(packed.layout(dense, grids), dense, ends)
        said = packed.quantization_config(grids, dense, source.left, model.naming, inputs)
        config |= {"quantization_config": embeddings.configured(said, ends, model.naming)}
        config |= byte_codes.config_of({grid.format for grid in grids.values()})
        return cls(source, provenance, config, dense, layout, grids, None, ends, inputs)

    def put_rest(self, out: Sink, model: TensorFile, names: Collection[str]) -> None:
        """The source's tensors that stay as they are."""
        for name in sorted(names):
            out.put(name, model.get(name, dtype=self.layout[name][0]))

    def finish(
        self, target: Path, rows: list[dict[str, Any]], seconds: float, embedding_rows: list[dict[str, Any]]
    ) -> MethodRecord:
        """The checkpoint's other files, and the record of what was made. rows: of all linears, those that a budget left
        as they were among them."""
        put_around(self.source.folder, target, self.config)
        weights = sum(torch.Size(self.dense[f"{row['linear']}.weight"][1]).numel() for row in rows)
        untouched = [row["linear"] for row in rows if row.get("bits") == UNTOUCHED]
        quantized = [row["linear"] for row in rows if row.get("bits") != UNTOUCHED]
        gone = {name for end in self.embeddings for name in end.owners}
        summary: Summary = {
            "bits_per_weight": sum(row["storage_bits"] for row in rows) / weights,
            "quantize_s": seconds,
            "storage": "packed" if self.reason is None else "simulated",
            "storage_reason": self.reason or "",
            "no_kernels": ""
            if self.reason
            else embeddings.unread_by_vllm(self.embeddings)
            or without_kernels(self.dense, self.grids, self.inputs)
            or "",
            **quantized_share(self.dense, [*quantized, *(end.name for end in self.embeddings)]),
            "left": {name: why for name, why in self.source.left.items() if name not in gone}
            | dict.fromkeys(untouched, LEFT),
        }
        record: MethodRecord = {"linears": rows, "summary": summary, "provenance": self.provenance}
        if embedding_rows:
            record["embeddings"] = embedding_rows
        return record
