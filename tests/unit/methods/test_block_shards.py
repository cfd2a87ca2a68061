"""A model quantised in shards of its blocks is that of one job, to the bit."""

from pathlib import Path
from typing import Any

import pytest

from quant.calibration.reader import Statistics
from quant.data.tokens import Shard
from quant.errors import InputError
from quant.files import shards, tensorfile
from quant.files.artifacts import read_json
from quant.files.weight_names import INDEX, WEIGHTS
from quant.methods.block_shards import Part, join, quantize_shard
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.conversion.convert import convert
from quant.recipe.recipe import Recipe
from tests import matrix, tiny
from tests.unit.recipe.cases import LINEARS, PATTERNS, PLAIN

MADE: Any = {"model_fingerprint": "tiny"}
RECIPES = {
    "packed": {"group_size": 16},
    "own scales": {"salience": "praq", "n_grid": 4, "group_size": 16},
    "folded": {"salience": "l2", "scope": "shared", "n_grid": 4, "group_size": 16, "rounding": "gptq"},
}


def both(
    source: Path,
    folder: Path,
    linears: dict[str, int],
    paths: dict[str, str],
    recipe: Recipe,
    n: int,
    unpacked: dict[str, str],
) -> list[Path]:
    """The checkpoints of one job and of n, held against each other."""

    def statistics() -> Statistics:
        return Statistics(paths, "tiny", PATTERNS)

    one, several = folder / "one", folder / "several"
    own = Source(source, linears, {"a": "b"}, unpacked)
    record = quantize_checkpoint(own, Output(one, folder / "one.folds"), statistics(), recipe, "cpu", MADE)
    parts = [Part(*(f"{folder}/{i}.{kind}" for kind in ("weights", "folds", "record"))) for i in range(n)]
    for i, part in enumerate(parts):
        quantize_shard(own, part, Shard(i, n), statistics(), recipe, "cpu", MADE)
    found = join(own, Output(several, folder / "several.folds"), parts, recipe, "cpu", MADE)
    assert found["provenance"] == record["provenance"]
    for mine, theirs in zip(found["linears"], record["linears"], strict=True):
        assert mine | {"milliseconds": 0} == theirs | {"milliseconds": 0}
    assert found["summary"] | {"quantize_s": 0} == record["summary"] | {"quantize_s": 0}
    assert read_json(one / "config.json") == read_json(several / "config.json")
    with tensorfile.opened(one / WEIGHTS) as a, tensorfile.opened(several / WEIGHTS) as b:
        assert a.mark() == b.mark() and a.metadata == b.metadata
    assert (folder / "one.folds").read_bytes() == (folder / "several.folds").read_bytes()
    if n > 1:
        with pytest.raises(InputError, match="another shard "):
            join(own, Output(several, folder / "x"), parts[::-1], recipe, "cpu", MADE)
    return [one, several]


@pytest.mark.parametrize("name", RECIPES)
def test_shards_give_the_same_checkpoint(
    name: str, tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path
) -> None:
    """One block each, and more shards than blocks."""
    paths = {} if name == "packed" else statistics
    for n in (2, 3):
        (tmp_path / str(n)).mkdir()
        recipe = Recipe.of(PLAIN | RECIPES[name])
        one, several = both(tiny_checkpoint, tmp_path / str(n), LINEARS, paths, recipe, n, {})
        assert (one / WEIGHTS).read_bytes() == (several / WEIGHTS).read_bytes()


def test_with_pieces_into_files_of_some_tensors_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that files hold whole."""
    matrix.build("gpt_oss").save_pretrained(tmp_path / "model")
    tiny.save_byte_tokenizer(tmp_path / "model")
    monkeypatch.setattr(shards, "LIMIT", 10_000)
    folder = tmp_path / "original"
    convert({"directory": str(tmp_path / "model")}, folder / "checkpoint", folder / "convert.json", weights=INDEX)
    record = tiny.read(folder / "convert.json")
    linears = record["linears"]
    recipe = Recipe.of(PLAIN | {"group_size": 8, "symmetric": True})
    one, several = both(folder / "checkpoint", tmp_path, linears, {}, recipe, 2, record["unpacked"])
    assert len(list(one.glob("*.safetensors"))) > 2
    for file in one.glob("*.safetensors"):
        assert file.read_bytes() == (several / file.name).read_bytes()
