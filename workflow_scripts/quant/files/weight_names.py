"""What a checkpoint's files of weights are called, and how large one may be. Without torch."""

import os
import re
from pathlib import Path

LIMIT = int(os.environ.get("SHARD_BYTES", 5 * 10**9))  # of tensors in a file; tests have smaller ones
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
NAMES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def is_weights(path: Path) -> bool:
    """Whether a file of a checkpoint directory holds weights, or is their index."""
    return NAMES.fullmatch(path.name) is not None


def shard(i: int, n: int) -> str:
    """The i-th of n, from 1."""
    return f"model-{i:05d}-of-{n:05d}.safetensors"
