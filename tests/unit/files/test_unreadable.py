"""A file that may not be read is named in one line, whatever reads it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers  # noqa: F401  (imported while everything may be read)

from quant.data import texts, tokens
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.models.conversion.convert import convert
from quant.workflow.job import job
from tests import tiny


@contextlib.contextmanager
def no_root() -> Iterator[None]:
    """Root may read everything; for a while this process is somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def from_directory() -> None:
    convert({"directory": "model"}, Path("out/checkpoint"), "out/convert.json")


def from_gguf() -> None:
    convert({"gguf": {"path": "model.gguf"}}, Path("out/checkpoint"), "out/convert.json")


def as_bin() -> None:
    Path("model/model.safetensors").unlink()
    torch.save({"x": torch.ones(2)}, "model/pytorch_model.bin")


def opened() -> None:
    with tensorfile.opened("tokens.safetensors"):
        pass


READERS: dict[str, Callable[[], object]] = {
    "model/config.json": from_directory,
    "model/model.safetensors": from_directory,
    "model/pytorch_model.bin": from_directory,
    "model/tokenizer.json": from_directory,
    "model.gguf": from_gguf,
    "text.txt": lambda: texts.read_texts({"files": ["text.txt"]}),
    "tokens.safetensors": lambda: tokens.load("tokens.safetensors"),
    "record.json": lambda: read_json("record.json"),
    "table.csv": lambda: pd.read_csv("table.csv"),
}


@pytest.mark.parametrize("name", READERS)
def test_an_unreadable_file_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    tiny.save_model(tmp_path / "model", num_hidden_layers=1)
    for file in (tmp_path / "model").iterdir():
        file.chmod(0o644)
    if name.endswith(".bin"):
        as_bin()
    tokens.save("tokens.safetensors", [torch.arange(4)], {})
    for plain in ("model.gguf", "text.txt", "record.json", "table.csv"):
        Path(plain).write_text("1\n")
    Path(name).chmod(0)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", None)  # job's own stay in its place
    with no_root(), pytest.raises(SystemExit), job("log.txt"):
        READERS[name]()
    lines = [line for line in Path("log.txt").read_text().splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1 and name in lines[0] and "ermission denied" in lines[0], lines
    assert "Traceback" not in Path("log.txt").read_text()
