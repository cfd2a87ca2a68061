"""Whether a method will have an export of a kind, before it is quantised."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from quant.checkpoints.embeddings import wanted
from quant.checkpoints.formats import awq, gguf
from quant.errors import InputError
from quant.files.artifacts import read_json
from quant.files.tensorfile import Layout
from quant.methods.dense import recipes_of, shapes_of
from quant.methods.packing import why_dense
from quant.recipe.libraries import library_of
from quant.records.model import Linears

FORMATS = {"awq": "AutoAWQ's layout", "gguf": "GGUF"}


class NoExport(NamedTuple):
    """Why there is none, and what to write instead."""

    reason: str
    advice: str = "export dense, or another method"

    @classmethod
    def of(cls, error: InputError) -> "NoExport":
        """Of what an export itself says."""
        found = re.fullmatch("(.*?)[;:] (export .*)", str(error), re.DOTALL)
        return cls(*found.groups()) if found else cls(str(error))


def why_no_export(
    kind: str, entry: dict[str, Any], checkpoint: Path, record: Linears, layout: Layout
) -> NoExport | None:
    """Why there is none, as far as the recipe (entry) and the unquantised checkpoint say, its record and its layout;
    None where there will be one, as always of dense weights."""
    if kind not in FORMATS:
        return None
    if (library := library_of(entry)) is not None:
        return NoExport(f"a checkpoint of {library.title} is stored dense, and {FORMATS[kind]} stores codes")
    shapes = shapes_of(record["linears"], layout)
    config = read_json(checkpoint / "config.json")
    own = entry["embeddings"] and entry["embeddings"] | {"needed": False}  # where they cannot be, others say so
    ends = wanted(own, record["embeddings"], layout)
    if ends and kind == "awq":
        return NoExport(awq.embedding_left(ends[0].name), "export dense or gguf")
    for recipe in recipes_of(entry):
        if recipe is None:
            continue
        if reason := why_dense(recipe, shapes, record["unpacked"]):
            return NoExport(f"its weights would be stored dense, and {FORMATS[kind]} stores codes: {reason}")
        grids = {name: recipe.at(name).grid for name in shapes} | {end.name: end.grid for end in ends}
        try:
            {"awq": awq, "gguf": gguf}[kind].check(config, checkpoint, layout, grids)
        except InputError as error:
            return NoExport.of(error)
    return None


def why_unmeasured(checkpoint: Path, layout: Layout) -> str | None:
    """Why transformers would measure another model in a GGUF file of this one; None where it would not."""
    reason = gguf.why_unread(read_json(checkpoint / "config.json"), checkpoint, layout)
    return reason and f"{reason}, so that it cannot be measured; export it for llama.cpp, which reads it"
