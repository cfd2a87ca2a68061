"""The default study, and a folder to name models and texts in."""

import copy
from pathlib import Path
from typing import Any

import pytest

from quant.workflow import configuration, paths
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return configuration.load(paths.named_texts(copy.deepcopy(DEFAULT)), SCHEMA)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's directory, a GGUF file, another file and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "My Model").mkdir()
    (tmp_path / "My Model/config.json").touch()
    (tmp_path / "model.Q4_0.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "model.bin").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("\n\n".join(f"{i} and " * 20 for i in range(90)))
    return tmp_path
