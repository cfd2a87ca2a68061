"""What a study's checkpoints call their weights, decided by its models' sizes before any job runs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.files.weight_names import INDEX, LIMIT, WEIGHTS

DEQUANTISED = 8  # a GGUF file's weights in 16 bit are so many times its size, at most


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, by its variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def known_bytes(source: Mapping[str, Any]) -> int:
    """Of a model's weights, as far as its files are there; 0 where none is."""

    def size(files: list[Path]) -> int:
        return sum(file.stat().st_size for file in files if file.is_file())

    if "directory" in source:
        folder = Path(source["directory"])
        return max(size(list(folder.glob(f"*{ending}"))) for ending in (".safetensors", ".bin"))
    if "hub" in source:
        copies = hub_cache().glob(f"models--{source['hub']['id'].replace('/', '--')}/snapshots/*")
        return max((known_bytes({"directory": copy}) for copy in copies), default=0)
    gguf = source["gguf"]
    path = gguf["path"] if "path" in gguf else "results/sources/{package}-{version}.whl".format(**gguf)
    return DEQUANTISED * size([Path(path)])


def file_name(sources: Mapping[str, Mapping[str, Any]], results: Path = Path("results")) -> str:
    """One file of weights, or the index of shards where one of the study's models, by name, is larger than a shard may
    be, or is in shards already."""
    large = any(known_bytes(source) > LIMIT for source in sources.values())
    sharded = any((results / name / "original/checkpoint" / INDEX).is_file() for name in sources)
    return INDEX if large or sharded else WEIGHTS
