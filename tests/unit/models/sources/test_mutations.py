"""Bad input at scale: whatever a configuration or a model directory holds ends in a valid one or in one line."""

import copy
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quant.errors import InputError
from quant.files.artifacts import digest
from quant.models.conversion.convert import convert
from quant.workflow import configuration
from tests import tiny
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NASTY = [
    "",
    " ",
    "..",
    "../up",
    "/etc",
    "a b",
    "<b>x</b>",
    "a;rm -rf",
    "$(id)",
    "RTN_G",
    "original",
    "ä",
    "a\nb",
    "x" * 300,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested tables and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


PLACES = places(DEFAULT)[1:]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.floats(width=32), st.sampled_from(NASTY), st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NASTY), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
WORDS = sorted({str(place[-1]) for place in PLACES if isinstance(place[-1], str)})
KEYS = st.sampled_from([*NASTY, *WORDS, 4, None, True])  # YAML's keys need not be words


def nudged(value: Any) -> Any:
    """Something near a value, likely to be valid: what a user's slip or a bold choice makes of it."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case [first, *rest]:
            return rest or [first, first]
        case dict():
            return dict(list(value.items())[1:])
    return value


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """The default configuration with one to three places replaced, removed, renamed, swapped or added to."""
    config = copy.deepcopy(DEFAULT)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        try:
            parent = at(config, path[:-1])
            old = parent[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
        match draw(st.sampled_from(["replace", "remove", "rename", "swap", "add", "nudge", "nudge", "nudge"])):
            case "nudge":
                parent[path[-1]] = nudged(old)
            case "replace":
                parent[path[-1]] = draw(VALUES)
            case "remove":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(KEYS)] = parent.pop(path[-1])
            case "swap":
                parent[path[-1]] = copy.deepcopy(at(DEFAULT, draw(st.sampled_from(PLACES))))
            case "add" if isinstance(old, dict):
                old[draw(KEYS)] = draw(VALUES)
    assume(config != DEFAULT)
    return config


def outcome(config: Any) -> dict[str, Any] | str:
    """The configuration, or the one line that refuses it."""
    try:
        return configuration.load(config, SCHEMA)
    except InputError as error:
        return str(error)


# what became of each different configuration; of the valid ones, by what they come to
REFUSED: set[str] = set()
VALID: dict[str, Any] = {}


@pytest.mark.slow  # with the next one, which takes what it found
@settings(max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_a_mutated_configuration_is_valid_or_refused_in_one_line(config: Any) -> None:
    found = outcome(config)
    if isinstance(found, str):
        REFUSED.add(repr(config))
        assert found and found.isprintable() and len(found) < 600, found
        return
    for table in ("models", "datasets", "methods"):
        names = list(found[table])
        assert all(NAME.fullmatch(name) and ".." not in name for name in names), "a name is a folder of results/"
        assert len({name.lower() for name in names}) == len(names)
        assert set(found["study"][table]) <= set(names) and found["study"][table]
    assert repr(configuration.load(config, SCHEMA)) == repr(found)
    VALID[repr(found)] = config


@pytest.mark.slow
def test_each_valid_one_makes_a_dag(tmp_path: Path) -> None:
    """By Snakemake itself, in dry runs of a clone whose own configuration it is."""
    assert len(REFUSED) + len(VALID) >= 300 and min(len(REFUSED), len(VALID)) >= 50, (len(REFUSED), len(VALID))
    folder = tiny.clone(tmp_path / "clone")
    (folder / "config.yaml").write_text("{}")

    def dry_run(case: tuple[int, Any]) -> str:
        path = tmp_path / f"{case[0]}.yaml"
        path.write_text(yaml.safe_dump(case[1], sort_keys=False))
        status, said = tiny.dry_run(folder, path)
        return "" if status == 0 and "\ntotal " in said and "Traceback" not in said else f"{case[1]}\n{said}"

    with ThreadPoolExecutor(2) as two:
        wrong = [said for said in two.map(dry_run, enumerate(VALID.values())) if said]
    assert not wrong, wrong[0]


# --- model directories

Change = Callable[[Path, random.Random], str | None]  # returns what the refusal must name besides the directory


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_tensor(change: Callable[[torch.Tensor, random.Random], torch.Tensor]) -> Change:
    """One tensor, drawn at random, changed."""

    def apply(folder: Path, draw: random.Random) -> str:
        tensors = tensors_of(folder)
        name = draw.choice(sorted(tensors))
        tensors[name] = change(tensors[name], draw)
        put(folder, tensors)
        return name

    return apply


def with_number(value: float) -> Change:
    def change(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
        tensor.view(-1)[draw.randrange(tensor.numel())] = value
        return tensor

    return with_tensor(change)


def shard(folder: Path, draw: random.Random) -> dict[str, str]:
    """Splits the weights into two shards with an index; returns its weight map."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    cut = draw.randrange(1, len(names))
    home = {name: f"model-0000{1 + (i >= cut)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(home.values())):
        save_file({name: tensors[name] for name in names if home[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    return home


def write_index(folder: Path, home: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))


def no_shard(folder: Path, draw: random.Random) -> str:
    home = shard(folder, draw)
    write_index(folder, home)
    lost = draw.choice(sorted(set(home.values())))
    (folder / lost).unlink()
    return lost


def wrong_index(folder: Path, draw: random.Random) -> str:
    home = shard(folder, draw)
    name = draw.choice(sorted(home))
    write_index(
        folder, draw.choice([[], {}, home | {name: "../x.safetensors"}, home | {name: 3}, home | {name: "none"}])
    )
    return "model.safetensors.index.json"


def twice(folder: Path, draw: random.Random) -> str:
    """One tensor in both shards."""
    home = shard(folder, draw)
    name = draw.choice(sorted(home))
    other = next(file for file in set(home.values()) if file != home[name])
    tensors = load_file(folder / other) | {name: load_file(folder / home[name])[name]}
    save_file(tensors, folder / other, {"format": "pt"})
    write_index(folder, home)
    return name


def lacks(folder: Path, draw: random.Random) -> str:
    tensors = tensors_of(folder)
    lost = draw.choice(sorted(tensors))
    del tensors[lost]
    put(folder, tensors)
    return lost


def cut(folder: Path, draw: random.Random) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    return path.name


def config_key(key: str, *values: Any) -> Change:
    def apply(folder: Path, draw: random.Random) -> None:
        config = json.loads((folder / "config.json").read_text()) | {key: draw.choice(values)}
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def file_of(name: str, *contents: bytes) -> Change:
    def apply(folder: Path, draw: random.Random) -> str:
        (folder / name).write_bytes(draw.choice(contents))
        return name

    return apply


KINDS: dict[str, Change] = {
    "NaN": with_number(math.nan),
    "infinite": with_number(-math.inf),
    "integers": with_tensor(lambda t, _: t.to(torch.int8)),
    "complex": with_tensor(lambda t, _: t.to(torch.complex64)),
    "more rows": with_tensor(lambda t, _: torch.cat([t, t[:1]])),
    "flat": with_tensor(lambda t, _: t.reshape(1, -1)),
    "zero-size": with_tensor(lambda t, _: t[:0].clone()),
    "a tensor missing": lacks,
    "a shard missing": no_shard,
    "a wrong index": wrong_index,
    "a tensor twice": twice,
    "a file cut": cut,
    "an empty file": file_of("model.safetensors", b"", b"{}", b"\x00" * 64),
    "no JSON": file_of("config.json", b"", b"{", b"[]", b"null", b"\xff\xfe"),
    "a wrong width": config_key("hidden_size", 47, 64, 0, -1, "48", None),
    "a wrong depth": config_key("num_hidden_layers", 3, 10**6, -1, "two"),
    "another model": config_key("model_type", "bert", "no_such", 3, "", "../llama"),
    "quantised already": config_key("quantization_config", {"quant_method": "gptq"}, "yes"),
    "a wrong dtype": config_key("dtype", "int4", "float8", 16),
    "no tokenizer": lambda folder, draw: [p.unlink() for p in folder.glob("tokenizer*")] and "tokenizer.json",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("mutated") / "model", num_hidden_layers=1)


DAMAGED: set[str] = set()  # fingerprints


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_model_directories_are_refused_by_name(model: Path, tmp_path: Path, kind: str) -> None:
    """20 kinds, each nine times with other draws."""
    for seed in range(9):
        folder = Path(shutil.copytree(model, tmp_path / f"{seed}/model"))
        named = KINDS[kind](folder, random.Random(f"{kind}{seed}"))
        parts = [part for path in sorted(folder.iterdir()) for part in (path.name.encode(), path.read_bytes())]
        DAMAGED.add(digest(*parts))
        target = tmp_path / f"{seed}/out/checkpoint"
        with pytest.raises(InputError) as caught:
            convert({"directory": str(folder)}, target, target.parent / "convert.json")
        line = str(caught.value)
        assert str(folder) in line and line.isprintable() and len(line) < 700, line
        assert named is None or named in line, (named, line)
        assert [path for path in target.parent.rglob("*") if path.is_file()] == []


def test_a_hundred_different_directories_were_damaged() -> None:
    assert len(DAMAGED) >= 100, len(DAMAGED)
