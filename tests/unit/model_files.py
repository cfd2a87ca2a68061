"""Sources of models for convert, whole ones and ones to damage, and what becomes of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from quant.errors import InputError
from quant.models.conversion import convert
from tests import tiny

Change = Callable[[Path], object]
REVISION = "0" * 40
IDS = torch.arange(3, 40)[None]


def build(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random tiny Llama whose norms are not all ones, in one safetensors file."""
    tiny.save_model(folder, **changes)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: (value + 0.3 * torch.randn(value.shape, generator=generator) if value.ndim == 1 else value).to(dtype)
        for name, value in tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, dtype=str(dtype).removeprefix("torch."))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_bin(folder: Path) -> dict[str, Tensor]:
    """Rewrites a model as pytorch_model.bin."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def to_shards(folder: Path, ending: str) -> list[Path]:
    """Rewrites a model as three shards and their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    files = [folder / f"{stem}-0000{i + 1}-of-00003.{ending}" for i in range(3)]
    weight_map = {name: files[i % 3].name for i, name in enumerate(tensors)}
    for file in files:
        part = {name: value for name, value in tensors.items() if weight_map[name] == file.name}
        save_file(part, file, {"format": "pt"}) if ending == "safetensors" else torch.save(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def run(source: dict[str, Any], results: Path) -> tuple[Path, dict[str, Any]]:
    """Converts; returns the checkpoint and its record."""
    convert.convert(source, results / "original/checkpoint", results / "original/convert.json")
    return results / "original/checkpoint", tiny.read(results / "original/convert.json")


def refusal(source: Path | dict[str, Any], results: Path) -> str:
    """The one line that refuses a source, after which no file is left."""
    with pytest.raises(InputError) as caught:
        run({"directory": str(source)} if isinstance(source, Path) else source, results)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    assert [path for path in results.rglob("*") if path.is_file()] == []
    return text


@torch.inference_mode()
def logits(folder: Path, dtype: Any = "auto") -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(IDS).logits


class Evil:
    """Runs a command when a pickle that holds it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def hub_text(path: str) -> dict[str, Any]:
    return {"hub": {"path": path, "split": "train", "text_column": "text", "revision": REVISION}}
