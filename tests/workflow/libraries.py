"""A library's checkpoints of a tiny model, and its own code's reading of them."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant.data import tokens
from quant.methods import library
from quant.methods.source import Output, Source
from tests import jobs, tiny

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "initializer_range": 0.15}


class Made:
    """A tiny Llama with grouped queries, and a library's checkpoints of it; python: the environment's with its modules
    loaded, which all runs are forks of but a fresh one."""

    def __init__(self, folder: Path, environment: Path, python: Path, recipe: dict) -> None:
        self.folder, self.environment, self.recipe, self.python = folder, environment, recipe, python
        self.loaded = folder / "environment"
        self.loaded.mkdir()
        (self.loaded / "complete").write_text(f"{python}\n")
        self.finished: dict[str, tuple[dict, dict[str, torch.Tensor]]] = {}
        self.source = tiny.save_model(folder / "source", num_key_value_heads=2, **SHAPE)
        names = load_file(self.source / "model.safetensors")
        self.linears = {name.removesuffix(".weight"): int(name.split(".")[2]) for name in names if "_proj" in name}
        sequences = list(torch.randint(3, 200, (8, 24), generator=torch.Generator().manual_seed(0)))
        tokens.save(folder / "tokens.safetensors", sequences, {"model_fingerprint": "its own"})

    def quantise(self, name: str, fresh: bool = False, **changes: object) -> tuple[dict, dict[str, torch.Tensor]]:
        """The record, and the checkpoint's tensors."""
        target = self.folder / name / "target"
        target.mkdir(parents=True)
        recipe = self.recipe | changes
        record = library.quantize_library(
            Source(self.source, self.linears), Output(target, self.folder / name / "folds.safetensors"),
            self.folder / "tokens.safetensors", self.environment if fresh else self.loaded,
            {"recipe": recipe, "seed": recipe["seed"], "versions": {}, "model_fingerprint": "its own"}, "cpu", 96,
        )  # fmt: skip
        assert not load_file(self.folder / name / "folds.safetensors")
        made = record, load_file(target / "model.safetensors")
        self.finished.setdefault(repr(changes), made)
        return made

    def first(self, **changes: object) -> tuple[dict, dict[str, torch.Tensor]]:
        """Of the first run with these changes, which takes half a minute."""
        return self.finished.get(repr(changes)) or self.quantise(f"first{changes}", **changes)


@contextlib.contextmanager
def loaded(environment: Path, *modules: str) -> Iterator[Path]:
    """A Python of that environment that has imported these, and what a tiny Llama needs of transformers."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    modules = ("transformers.models.llama.modeling_llama", *modules)
    server = jobs.Server({**os.environ, **offline}, modules, environment / "bin/python")
    yield server.python
    server.close()


def weights_by(python: Path, code: str, out: Path, *arguments: object) -> dict[str, torch.Tensor]:
    """What the library's own code makes of arguments and, the last of them, `out`."""
    script = out.with_name("decode.py")
    script.write_text(code)
    done = subprocess.run([python, script, *map(str, arguments), out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(out)


def left_by(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Path]:
    """What a library leaves from now on, kept before it is read: its packed files."""
    left: list[Path] = []
    work = library.run_worker

    def run(python: Path, name: str, title: str, job: dict, at: Path) -> dict:
        result = work(python, name, title, job, at)
        left.append(Path(shutil.copytree(job["out"], folder / f"left{len(left)}")) / "model.safetensors")
        return result

    monkeypatch.setattr(library, "run_worker", run)
    return left
