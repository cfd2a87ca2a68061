"""Whether jobs ask for a GPU, found out without importing torch, which takes seconds."""

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

# NVIDIA's cards, WSL's, AMD's
DEVICES = ("dev/nvidia[0-9]*", "dev/dxg", "dev/kfd")
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visible(environment: Mapping[str, str], root: Path) -> bool:
    """Whether the machine has a GPU that its environment does not hide."""
    hidden = any(environment.get(name, "0").strip() in ("", "-1", "none", "NoDevFiles") for name in HIDING)
    return not hidden and any(any(root.glob(pattern)) for pattern in DEVICES)


def torch_is_for_gpus(version_file: Path | None) -> bool:
    """Whether a torch, given its version.py, was built for CUDA or ROCm; true where that is not said."""
    if version_file is None or not version_file.is_file():
        return True
    said = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(.*?) *$", version_file.read_text(encoding="utf-8"), re.MULTILINE))
    return not said or any(value != "None" for value in said.values())


@functools.cache
def here() -> bool:
    """Whether jobs on this machine would compute on a GPU."""
    if not visible(os.environ, Path("/")):
        return False
    found = importlib.util.find_spec("torch")
    return torch_is_for_gpus(Path(found.origin).with_name("version.py") if found and found.origin else None)


def wanted(device: str, cluster: bool) -> int:
    """GPUs of a job that can use one: as many as hold back other jobs. A cluster's nodes may have what the machine that
    submits does not, so there only `device: cpu` asks for none."""
    return int(device == "cuda" or (device == "auto" and (cluster or here())))
