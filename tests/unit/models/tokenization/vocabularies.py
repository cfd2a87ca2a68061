"""Small vocabularies, texts for them, and SentencePiece's way by a slow loop."""

import itertools
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from quant.models.tokenization.gguf import SPACE
from quant.models.tokenization.tokenizers import PROBE

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = ["a 10", "x  10", "see\n\n1. One", "PEP 3107", "    4 5", "", " a", "a ", "it's", PROBE]


def byte_bpe(before: Any, special: bool = True) -> Tokenizer:
    """Bytes, two merged pairs, and BOS before a text."""
    vocabulary = {piece: i for i, piece in enumerate([*LETTERS, "10", "ĊĊ", "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "0"), ("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 258)])
    return tokenizer


BEFORE = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "lines": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def slow_spm(text: str, ids: dict[str, int], scores: list[float], prefix: bool) -> list[int]:
    """llama.cpp's llm_tokenizer_spm: of all neighbours whose join is a piece, the best score, the leftmost on a tie."""
    if not text:
        return []
    symbols = list((" " * prefix + text).replace(" ", SPACE))
    while True:
        joins = [(-scores[ids[a + b]], at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]
        if not joins:
            break
        at = min(joins)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


WORDS = ["th", "the", "in", "an", "and", "er", "▁the", "▁a", "▁▁", "▁▁▁▁", "10", "he", "▁t", "ing", "▁and", "re", "ed"]
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *WORDS,
    "▁",
    *"abcdefghinrt1 0.".replace(" ", ""),
]
