"""Checkpoints whose weights are quantised already, however that is said: refused, since what they would be compared
with is no longer there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.files.given import AGAIN, json_object

FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # AutoGPTQ's, AutoAWQ's, ModelOpt's
NAMES = {  # endings of tensors that only such a checkpoint holds, and whose they are
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or compressed-tensors",
    "_blocks": "MXFP4",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
}


def method_of(entry: Any) -> str:
    """What a quantization_config calls itself."""
    if not isinstance(entry, dict):
        return str(entry)
    nested = entry.get("quantization")
    found = entry.get("quant_method") or entry.get("quant_algo")
    return str(found or (method_of(nested) if isinstance(nested, dict) else "unknown"))


def refuse(method: str, where: str) -> None:
    method = method.upper() if method in ("gptq", "awq", "fp8") else method
    raise InputError(f"{where}: its weights are quantised already ({method}); give the unquantised model")


def check_config(config: dict[str, Any], where: str) -> None:
    stored = config.get("quantization_config") or config.get("compression_config")
    mlx = config.get("quantization")
    if stored or mlx:
        method = method_of(stored) if stored else "unknown"
        refuse("MLX" if mlx and method == "unknown" else method, where)


def check_files(folder: Path) -> None:
    """A file of its own, beside a config.json that says nothing."""
    for name in FILES:
        if (folder / name).is_file():
            method = method_of(json_object(folder / name, AGAIN))
            words = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
            refuse(words.get(name, name) if method == "unknown" else method, str(folder))


def check_names(names: Iterable[str], where: str) -> None:
    """Tensors that nobody announced."""
    for name in sorted(names):
        for ending, method in NAMES.items():
            if name.endswith(ending):
                refuse(f"{method}: it holds {name}", where)
