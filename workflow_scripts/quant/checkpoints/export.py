"""A checkpoint in the formats of other tools, each a module of `formats/`.

Codes and steps go over as they are; what a format cannot hold exactly is refused in one line. Each file is read back
after it is written, and the largest deviation from the checkpoint, in steps, stands in the record.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints import stored
from quant.checkpoints.formats.awq import awq
from quant.checkpoints.formats.dense import dense
from quant.checkpoints.formats.gguf import gguf
from quant.errors import InputError
from quant.files import shards
from quant.files.artifacts import copy, read_json
from quant.files.weight_names import is_weights


def try_forward(checkpoint: Path, dtype: torch.dtype, what: str) -> None:
    """Refuses an export whose activations leave the type that it is written in, by the first module that they leave it
    in: a forward pass of a few tokens, of the checkpoint that it is made from."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    ids = torch.arange(32)[None] % model.config.get_text_config().vocab_size
    left: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not left and not torch.isfinite(out).all():
                left.append(name)

        return hook

    with torch.inference_mode():
        model(ids)  # packed weights are unpacked at the first forward pass
        model.to(dtype)
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                module.register_forward_hook(note(name))
        finite = bool(torch.isfinite(model(ids).logits).all())
    if not finite:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(
            f"{checkpoint}: activations leave {kind}, which {what} is written in, first in {(left or ['its head'])[0]}"
            f"; {'export dense' if what == 'awq' else 'give the model in bfloat16 or float32'}"
        )


def export(checkpoint: Path, target: Path, kind: str, model_fingerprint: str) -> dict[str, Any]:
    """`dense`, `awq` or `gguf` from a method's checkpoint into `target`, with its tokenizer; returns what to record."""
    config = read_json(checkpoint / "config.json")
    target.mkdir(parents=True, exist_ok=True)
    with stored.opened(checkpoint, model_fingerprint) as held:
        if kind == "gguf":
            made = gguf(held, config, target, checkpoint)
        else:
            made = {"dense": dense, "awq": awq}[kind](held, config, target)
            written = made.get("dtype") or config.get("dtype") or "float32"
            try:
                try_forward(checkpoint, torch.float16 if kind == "awq" else getattr(torch, written), kind)
            except InputError:
                shards.remove(target)
                (target / "config.json").unlink()
                raise
            for file in checkpoint.iterdir():
                if file.is_file() and not is_weights(file) and file.name not in ("config.json", "README.md"):
                    copy(file, target / file.name)
        provenance = json.loads(held.file.metadata["provenance"])
    size = sum(file.stat().st_size for file in target.glob("model*") if file.suffix != ".json") / 1e6
    return {"format": kind, "size_mb": size, **made, "provenance": provenance}
