"""A checkpoint in shards is the same one, to our reader and to transformers, and is there whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quant.errors import InputError
from quant.files import shards, tensorfile
from quant.files.artifacts import read_json
from quant.files.weight_names import INDEX, WEIGHTS, is_weights
from quant.models.conversion.convert import convert
from quant.models.conversion.record import checkpoint_fingerprint, model_record
from tests import matrix, tiny


def weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if is_weights(file))


def converted(source: Path, folder: Path, name: str) -> Path:
    convert({"directory": str(source)}, folder / "checkpoint", folder / "convert.json", weights=name)
    return folder / "checkpoint"


# one with plain tensors, those that files hold whole, those that they hold under other names
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gpt2", "mixtral"])
def test_shards_are_one_checkpoint(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = matrix.build(kind)
    model.save_pretrained(tmp_path / "model")
    tiny.save_byte_tokenizer(tmp_path / "model")
    whole = converted(tmp_path / "model", tmp_path / "whole", WEIGHTS)
    largest = max(value.nbytes for value in model.state_dict().values())
    monkeypatch.setattr(shards, "LIMIT", 2 * largest)
    several = converted(tmp_path / "model", tmp_path / "several", INDEX)
    index = read_json(several / INDEX)
    parts = weights(several)[:-1]
    assert len(parts) > 1 and [file.name for file in parts] == sorted(set(index["weight_map"].values()))
    with tensorfile.opened(whole / WEIGHTS) as one, tensorfile.opened(several / WEIGHTS) as other:
        assert other.path == several / INDEX
        assert one.layout() == other.layout() and one.names == other.names and one.mark() == other.mark()
        assert all(torch.equal(one.get(name), other.get(name)) for name in sorted(one.names))
        assert {key: one.metadata[key] for key in one.metadata if key != "checksums"} == other.metadata
        assert other.size() == sum(file.stat().st_size for file in parts)
    for file in parts:
        with tensorfile.opened(file) as part:
            total = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in part.layout().values())
            assert total <= 2 * largest
            assert part.names  # its pieces are those of what it holds
    loaded = AutoModelForCausalLM.from_pretrained(several)
    expected = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    record = model_record(several.parent / "convert.json")
    assert record["fingerprint"] == checkpoint_fingerprint(several) != checkpoint_fingerprint(whole)
    # what was there before, in the other form, goes
    converted(tmp_path / "model", tmp_path / "several", WEIGHTS)
    assert [file.name for file in weights(several)] == [WEIGHTS]
    converted(tmp_path / "model", tmp_path / "several", INDEX)
    assert weights(several)[:-1] == parts


def layout(n: int = 6, rows: int = 100) -> tuple[dict[str, torch.Tensor], tensorfile.Layout]:
    tensors = {f"model.layers.{i}.w": torch.full((rows, 10), float(i)) for i in range(n)}
    return tensors, {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def test_shards_are_in_the_order_of_blocks_and_a_large_tensor_has_one() -> None:
    _, of = layout(12)
    of["model.layers.3.w"] = (torch.float32, (1000, 10))
    found = [[name.split(".")[2] for name in part] for part in shards.split(of, 8000)]
    assert found == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6", "7"], ["8", "9"], ["10", "11"]]


def test_what_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LIMIT", 8000)
    tensors, of = layout()
    with pytest.raises(RuntimeError, match="broke"), shards.writing(tmp_path / INDEX, of, {}) as out:
        for name in list(tensors)[:3]:
            out.put(name, tensors[name])
        raise RuntimeError("broke off")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="never written"), shards.writing(tmp_path / INDEX, of, {}) as out:
        out.put("model.layers.0.w", tensors["model.layers.0.w"])
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from quant.files import shards
tensors = {f"model.layers.{i}.w": torch.full((100, 10), float(i)) for i in range(6)}
of = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
replaced = Path.replace
def replace(self, target):
    replaced(self, target)
    if sys.argv[2] == "naming" and "00002" in self.name:
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = replace
with shards.writing(Path(sys.argv[1]), of, {}) as out:
    for i, (name, tensor) in enumerate(tensors.items()):
        out.put(name, tensor)
        if sys.argv[2] == "writing" and i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "naming"])
def test_a_killed_job_leaves_no_checkpoint(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it dies among tensors or among names; the next job leaves its own and nothing else."""
    tensors, _ = layout()
    monkeypatch.setattr(shards, "LIMIT", 8000)
    shards.save(tmp_path / INDEX, {"earlier.w": torch.ones(3000)}, {})
    environment = os.environ | {"SHARD_BYTES": "8000", "PYTHONPATH": str(tiny.ROOT / "workflow_scripts")}
    command = [sys.executable, "-c", KILLED, str(tmp_path / INDEX), when]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    if when == "writing":  # the earlier one is untouched
        with tensorfile.opened(tmp_path / WEIGHTS) as file:
            assert file.names == {"earlier.w"}
    else:
        with pytest.raises(InputError, match="no such file"), tensorfile.opened(tmp_path / WEIGHTS):
            pass
    shards.save(tmp_path / INDEX, tensors, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        INDEX,
    ]
    with tensorfile.opened(tmp_path / WEIGHTS) as file:
        assert all(torch.equal(file.get(name), value) for name, value in tensors.items())


def test_damage_is_refused_with_what_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LIMIT", 8000)
    tensors, _ = layout()
    shards.save(tmp_path / INDEX, tensors, {})
    second = tmp_path / "model-00002-of-00003.safetensors"
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    with pytest.raises(InputError, match=rf"layers\.3.*checksum.*--force {tmp_path / INDEX}"):
        tensorfile.verify(tmp_path / WEIGHTS)
    second.unlink()
    with pytest.raises(InputError, match=rf"00002.*no such file.*--force {tmp_path / INDEX}"):
        tensorfile.verify(tmp_path / WEIGHTS)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(InputError, match="names no shards"):
        tensorfile.verify(tmp_path / WEIGHTS)


def test_another_content_is_another_index(tmp_path: Path) -> None:
    """By which Snakemake sees it."""
    said: list[dict[str, Any]] = []
    for value in (1.0, 2.0, 1.0):
        shards.save(tmp_path / INDEX, {"w": torch.full((3,), value)}, {})
        said.append(read_json(tmp_path / INDEX))
    assert said[0] == said[2] != said[1]
