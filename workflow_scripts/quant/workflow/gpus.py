"""Whether jobs ask for a GPU and how many may at once, found out without importing torch, which takes seconds."""

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.runtime import cards


def torch_is_for_gpus(version_file: Path | None) -> bool:
    """Whether a torch, given its version.py, was built for CUDA or ROCm; true where that is not said."""
    if version_file is None or not version_file.is_file():
        return True
    said = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(.*?) *$", version_file.read_text(encoding="utf-8"), re.MULTILINE))
    return not said or any(value != "None" for value in said.values())


@functools.cache
def here() -> int:
    """GPUs on which jobs on this machine would compute."""
    _, found = cards.visible(os.environ)
    if not found:
        return 0
    torch = importlib.util.find_spec("torch")
    version = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    return len(found) if torch_is_for_gpus(version) else 0


def wanted(device: str, cluster: bool) -> int:
    """GPUs of a job that can use one: as many as hold back other jobs. A cluster's nodes may have what the machine that
    submits does not, so there only `device: cpu` asks for none."""
    return int(device == "cuda" or (device == "auto" and (cluster or here() > 0)))


def threads(most: int, cores: int | None, limits: Mapping[str, Any]) -> int:
    """CPU threads of a job: so few that the cores hold back none of the jobs that may use GPUs at once."""
    if cores is None or "gpu" not in limits or not here():
        return most
    return max(1, min(most, cores // max(1, limits["gpu"].value)))


def paired(most: int, cores: int | None) -> int:
    """CPU threads of a job that reads a model on one core before it computes on all: where the cores are a CPU's own,
    half of them, so that of two jobs side by side one works while the other reads."""
    return most if cores is None or here() else max(1, min(most, cores) // 2)


def shards(wanted: int | str, limits: Mapping[str, Any]) -> int:
    """Jobs that a pass over texts is split into; `auto`: as many as may use a GPU at once, where that is said."""
    if wanted != "auto":
        return int(wanted)
    return max(1, limits["gpu"].value) if "gpu" in limits else 1
