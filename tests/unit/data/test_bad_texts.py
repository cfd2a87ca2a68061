"""Texts and data sets that cannot be read, or are too short or not for this model: one line each."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quant.data import texts
from quant.errors import InputError
from tests.unit.model_files import Evil, edit_config, hub_text


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def refused_text(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        texts.read_texts({"files": [str(path)]})
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_bad_text_files(tmp_path: Path) -> None:
    assert "holds no text" in refused_text(tmp_path, b"")
    assert "holds no text" in refused_text(tmp_path, b" \n\t\n\xe2\x80\x83\n")
    assert "holds no text" in refused_text(tmp_path, b"\xef\xbb\xbf")
    assert "not UTF-8 text" in refused_text(tmp_path, "Grüße".encode("latin-1"))
    for name in ("utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-le"):
        assert "not UTF-8 text" in refused_text(tmp_path, "words".encode(name))
    assert "UTF-16" in refused_text(tmp_path, "words".encode("utf-16"))
    assert "UTF-32" in refused_text(tmp_path, "words".encode("utf-32"))
    assert "a Parquet file; save it as JSON lines" in refused_text(tmp_path, b"PAR1\x15\0\xff")
    assert "a gzip file; unpack it" in refused_text(tmp_path, gzip.compress(b"words"))
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            texts.read_texts({"files": [str(path)]})
    with pytest.raises(InputError, match="is a directory"):
        texts.read_texts({"files": [str(tmp_path)]})


def test_a_text_that_no_memory_would_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its size, unread."""
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(100_000_001)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("was read"))
    with pytest.raises(InputError, match=r"large.txt: has 100 MB, and a text is read whole.*head -n 20000"):
        texts.read_texts({"files": [str(path)]})


def lines_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("protocol", ["windows", "samples"])
def test_json_lines_are_read_by_a_field(tmp_path: Path, protocol: str) -> None:
    rows = [{"text": "one\ntwo", "body": "A {b}", "n": 1, "half": "\ud83d\ude00"}]
    rows += [{"text": "three", "body": "C", "n": 2, "half": "\ud83d"}]
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of(rows) + "\n")
    assert texts.read_texts({"files": [str(path)]}, protocol) == ["one\ntwo", "three"]
    assert texts.read_texts({"files": [str(path)], "field": "body"}, protocol) == ["A {b}", "C"]
    other = path.rename(tmp_path / "a.txt")
    assert texts.read_texts({"files": [str(other)], "field": "text"}, protocol) == ["one\ntwo", "three"]
    for spec, expected in [
        ({}, "holds JSON lines; write field: NAME.*text, body, n, half"),
        ({"field": "half"}, r"line 2 has '.ud83d' in 'half', half of a character"),
        ({"field": "n"}, r"line 1 holds a int there.*\(its fields that hold text: text, body, half\)"),
        ({"field": "txt"}, "line 1 has none; write field"),
    ]:
        with pytest.raises(InputError, match=expected):
            texts.read_texts({"files": [str(other)]} | spec, protocol)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lines_of([{"text": "a"}, ["b"]]), "line 2 is a JSON list"),
        (lines_of([{"text": "a"}]) + "{", "line 2 is no JSON"),
        (lines_of([{"body": "a"}]), "field 'text' is read, and line 1 has none.*fields that hold text: body"),
        (lines_of([{"n": 1}]), "fields that hold text: none"),
        (lines_of([{"text": " "}]), "holds no text"),
        ("", "holds no text"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=expected):
        texts.read_texts({"files": [str(tmp_path / "a.jsonl")]})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '[\n {"text": "a"},\n {"text": "b"}\n]\n', "holds one JSON list, no text"),
        ("a.txt", '{\n "text": ["a", "b"]\n}\n', "holds one JSON dict, no text"),
        ("a.csv", "text,label\na b,1\n", "is a table"),
        ("a.txt", lines_of([{"text": "a"}, {"text": "b"}]) + '{"te', "holds JSON lines"),
    ],
)
def test_other_ways_to_hold_texts_are_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=expected):
        texts.read_texts({"files": [str(tmp_path / name)]})


def test_braces_alone_make_no_json_lines(tmp_path: Path) -> None:
    for lines in (["{one}\n", "{two}\n"], ["[1] A note\n", "two\n"], ["{}\n", "one\n", "two\n"]):
        (tmp_path / "a.txt").write_text("".join(lines))
        assert texts.read_texts({"files": [str(tmp_path / "a.txt")]}) == lines


@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("place", [0, 1, 8191, 8192, 70_000])
def test_a_byte_that_is_no_text_is_said_by_its_place_in_the_file(tmp_path: Path, begin: bytes, place: int) -> None:
    """Wherever it is, for a reader works in pieces."""
    text = begin + b"a" * place + b"\xff"
    assert f"(invalid start byte at byte {len(text) - 1})" in refused_text(tmp_path, text)


def test_an_empty_file_among_others_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words\n")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(InputError, match=r"b\.txt: holds no text"):
        texts.read_texts({"files": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\x0c\ntwo\r\nthree".encode())
    assert texts.read_texts({"files": [str(tmp_path / "a.txt")]}) == ["one\u2028still one\x0c\n", "two\n", "three"]


def test_text_too_short(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"calibration: its text gives 3 tokens, less than one window of 32"):
        texts.sequences(tokenizer, ["w1 w2 w3"], "windows", 32, 4, None, "calibration")
    with pytest.raises(InputError, match="no text has two tokens"):
        texts.sequences(tokenizer, ["w1", " "], "samples", 32, 4, None, "calibration")
    with pytest.raises(InputError, match="empty"):
        texts.sequences(tokenizer, ["", " \n"], "samples", 32, 4, None, "calibration")


def save_rows(folder: Path, name: str = "train", **columns: list[Any]) -> str:
    import pandas as pd

    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(path)
    return str(folder)


def test_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real `datasets`, without a hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    good = hub_text(save_rows(tmp_path / "good", text=["one", "", "two"], n=[1, 2, 3]))
    assert texts.read_texts(good) == ["one", "", "two"]
    for key, value, expected in [
        ("text_column", "txt", "has no column txt; choose one of text, n"),
        ("text_column", "n", "n is a int in row 0"),
        ("split", "tset", "cannot be loaded"),
        ("name", "other", "cannot be loaded"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            texts.read_texts({"hub": good["hub"] | {key: value}})
        assert "\n" not in str(caught.value)
    save_rows(tmp_path / "good", "en/first", text=["three", "four", "five"])
    one = {"split": "train[:2]", "data_files": "en/first.parquet"}
    assert texts.read_texts({"hub": good["hub"] | one}) == ["three", "four"]
    with pytest.raises(InputError, match="cannot be loaded"):
        texts.read_texts({"hub": good["hub"] | one | {"data_files": "en/second.parquet"}})
    holes = hub_text(save_rows(tmp_path / "holes", text=["one", None]))
    with pytest.raises(InputError, match="is a NoneType in row 1"):
        texts.read_texts(holes)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pickles").mkdir()
    import pickle

    marker = tmp_path / "marker"
    (tmp_path / "pickles/train.pkl").write_bytes(pickle.dumps(Evil(marker)))
    (tmp_path / "pickles/pickles.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("nothing", "pickles"):
        with pytest.raises(InputError, match="cannot be loaded"):
            texts.read_texts(hub_text(str(tmp_path / name)))
    assert not marker.exists()


def test_tokens_that_the_model_has_no_place_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w1 w2 w3 w199\n" * 40)
    spec = {"text": {"files": [str(tmp_path / "text.txt")]}, "protocol": "windows", "seq_len": 64}
    for changes, expected in [
        ({"vocab_size": 150}, "id 202, the model has 150"),
        ({"max_position_embeddings": 32}, "32"),
    ]:
        edit_config(model, **{"vocab_size": 256, "max_position_embeddings": 512} | changes)
        with pytest.raises(InputError, match=expected):
            texts.tokenize(model, "", spec, 4, None, "calibration", str(tmp_path / "tokens.safetensors"))
        assert not (tmp_path / "tokens.safetensors").exists()
