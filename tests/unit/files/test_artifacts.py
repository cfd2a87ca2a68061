"""Artifacts: what they say of themselves is held against what a job expects."""

from pathlib import Path

import pytest

from quant.errors import InputError
from quant.files.artifacts import read_json, require, whole, write_json


def refusal(path: Path, found: dict, **expected: object) -> str:
    with pytest.raises(InputError) as caught:
        require(path, found, **expected)
    return str(caught.value)


def test_what_was_made_from_something_else_is_refused_by_name() -> None:
    made = {"model_fingerprint": "aa", "recipe": {"bits": 4, "clip": True}}
    require("x.json", made, model_fingerprint="aa", recipe={"clip": True, "bits": 4})
    text = refusal(Path("a b/x.json"), made, model_fingerprint="bb")
    assert text == (
        "a b/x.json: was made from another model_fingerprint (aa; this study's is bb); "
        "rebuild it: snakemake --cores 1 --force 'a b/x.json'"
    )
    assert "(bits: 4; this study's is bits: 3)" in refusal(Path("x"), made, recipe={"bits": 3, "clip": True})
    assert "(None; this study's is bb)" in refusal(Path("x"), {}, token_fingerprint="bb")


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    content = {"b": [0.1, 1e-300, float("inf")], "a": {"é": None, "n": 1.0}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    (tmp_path / "user.json").write_text("[1]")
    assert read_json(tmp_path / "user.json") == [1], "others' files have no checksum"


@pytest.mark.parametrize("damage", [lambda text: text.replace("3.25", "3.75"), lambda text: text[: len(text) // 2]])
def test_a_changed_digit_and_a_cut_file_are_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "evaluation.json"
    write_json(path, {"nll": 3.25, "tokens": 10})
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=r"evaluation.json: .*; rebuild it: snakemake --cores 1 --force"):
        read_json(path)


def test_nothing_stays_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "x") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "before"
