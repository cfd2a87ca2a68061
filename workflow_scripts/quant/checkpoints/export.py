"""A checkpoint in the formats of other tools, each a module of `formats/`.

Codes and steps go over as they are; what a format cannot hold exactly is refused in one line. Each file is read back
after it is written, and the largest deviation from the checkpoint, in steps, stands in the record.
"""

import json
from pathlib import Path
from typing import Any

import torch

from quant.checkpoints import stored
from quant.checkpoints.around import copy_others
from quant.checkpoints.formats.awq import awq
from quant.checkpoints.formats.dense import dense, dense_type
from quant.checkpoints.formats.gguf import gguf
from quant.files.artifacts import read_json


def type_of(checkpoint: Path, kind: str) -> torch.dtype | None:
    """That activations of an export run in; None where its readers choose."""
    if kind == "gguf":
        return None
    with stored.opened(checkpoint) as held:
        return torch.float16 if kind == "awq" else dense_type(held)


def export(checkpoint: Path, target: Path, kind: str, model_fingerprint: str) -> dict[str, Any]:
    """`dense`, `awq` or `gguf` from a method's checkpoint into `target`, with its tokenizer; returns what to record."""
    config = read_json(checkpoint / "config.json")
    target.mkdir(parents=True, exist_ok=True)
    with stored.opened(checkpoint, model_fingerprint) as held:
        if kind == "gguf":
            made = gguf(held, config, target, checkpoint)
        else:
            made = {"dense": dense, "awq": awq}[kind](held, config, target)
            copy_others(checkpoint, target)
        provenance = json.loads(held.file.metadata["provenance"])
    size = sum(file.stat().st_size for file in target.glob("model*") if file.suffix != ".json") / 1e6
    return {"format": kind, "size_mb": size, **made, "provenance": provenance}
