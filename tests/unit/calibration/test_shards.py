"""Statistics from shards against those of one pass."""

from pathlib import Path

import pytest
import torch

from quant.calibration.material import Material
from quant.calibration.shards import Part, collect_shard, sum_shards
from quant.calibration.statistics import collect
from quant.data.tokens import Shard, Tokens, fingerprint
from quant.errors import InputError
from tests.conftest import Captured
from tests.unit.calibration.in_shards import COMPUTE, NAMES, in_shards, same


@pytest.fixture
def material(tiny_checkpoint: Path, captured: Captured) -> Material:
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    return Material(tiny_checkpoint, tokens, {"model_fingerprint": "m"})


@pytest.mark.parametrize("shards", [1, 3, 9])  # of 7 sequences
def test_any_number_gives_the_same_statistics(material: Material, tmp_path: Path, shards: int) -> None:
    whole = [f"{tmp_path}/{name}" for name in NAMES]
    collect(material, whole[0], whole[1], COMPUTE, whole[2])
    same(in_shards(material, shards, tmp_path), whole)


def test_one_number_gives_the_same_bytes(material: Material, tmp_path: Path) -> None:
    first, second = (in_shards(material, 2, tmp_path / name) for name in ("a", "b"))
    assert all(Path(a).read_bytes() == Path(b).read_bytes() for a, b in zip(first, second, strict=True))


def test_a_shard_of_something_else_is_refused(material: Material, tmp_path: Path) -> None:
    parts = [Part(f"{tmp_path}/{i}.sums", f"{tmp_path}/{i}.moments") for i in range(2)]
    for i, part in enumerate(parts):
        collect_shard(material, Shard(i, 2), part, COMPUTE)
    out = [f"{tmp_path}/{name}.safetensors" for name in NAMES]
    with pytest.raises(InputError, match="another shard "):
        sum_shards(material, parts[::-1], *out, COMPUTE)  # type: ignore[misc]
    with pytest.raises(InputError, match="another shards "):
        sum_shards(material, parts[:1], *out, COMPUTE)  # type: ignore[misc]
    other = material._replace(made_from={"model_fingerprint": "n"})
    with pytest.raises(InputError, match="another model_fingerprint"):
        sum_shards(other, parts, *out, COMPUTE)  # type: ignore[misc]
    assert not list(tmp_path.glob("*.safetensors"))


def test_shards_are_all_sequences_once() -> None:
    sequences = [torch.tensor([i]) for i in range(11)]
    for shards in (1, 2, 4, 11, 13):
        parts = [Shard(i, shards).of(sequences) for i in range(shards)]
        assert [int(ids) for _, part in parts for ids in part] == list(range(11))
        assert all(int(part[0]) == first for first, part in parts if part)
        assert max(len(part) for _, part in parts) - min(len(part) for _, part in parts) <= 1
