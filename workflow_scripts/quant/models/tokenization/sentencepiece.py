"""A SentencePiece model file (tokenizer.model) as a tokenizer of the tokenizers library.

The file is a protocol buffer (sentencepiece_model.proto); the few fields that decide on ids are read here, so that
neither sentencepiece nor protobuf is needed.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.models.tokenization.gguf import BYTE, SPACE, USER_DEFINED, add_special, sentencepiece, surround

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL = 1  # ModelProto.SentencePiece.Type
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def message(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: int, bytes, or four raw bytes of a float."""
    at = 0
    value: int | bytes
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at)
        elif wire in (BYTES, FIXED32, FIXED64):
            length, at = varint(data, at) if wire == BYTES else (4 if wire == FIXED32 else 8, at)
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise ValueError("it ends within a field")
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def read(path: Path, where: str) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """Pieces (text, score, type), and the fields of trainer_spec and normalizer_spec by number."""
    pieces: list[tuple[str, float, int]] = []
    specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    try:
        for number, value in message(path.read_bytes()):
            if number == 1:
                fields = dict(message(value))
                score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
                pieces.append((fields[1].decode(), score, fields.get(3, 1)))
            elif number in specs:
                specs[number] = dict(message(value))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error):
        pieces = []
    if not pieces:
        raise InputError(
            f"{where}: its {path.name} is no SentencePiece model; put the model's tokenizer.json beside it"
        )
    return pieces, specs[2], specs[3]


def add_user_defined(tokenizer: Any, tokens: list[str], kinds: list[int], prefix: bool) -> None:
    """User-defined pieces, which are found in the normalised text as they stand; only the text's beginning has the
    prefix. Those that normalisation would change are found before it."""
    from tokenizers import AddedToken, Regex, normalizers

    own = [token for token, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    if not own:
        return
    if prefix:  # unless there is nothing but one of them: so the library asks what it looks for
        alone = Regex(rf"\A(?!(?:{'|'.join(map(re.escape, own))})\z)")
        *before, _, spaces = tokenizer.normalizer
        tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(alone, SPACE), spaces])
    unchanged = {token: tokenizer.normalizer.normalize_str(token) == token for token in own}
    tokenizer.add_tokens([AddedToken(token, normalized=unchanged[token], special=False) for token in own])


def unigram(
    tokens: list[str], scores: list[float], kinds: list[int], unknown: int, by_bytes: bool, prefix: bool
) -> Any:
    """SentencePiece's unigram model; a byte's name in a text is no byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    least = min(scores) - 1e4
    pieces = [(t, least if kind == BYTE else score) for t, score, kind in zip(tokens, scores, kinds, strict=True)]
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, by_bytes))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend(SPACE)] if prefix else []), spaces])
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    add_special(tokenizer, tokens, kinds)
    return tokenizer


def from_sentencepiece(path: Path, where: str) -> tuple[Any, dict[str, Any]]:
    """A tokenizer, and the names of its special tokens; BOS is put before every text where the model has one."""
    from tokenizers import Regex, normalizers

    pieces, trainer, normalizer = read(path, where)
    tokens, scores, kinds = (list(column) for column in zip(*pieces, strict=True))
    # a negative id, here 64 bits of two's complement, is none
    ids = {
        name: trainer.get(number, default)
        for name, number, default in (("unk_token", 40, 0), ("bos_token", 41, 1), ("eos_token", 42, 2))
    }
    special = {name: tokens[index] for name, index in ids.items() if index < len(tokens)}
    prefix = bool(normalizer.get(3, 1))
    kind, by_bytes = trainer.get(3, UNIGRAM), bool(trainer.get(35, 0))
    if kind not in (UNIGRAM, BPE):
        raise InputError(
            f"{where}: its {path.name} is one of words or characters; put the model's tokenizer.json beside it"
        )
    if trainer.get(24, 0):
        raise InputError(
            f"{where}: its {path.name} joins spaces to the word before them; put the model's tokenizer.json beside it"
        )
    before: list[normalizers.Normalizer] = [normalizers.Precompiled(normalizer[2])] if normalizer.get(2) else []
    if normalizer.get(4, 1):  # remove_extra_whitespaces
        before += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    plain = [NORMAL if each == USER_DEFINED else each for each in kinds]
    if kind == BPE:
        tokenizer = sentencepiece(tokens, plain, scores, special.get("unk_token"), prefix, where)
        tokenizer.model.byte_fallback = by_bytes
    else:
        tokenizer = unigram(tokens, scores, plain, ids["unk_token"], by_bytes, prefix)
    own = tokenizer.normalizer if isinstance(tokenizer.normalizer, normalizers.Sequence) else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([*before, *own])  # type: ignore[misc]  # stubs lack __iter__
    add_user_defined(tokenizer, tokens, kinds, prefix)
    surround(tokenizer, special.get("bos_token"), None)
    return tokenizer, special
