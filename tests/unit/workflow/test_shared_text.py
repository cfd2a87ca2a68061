"""One text for calibration and evaluation is split; every other is left alone."""

from pathlib import Path
from typing import Any

import pytest

from quant.errors import InputError
from quant.workflow import configuration
from quant.workflow.shared_text import same_kind
from tests.unit.workflow.configurations import SCHEMA, changed


def texts(calibration: Any, evaluation: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the calibration and the data set of the study read."""
    config = changed("texts", {"a": calibration, "b": evaluation})
    config["study"]["datasets"] = ["python_reference"]
    del config["datasets"]["docstrings"]
    config["calibration"] |= {"text": "a"} | options
    config["datasets"]["python_reference"]["text"] = "b"
    found = configuration.load(config, SCHEMA)
    return found["calibration"]["text"], found["datasets"]["python_reference"]["text"]


HUB = {"hub": {"path": "o/n", "split": "train", "revision": "main"}}


@pytest.mark.parametrize(
    "source", [{"files": ["x.txt"]}, HUB, {"docstrings": ["argparse"]}, {"pydoc_topics": "heldout"}]
)
def test_one_source_is_split_however_it_is_named(source: dict[str, Any]) -> None:
    calibration, evaluation = texts(source, source)
    assert calibration.pop("part") == "calibration" and evaluation.pop("part") == "heldout"
    assert calibration == evaluation and calibration.keys() == source.keys()
    for one, other in zip(texts(source, source, allow_overlap=True), (source, source), strict=True):
        assert "part" not in one and one.keys() == other.keys()


def test_one_name_is_split() -> None:
    config = changed("datasets.python_reference.text", "python_reference")
    found = configuration.load(config, SCHEMA)
    assert found["calibration"]["text"] == {"pydoc_topics": "calibration", "part": "calibration"}
    assert found["datasets"]["python_reference"]["text"] == {"pydoc_topics": "calibration", "part": "heldout"}


def test_one_file_by_two_paths_is_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "link.txt").symlink_to("a.txt")
    for other in (f"{tmp_path}/./a.txt", str(tmp_path / "link.txt")):
        assert "part" in texts({"files": [str(tmp_path / "a.txt")]}, {"files": [other]})[0]


def test_other_texts_and_data_sets_that_do_not_run_split_nothing() -> None:
    assert "part" not in texts({"files": ["x.txt"]}, {"files": ["y.txt"]})[0]
    config = changed("datasets.unused", {"text": "python_reference"})
    config["study"]["datasets"] = ["python_reference"]
    assert "part" not in configuration.load(config, SCHEMA)["calibration"]["text"]


def mixed(mix: list[str], **options: Any) -> dict[str, Any]:
    config = changed("texts.more", {"docstrings": ["argparse"]})
    config["texts"]["copy"] = {"pydoc_topics": "calibration"}
    config["calibration"] |= {"mix": mix} | options
    return configuration.load(config, SCHEMA)


def test_a_text_of_the_mix_is_split_where_it_is_measured_on_too() -> None:
    found = mixed(["docstrings", "more"])
    names = found["calibration"]["mix"][0].pop("part"), found["datasets"]["docstrings"]["text"].pop("part")
    assert names == ("calibration", "heldout")
    assert found["calibration"]["mix"] == [found["datasets"]["docstrings"]["text"], {"docstrings": ["argparse"]}]
    assert "part" not in found["calibration"]["text"] and "part" not in found["datasets"]["python_reference"]["text"]


@pytest.mark.parametrize(
    ("mix", "options", "said"),
    [
        (["mor"], {}, r"calibration\.mix: no entry 'mor' in texts; .*more"),
        (["python_reference"], {}, "holds calibration.text"),
        (["copy"], {}, "holds calibration.text"),
        (["more"], {"n_calib": 1}, "n_calib: 1, and 2 texts to take it of; write at least 2"),
    ],
)
def test_mixes_that_cannot_be(mix: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        mixed(mix, **options)


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ({"pydoc_topics": "calibration"}, {"pydoc_topics": "heldout"}, True),
        (HUB, {"hub": HUB["hub"] | {"split": "test", "revision": "x"}}, True),
        (HUB, {"hub": HUB["hub"] | {"name": "raw"}}, False),
        ({"docstrings": ["argparse"]}, {"docstrings": ["typing"]}, True),
        ({"docstrings": ["argparse"]}, {"pydoc_topics": "heldout"}, False),
        ({"files": ["a/train.txt"]}, {"files": ["a/../a/test.txt"], "part": "heldout"}, True),
        ({"files": ["a/train.txt"]}, {"files": ["b/train.txt"]}, False),
        ({"files": ["a/train.txt"]}, HUB, False),
    ],
)
def test_texts_of_one_kind(text: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert same_kind(text, other) is same_kind(other, text) is same
