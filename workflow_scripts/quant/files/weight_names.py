"""What a checkpoint's files of weights are called, how large one may be, and which weights are experts'. No torch."""

import os
import re
from pathlib import Path

LIMIT = int(os.environ.get("SHARD_BYTES", 5 * 10**9))  # of tensors in a file; tests have smaller ones
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
EXPERTS = re.compile(r"(.*\.experts)\.")
NAMES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def is_weights(path: Path) -> bool:
    """Whether a file of a checkpoint directory holds weights, or is their index."""
    return NAMES.fullmatch(path.name) is not None


def experts_of(name: str) -> str | None:
    """The module of experts that a linear or tensor is within; None where it is of none."""
    found = EXPERTS.match(name)
    return None if found is None else found[1]


def shard(i: int, n: int) -> str:
    """The i-th of n, from 1."""
    return f"model-{i:05d}-of-{n:05d}.safetensors"
