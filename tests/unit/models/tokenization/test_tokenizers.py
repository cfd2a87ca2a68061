"""Token ids are the model's own: tokenizer.json's, SentencePiece's, and of a GGUF file llama.cpp's."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quant.errors import InputError
from quant.models.tokenization.gguf import sentencepiece
from quant.models.tokenization.gguf_pretokenizers import RULES, pre_tokenizer
from quant.models.tokenization.sentencepiece import from_sentencepiece
from quant.models.tokenization.tokenizers import PROBE, from_file, load, own_tokenizer
from tests.unit.model_files import build, edit_config, refusal, run
from tests.unit.models.gguf_files import write_gguf
from tests.unit.models.tokenization.vocabularies import BEFORE, LETTERS, PIECES, TEXTS, byte_bpe, slow_spm

CLASSES = [
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GPT2Tokenizer",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    None,
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(tmp_path: Path, before: Any, name: str | None) -> None:
    model = build(tmp_path / "model", vocab_size=260)
    byte_bpe(before).save(str(model / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>"} | ({} if name is None else {"tokenizer_class": name})
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    own = Tokenizer.from_file(str(model / "tokenizer.json"))
    for reader in (AutoTokenizer.from_pretrained(checkpoint), load(checkpoint)):
        for text in TEXTS:
            assert reader(text)["input_ids"] == own.encode(text).ids
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token_id == 259


def test_cutting_and_padding_that_a_tokenizer_was_saved_with_are_undone(tmp_path: Path) -> None:
    model = build(tmp_path / "model", vocab_size=260)
    tokenizer = byte_bpe(BEFORE["digits"])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(model / "tokenizer.json"))
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    assert len(AutoTokenizer.from_pretrained(checkpoint)("abcdefghijk")["input_ids"]) == 12
    assert len(AutoTokenizer.from_pretrained(checkpoint)("a")["input_ids"]) == 2


@pytest.mark.parametrize("put", [True, False])
def test_bos_is_put_as_tokenizer_json_puts_it(tmp_path: Path, put: bool) -> None:
    model = build(tmp_path / "model", vocab_size=260)
    byte_bpe(BEFORE["bytes"], special=put).save(str(model / "tokenizer.json"))
    settings = {"bos_token": "<s>", "add_bos_token": not put, "tokenizer_class": "LlamaTokenizerFast"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    own = from_file(checkpoint / "tokenizer.json").encode("a").ids
    for ids in (AutoTokenizer.from_pretrained(checkpoint)("a")["input_ids"], own):
        assert ids == [258] * put + [LETTERS.index("a")]


def spm_fields(writer: gguf.GGUFWriter) -> None:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0 if i < 259 else -float(i) for i in range(len(PIECES))])
    writer.add_token_types(kinds)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_by_scores_gives_llama_cpps_ids(prefix: bool) -> None:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    scores = [0.0 if i < 259 else -float(i) for i in range(len(PIECES))]
    tokenizer = sentencepiece(PIECES, kinds, scores, "<unk>", prefix, "t")
    ids = {piece: i for i, piece in enumerate(PIECES)}
    for text in [*TEXTS, "the  theathe and    in 1010", "\n\nthe\t", "thethethe"]:
        assert tokenizer.encode(text).ids == slow_spm(text, ids, scores, prefix), text


def spm_gguf(tmp_path: Path, extra: Callable[[gguf.GGUFWriter], object] = lambda writer: None) -> Path:
    """write_gguf with a SentencePiece vocabulary in the place of its own."""
    model = build(tmp_path / "model", vocab_size=len(PIECES))
    skipped = ("add_tokenizer_model", "add_token_list", "add_token_types", "add_token_merges")

    class Writer(gguf.GGUFWriter):
        def __getattribute__(self, name: str) -> Any:
            return (lambda *_: None) if name in skipped and not named else super().__getattribute__(name)

    named: list[int] = []

    def fields(writer: gguf.GGUFWriter) -> None:
        named.append(1)
        spm_fields(writer)
        extra(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Writer)
        return write_gguf(model, tmp_path / "spm.gguf", extra=fields)


@pytest.mark.parametrize("bos", [None, True, False])
def test_a_sentencepiece_gguf_keeps_its_ids_when_it_is_saved(tmp_path: Path, bos: bool | None) -> None:
    path = spm_gguf(tmp_path, lambda writer: None if bos is None else writer.add_add_bos_token(bos))
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    ids = {piece: i for i, piece in enumerate(PIECES)}
    scores = [0.0 if i < 259 else -float(i) for i in range(len(PIECES))]
    reader = AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        expected = slow_spm(text, ids, scores, True)
        assert reader(text)["input_ids"] == [1] * (bos is not False) + expected
    assert (reader.bos_token, reader.eos_token, reader.unk_token) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "deepseek-coder", "falcon", None])
def test_a_gguf_splits_words_by_its_pre_tokenizer(tmp_path: Path, pre: str | None) -> None:
    model = build(tmp_path / "model")
    path = write_gguf(
        model, tmp_path / "a.gguf", extra=lambda writer: None if pre is None else writer.add_tokenizer_pre(pre)
    )
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    found = AutoTokenizer.from_pretrained(checkpoint).backend_tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)
    assert found == pre_tokenizer(RULES[pre or "default"]).pre_tokenize_str(PROBE)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("smollm", "a 10  b", ["a", "Ġ", "1", "0", "Ġ", "Ġb"]),
        ("gpt-2", "a 10  b's", ["a", "Ġ10", "Ġ", "Ġb", "'s"]),
        ("llama-bpe", "12345 It'S\n\n x", ["123", "45", "ĠIt", "'S", "ĊĊ", "Ġx"]),
        ("qwen2", "12 a_b", ["1", "2", "Ġa", "_b"]),
        ("deepseek-v3", "12345 a", ["123", "45", "Ġa"]),
    ],
)
def test_rules_by_hand(name: str, text: str, words: list[str]) -> None:
    assert [word for word, _ in pre_tokenizer(RULES[name]).pre_tokenize_str(text)] == words


def test_ggufs_whose_tokenizer_is_not_known_are_refused_by_name(tmp_path: Path) -> None:
    model = build(tmp_path / "model")
    path = write_gguf(model, tmp_path / "a.gguf", extra=lambda writer: writer.add_tokenizer_pre("mine"))
    assert "tokenizer.ggml.pre is 'mine'" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")


def field(number: int, value: bytes | int | float) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    key = number << 3 | (0 if isinstance(value, int) else 2)
    head = bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])
    length = value if isinstance(value, int) else len(value)
    coded = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return head + coded + (b"" if isinstance(value, int) else value)


def sentencepiece_file(path: Path, pieces: list[tuple[str, float, int]], *trainer: bytes) -> Path:
    """Of (text, score, type); a dummy prefix, and no other normalisation."""
    content = b"".join(field(1, field(1, t.encode()) + field(2, score) + field(3, kind)) for t, score, kind in pieces)
    content += field(2, b"".join(trainer)) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0))
    path.write_bytes(content)
    return path


def save_sentencepiece(path: Path) -> None:
    """PIECES as a model file: BPE with bytes, a dummy prefix, no normalisation."""
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    scored = [
        (piece, 0.0 if i < 259 else -float(i), kind) for i, (piece, kind) in enumerate(zip(PIECES, kinds, strict=True))
    ]
    sentencepiece_file(path, scored, field(3, 2), field(35, 1), field(40, 0), field(41, 1), field(42, 2))


def test_a_sentencepiece_model_alone_loads(tmp_path: Path) -> None:
    model = build(tmp_path / "model", vocab_size=len(PIECES))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    save_sentencepiece(model / "tokenizer.model")
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    ids = {piece: i for i, piece in enumerate(PIECES)}
    scores = [0.0 if i < 259 else -float(i) for i in range(len(PIECES))]
    reader = AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        assert reader(text)["input_ids"] == [1, *slow_spm(text, ids, scores, True)]
    assert reader.decode(reader("the  and é")["input_ids"], skip_special_tokens=True) == "the  and é"


@pytest.mark.parametrize("kind", [1, 2], ids=["unigram", "bpe"])
def test_pieces_of_users_are_found_as_they_stand(kind: int, tmp_path: Path) -> None:
    """The text's beginning alone has the prefix, wherever such a piece is; a byte's name in a text is no byte."""
    letters = [(letter, -5.0, 1) for letter in "\N{LOWER ONE EIGHTH BLOCK}abx<>014ABC"]
    bytes_ = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces = [("<unk>", 0.0, 2), *bytes_, *letters, ("<sep>", 0.0, 4), ("ABC", 0.0, 4)]
    path = sentencepiece_file(tmp_path / "m", pieces, field(3, kind), field(35, 1), field(41, 1 << 6))
    found, _ = from_sentencepiece(path, "t")
    for text, expected in {
        "a<sep>b ABCx": "▁ a <sep> b ▁ ABC x", "ABCABC": "▁ ABC ABC", " ABC  <sep>": "▁ ▁ ABC ▁ ▁ <sep>",
        "<0x41>": "▁ < 0 x 4 1 >",
    }.items():  # fmt: skip
        assert " ".join(found.encode(text, add_special_tokens=False).tokens) == expected


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model"])
def test_pieces_whose_ids_are_a_classs_own_are_refused(name: str, tmp_path: Path) -> None:
    save_sentencepiece(tmp_path / name)
    with pytest.raises(InputError, match=f"its {name} alone does not say the model's ids; put its tokenizer.json"):
        own_tokenizer(tmp_path, "t")


def test_spaces_behind_words_are_refused(tmp_path: Path) -> None:
    path = sentencepiece_file(tmp_path / "m", [("<unk>", 0.0, 2), ("a", -1.0, 1)], field(3, 2) + b"\xc0\x01\x01")
    with pytest.raises(InputError, match="joins spaces to the word before them"):
        from_sentencepiece(path, "t")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\xff\xff\xff", b"IQ== 0\nIg== 1\n"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match="is no SentencePiece model; put"):
        from_sentencepiece(tmp_path / "tokenizer.model", "t")


def test_a_model_type_whose_class_is_forced_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers builds Qwen2Tokenizer for every qwen2, whatever tokenizer.json says."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = tmp_path / "model"
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 4}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=260, num_key_value_heads=2, **shape)).save_pretrained(model)
    PreTrainedTokenizerFast(tokenizer_object=byte_bpe(BEFORE["lines"])).save_pretrained(model)
    edit_config(model)
    with caplog.at_level("WARNING", "quant"):
        checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    assert "builds another tokenizer for this model_type" in caplog.text
    assert load(checkpoint)(PROBE)["input_ids"] == from_file(model / "tokenizer.json").encode(PROBE).ids
