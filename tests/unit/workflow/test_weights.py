"""Checkpoints are in shards where a model is known to be larger than one."""

from pathlib import Path
from typing import Any

import pytest

from quant.files.weight_names import INDEX, WEIGHTS
from quant.workflow import weights


def file_of(path: Path, n: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * n)
    return path


@pytest.mark.parametrize(("n", "expected"), [(60, WEIGHTS), (61, INDEX)])
def test_by_the_size_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, expected: str) -> None:
    monkeypatch.setattr(weights, "LIMIT", 120)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path / "two/a.safetensors", n)
    file_of(tmp_path / "two/b.safetensors", 60)
    file_of(tmp_path / "two/pytorch_model.bin", 30)  # the same in another form
    file_of(tmp_path / "hub/models--o--m/snapshots/1a/model.safetensors", 60 + n)
    file_of(tmp_path / "a.gguf", 7 if n == 60 else 16)
    file_of(tmp_path / "results/sources/p-1.whl", 7 if n == 60 else 16)
    sources: list[dict[str, Any]] = [
        {"directory": str(tmp_path / "two")},
        {"hub": {"id": "o/m", "revision": "main"}},
        {"gguf": {"path": str(tmp_path / "a.gguf")}},
        {"gguf": {"package": "p", "version": "1", "member": "m.gguf"}},
    ]
    for source in sources:
        assert weights.file_name({"small": {"directory": str(tmp_path / "none")}, "m": source}) == expected
    unknown = {"m": {"hub": {"id": "o/other", "revision": "main"}}}
    assert weights.file_name(unknown) == WEIGHTS
    file_of(tmp_path / "results/m/original/checkpoint" / INDEX, 2)
    assert weights.file_name(unknown) == INDEX
