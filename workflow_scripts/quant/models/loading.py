"""A checkpoint as plain transformers loads it."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quant.models.importing import uncollected

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(checkpoint: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The causal language model, ready to run. checkpoint: its folder, or a GGUF file."""
    if checkpoint.is_file():
        return load_gguf(checkpoint, device, dtype)
    quantised = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    fp4 = any("fp4" in name for name in formats_of(quantised or {}))
    with uncollected():
        from transformers import AutoModelForCausalLM

        if quantised:
            import compressed_tensors  # noqa: F401  (which transformers would import, in more time)
    # where it was imported before, its rounding to E2M1 is compiled, and done to weights that are not yet there
    with torch.compiler.set_stance("force_eager") if fp4 else contextlib.nullcontext():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    plain: nn.Module = model  # whose `to` has a type
    plain.to(device)
    if fp4:
        quantizer: Any = model.hf_quantizer
        quantizer.compressor.decompress_model(model)  # to bfloat16, whatever dtype is asked for
        plain.to(dtype)
    return model.eval()


def load_gguf(path: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """What plain transformers makes of a GGUF file; ValueError where that lacks a weight, which it would draw."""
    with uncollected():
        from transformers import AutoModelForCausalLM

    folder, name = path.parent, path.name
    made: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, output_loading_info=True)
    model, found = made
    if lost := sorted(found["missing_keys"]):
        raise ValueError(f"transformers finds no {lost[0]} in it")
    return model.to(device).eval()


def formats_of(config: dict[str, Any]) -> set[str]:
    """The formats that a quantization_config names."""
    groups = config.get("config_groups") or {}
    return {str(each.get("format")) for each in (config, *groups.values())}
