"""Where text comes from, how it is split, and how it becomes sequences."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from quant.data import tokens
from quant.data.texts import docstrings, read_texts, reference_topics, sequences, split_topics, tokenize
from quant.errors import InputError
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def tokenizer_with_bos(tiny_checkpoint: Path) -> Any:
    """Begins each call with id 0."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tiny_checkpoint)
    first = found.convert_ids_to_tokens(0)
    found.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    return found


def paragraphs(text: str) -> set[str]:
    """Of 40 characters or more, whitespace aside."""
    found = {" ".join(part.split()) for part in re.split(r"\n\s*\n", text)}
    return {part for part in found if len(part) >= 40}


def check_split(topics: dict[str, str]) -> dict[str, list[str]]:
    parts = split_topics(topics)
    assert sorted(parts["calibration"] + parts["heldout"]) == sorted(topics), "every topic in exactly one part"
    assert all(names == sorted(names) for names in parts.values())
    seen = {part: set().union(*(paragraphs(topics[name]) for name in names)) for part, names in parts.items()}
    assert not seen["calibration"] & seen["heldout"]
    return parts


def test_language_reference_is_split_cleanly() -> None:
    topics = reference_topics()
    parts = check_split(topics)
    sizes = [sum(len(topics[name]) for name in names) for names in parts.values()]
    assert min(sizes) > 0.2 * sum(sizes), "both parts must hold text worth measuring on"


def test_chains_of_shared_paragraphs_stay_together() -> None:
    shared = [f"paragraph number {i}, which is long enough to tie topics together" for i in range(3)]
    topics = {
        "a": shared[0],
        "b": f"own words\n\n{shared[1]}",
        "c": f"{shared[0]}\n  \n{shared[2]}",
        "d": shared[2].replace(" ", "\n   ") + "\n\n" + shared[1],
        "e": "quite another matter, of no concern to any of the other topics at all " * 4,
        "f": "own words",
    }
    parts = check_split(topics)
    together = next(names for names in parts.values() if "a" in names)
    assert {"a", "b", "c", "d"} <= set(together)
    assert "e" not in together


def test_line_breaks_do_not_make_another_paragraph() -> None:
    shared = "a paragraph of forty characters or more, set in two ways"
    topics = {name: f"{name * 200}\n\n{text}" for name, text in (("a", shared), ("b", shared.replace(" ", "\n  ")))}
    parts = check_split(topics | {"c": "a third matter"})
    assert ["a", "b"] in parts.values()


def test_short_shared_paragraphs_tie_nothing() -> None:
    topics = {name: f"Changed in version 3.11.\n\n{name * 50}" for name in "ab"}
    assert check_split(topics) == {"calibration": ["a"], "heldout": ["b"]}


def test_parts_of_the_reference_are_its_topics() -> None:
    topics = reference_topics()
    calibration, heldout = (read_texts({"pydoc_topics": part}) for part in ("calibration", "heldout"))
    assert sorted(calibration + heldout) == sorted(topics.values())


def test_windows_join_texts_by_blank_lines(tokenizer: Any) -> None:
    texts = ["one two", "three", "four five six"]
    whole = "one two\n\nthree\n\nfour five six"
    found = sequences(tokenizer, texts, "windows", 5, 99, None, "t")
    assert [len(window) for window in found] == [5] * (len(whole) // 5)
    assert tokenizer.decode(torch.cat(found)) == whole[: len(whole) // 5 * 5]


def test_windows_begin_once(tokenizer_with_bos: Any) -> None:
    found = torch.cat(sequences(tokenizer_with_bos, ["abc"] * 9, "windows", 4, 99, None, "t"))
    assert found[0] == 0 and (found == 0).sum() == 1


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text", "recurrent_gemma"])
def test_every_window_begins_with_bos_where_the_family_needs_it(tokenizer_with_bos: Any, model_type: str) -> None:
    found = sequences(tokenizer_with_bos, ["abcdefgh"], "windows", 4, 99, None, "t", model_type=model_type)
    assert [ids[0].item() for ids in found] == [0, 0]
    assert tokenizer_with_bos.decode(torch.cat([ids[1:] for ids in found])) == "abcdef"


def test_a_family_that_needs_bos_gets_it_from_a_tokenizer_that_puts_none(tiny_checkpoint: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    silent = PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint, bos_token="b")
    bos = silent.bos_token_id
    for protocol in ("windows", "samples"):
        found = sequences(silent, ["acacac"], protocol, 4, 99, None, "t", model_type="gemma2")
        assert all(ids[0] == bos for ids in found)
        assert bos not in torch.cat(sequences(silent, ["acacac"], protocol, 4, 99, None, "t", model_type="llama"))


def test_special_tokens_in_a_text_are_letters_unless_asked_for(tmp_path: Path) -> None:
    tiny.save_tokenizer(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)
    for protocol in ("windows", "samples"):
        literal, parsed = (
            torch.cat(sequences(words, ["w1 </s> w2"], protocol, 3, 9, None, "t", special_tokens=parse)).tolist()
            for parse in (False, True)
        )
        assert literal == [4, 0, 0] and parsed == [4, 2, 5]  # pieces of </s> are unknown to this vocabulary


def test_samples_are_cut_each_by_itself(tokenizer: Any, tokenizer_with_bos: Any) -> None:
    texts = ["one two", "", "  \n", "x", "three four"]
    found = sequences(tokenizer, texts, "samples", 8, 99, None, "t")
    assert [tokenizer.decode(ids) for ids in found] == ["one two", "three fo"]  # a lone token predicts nothing
    begun = sequences(tokenizer_with_bos, texts, "samples", 8, 99, None, "t")
    assert [ids[0].item() for ids in begun] == [0, 0, 0] and max(map(len, begun)) == 8


def test_n_and_seed_choose(tokenizer: Any) -> None:
    text = ["".join(chr(97 + i % 26) for i in range(300))]
    everything = sequences(tokenizer, text, "windows", 10, 99, None, "t")
    first = sequences(tokenizer, text, "windows", 10, 3, None, "t")
    assert all(torch.equal(a, b) for a, b in zip(first, everything[:3], strict=True))
    drawn = sequences(tokenizer, text, "windows", 10, 3, 1, "t")
    assert len(drawn) == 3 and not all(torch.equal(a, b) for a, b in zip(drawn, first, strict=True))


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n\n"]])
@pytest.mark.parametrize("protocol", ["windows", "samples"])
def test_empty_text_is_refused_in_one_line(tokenizer: Any, texts: list[str], protocol: str) -> None:
    with pytest.raises(InputError, match=r"heldout.*empty") as caught:
        sequences(tokenizer, texts, protocol, 4, 9, None, "heldout")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("texts", "protocol"), [(["short"], "windows"), (["a", "b"], "samples")])
def test_too_short_text_is_refused_in_one_line(tokenizer: Any, texts: list[str], protocol: str) -> None:
    with pytest.raises(InputError, match=r"heldout.*use more text") as caught:
        sequences(tokenizer, texts, protocol, 64, 9, None, "heldout")
    assert "\n" not in str(caught.value)


def test_files_are_read_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("dritte Zeile: größer\n", encoding="utf-8")
    found = read_texts({"files": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})
    assert [text.strip() for text in found] == ["first line", "second line", "dritte Zeile: größer"]


def test_only_line_ends_separate_texts(tmp_path: Path) -> None:
    """config.yaml: "a line is a text"; a form feed or U+2028 inside a line ends none."""
    (tmp_path / "a.txt").write_text("one\x0cstill one\u2028and still\x85one\ntwo\n", encoding="utf-8")
    assert len(read_texts({"files": [str(tmp_path / "a.txt")]})) == 2


@pytest.mark.parametrize("kind", ["absent", "directory", "binary"])
def test_unreadable_files_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00text")
    with pytest.raises(InputError, match=kind) as caught:
        read_texts({"files": [str(path)]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["windows", "samples"])
def test_tokenize_writes_what_sequences_found(
    tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path, protocol: str
) -> None:
    (tmp_path / "text.txt").write_text("some words to cut\nand a second line\n" * 4)
    spec = {"text": {"files": [str(tmp_path / "text.txt")]}, "protocol": protocol, "seq_len": 16}
    tokenize(tiny_checkpoint, "model", spec, 5, None, "t", str(tmp_path / "out.safetensors"))
    found = tokens.load(tmp_path / "out.safetensors")
    expected = sequences(tokenizer, read_texts(spec["text"], protocol), protocol, 16, 5, None, "t")
    assert found.fingerprint == tokens.fingerprint(expected)
    assert found.provenance["spec"] == spec and found.provenance["model_fingerprint"] == "model"


def test_a_mix_is_dealt_in_turns_as_equally_as_can_be(
    tiny_checkpoint: Path, tokenizer: Any, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO", "quant")
    kinds = {"a": "one two three four\n" * 9, "b": "5 6 7 8 9\n" * 2, "c": "def f(): pass\n" * 9}
    for name, text in kinds.items():
        (tmp_path / name).write_text(text)
    first, *others = ({"files": [str(tmp_path / name)]} for name in kinds)
    spec = {"text": first, "mix": others, "protocol": "windows", "seq_len": 8}
    tokenize(tiny_checkpoint, "m", spec, 8, None, "calibration", str(tmp_path / "out"))
    a, b, c = (list(tokenizer(text, return_tensors="pt")["input_ids"][0].split(8)) for text in kinds.values())
    expected = [a[0], b[0], c[0], a[1], b[1], c[1], a[2]]  # b has no third one
    assert tokens.load(tmp_path / "out").fingerprint == tokens.fingerprint(expected)
    assert "calibration, b: 2 sequences" in caplog.text and "fewer than the 8" in caplog.text
    with pytest.raises(InputError, match="n_calib: 2, and 3 texts"):
        tokenize(tiny_checkpoint, "m", spec, 2, None, "calibration", str(tmp_path / "out"))


def test_a_short_text_is_said_and_a_default_called_one(tiny_checkpoint: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "quant")
    (tmp_path / "text.txt").write_text("x" * 16 * 7)
    spec = {"text": {"files": [str(tmp_path / "text.txt")]}, "protocol": "windows", "seq_len": 16}
    out = str(tmp_path / "out.safetensors")
    tokenize(tiny_checkpoint, "m", spec, 32, None, "datasets.d", out, "n_samples: 32 (the default)")
    assert "datasets.d: the text gives 7 sequences, fewer than n_samples: 32 (the default)" in caplog.text
    assert "datasets.d: 7 sequences, a short text (under 8 sequences" in caplog.text
    caplog.clear()
    (tmp_path / "text.txt").write_text("x" * 16 * 8)
    tokenize(tiny_checkpoint, "m", spec, 8, None, "datasets.d", out)
    assert "short" not in caplog.text and "fewer" not in caplog.text


def test_docstrings_are_a_modules_own_in_the_order_of_its_source() -> None:
    """Against what Python itself says of the module, imported."""
    import textwrap

    found = docstrings("textwrap")
    assert found[0] == inspect.cleandoc(textwrap.__doc__)
    own = [textwrap.TextWrapper, textwrap.wrap, textwrap.fill, textwrap.shorten, textwrap.dedent, textwrap.indent]
    places = [found.index(inspect.getdoc(item)) for item in own]
    assert places == sorted(places)


@pytest.mark.parametrize("module", ["numpy", "argparser", "sys", "json.nothing"])
def test_docstrings_of_what_is_no_source_of_the_library_are_refused(module: str) -> None:
    with pytest.raises(InputError, match=f"docstrings: {module}: .* such as argparse"):
        docstrings(module)
