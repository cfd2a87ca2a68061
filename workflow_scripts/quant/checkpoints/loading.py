"""A checkpoint as plain transformers loads it."""

import contextlib
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quant.models.sources.gguf_hyperparameters import scales_positions
from quant.runtime.importing import uncollected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
OF_PACKED = ("_packed", "_scale", "_zero_point", "_global_scale", "_shape")  # ends of a packed weight's tensors


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
        made: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
    model, found = made
    refuse_unread(model, found)
    plain: nn.Module = model  # whose `to` has a type
    plain.to(device)
    if fp4:
        quantizer: Any = model.hf_quantizer
        quantizer.compressor.decompress_model(model)  # to bfloat16, whatever dtype is asked for
        plain.to(dtype)
    elif quantised:  # of packed experts and of what stands beside them some stay in the file's type
        for value in plain.parameters():
            if value.dtype in FLOATS:
                value.data = value.data.to(dtype)
    let_go(model)
    return model.eval()


def let_go(model: nn.Module) -> None:
    """Modules that have a method of their own in place of their class's (compressed_tensors) hold themselves by it, and
    their weights would wait for the collector: from now on it finds them by a weak reference."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, MethodType) and own.__self__ is module:
            vars(module)["forward"] = partial(forwarded, own.__func__, weakref.ref(module))


def forwarded(forward: Callable[..., Any], module: "weakref.ref[nn.Module]", *args: Any, **kwargs: Any) -> Any:
    return forward(module(), *args, **kwargs)


def load_gguf(path: Path, device: str, dtype: torch.dtype) -> "PreTrainedModel":
    """What plain transformers makes of a GGUF file; ValueError where it passes over a part."""
    from gguf import GGUFReader

    with uncollected():
        from transformers import AutoModelForCausalLM

    folder, name = path.parent, path.name
    reader = GGUFReader(path)
    if scales_positions(reader):
        raise ValueError("transformers passes over what scales its rotary positions")
    made: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype, output_loading_info=True)
    model, found = made
    refuse_unread(model, found)
    # gate and up of a layer's experts are one parameter
    names = {tensor.name.replace("ffn_up_exps", "ffn_gate_exps") for tensor in reader.tensors}
    if (read := len(list(model.parameters()))) < (held := len(names)):
        raise ValueError(f"transformers reads {read} of its {held} tensors")
    return model.to(device).eval()


def refuse_unread(model: nn.Module, found: dict[str, Any]) -> None:
    """ValueError where a file lacks a weight, which transformers draws, or holds a part of a packed one that it passes
    over. found: its loading info."""
    weights = {name for name, value in model.named_parameters() if value.numel() > 1}  # Gemma's embed_scale is a number
    if lost := sorted(weights & set(found["missing_keys"])):
        raise ValueError(f"transformers finds no {lost[0]} in it")
    if passed := sorted(name for name in map(str, found["unexpected_keys"]) if name.endswith(OF_PACKED)):
        raise ValueError(f"transformers does not read its {passed[0]}")


def formats_of(config: dict[str, Any]) -> set[str]:
    """The formats that a quantization_config names."""
    groups = config.get("config_groups") or {}
    return {str(each.get("format")) for each in (config, *groups.values())}
