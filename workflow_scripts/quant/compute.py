"""Where and in what precision forward passes run."""

from pathlib import Path

import torch

from quant.artifacts import read_json


def device(wanted: str) -> str:
    """`auto`: the first GPU when there is one, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype(wanted: str, device: str, checkpoint: Path) -> torch.dtype:
    """`auto`: float32 on a CPU, the checkpoint's own type on a GPU."""
    if wanted == "auto":
        config = read_json(checkpoint / "config.json")
        wanted = "float32" if device == "cpu" else config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, wanted)


def batch_tokens(wanted: int | str, device: str) -> int:
    """`auto`: what was fastest of 512 to 4,096 for a small model on a CPU, and enough to fill a GPU."""
    if wanted != "auto":
        return int(wanted)
    return 1024 if device == "cpu" else 16384
