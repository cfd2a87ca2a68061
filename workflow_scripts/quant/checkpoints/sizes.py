"""What a checkpoint's bytes are spent on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quant.files import tensorfile
from quant.models.structure.experts import held
from quant.records.evaluation import Sizes

PARTS = ("linears", "embeddings", "head", "other")
GGUF_PARTS = {"token_embd.weight": "embeddings", "output.weight": "head"}


def part_of(tensor: str, model: Any) -> str:
    """One of PARTS: of an nn.Linear (packed or not, its bias too), an nn.Embedding, the output head, or the rest.

    A head tied to the embeddings has no tensor of its own.
    """
    from transformers.pytorch_utils import Conv1D

    name = tensor.rpartition(".")[0]
    try:
        module = model.get_submodule(name)
    except AttributeError:  # stored under a name that the model turns into another
        return "linears" if any(name.startswith(f"{path}.") for path in held(model)) else "other"
    if module is model.get_output_embeddings():
        return "head"
    if isinstance(module, (nn.Linear, Conv1D)):
        return "linears"
    return "embeddings" if isinstance(module, nn.Embedding) else "other"


def parts_mb(weights: Path, model: nn.Module) -> Sizes:
    """10⁶ bytes of each of PARTS in a safetensors file, its header with `other`, so that they add up to its size."""
    found = dict.fromkeys(PARTS, 0)
    with tensorfile.opened(weights) as file:
        for name, (dtype, shape) in file.layout().items():
            found[part_of(name, model)] += dtype.itemsize * torch.Size(shape).numel()
        found["other"] += file.size() - sum(found.values())
    return in_mb(found)


def in_mb(found: Mapping[str, int]) -> Sizes:
    """Of bytes of each of PARTS."""
    linears, embeddings, head, other = (found[part] / 1e6 for part in PARTS)
    return {"linears_mb": linears, "embeddings_mb": embeddings, "head_mb": head, "other_mb": other}


def gguf_mb(tensors: Mapping[str, int], size: int) -> Sizes:
    """Of a GGUF file. tensors: the bytes of each; size: of the whole, 10⁶ bytes of which that are no tensor's count as
    other, tokenizer and header."""
    found = dict.fromkeys(PARTS, 0)
    for name, n in tensors.items():
        matrix = name.startswith("blk.") and "norm" not in name
        found["linears" if matrix else GGUF_PARTS.get(name, "other")] += n
    return in_mb(found | {"other": size - sum(found.values()) + found["other"]})


def parts_of(record: Mapping[str, Any]) -> Sizes:
    """Those that a record has."""
    linears, embeddings, head, other = (record[f"{part}_mb"] for part in PARTS)
    return {"linears_mb": linears, "embeddings_mb": embeddings, "head_mb": head, "other_mb": other}
