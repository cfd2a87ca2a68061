"""A tokenizer of BPE with byte fallback as llama.cpp knows it: SentencePiece's pieces with scores, and no merges."""

import re
from typing import Any, NamedTuple

from quant.models.tokenization.gguf import BYTE, CONTROL, UNKNOWN, merges_by_score, sentencepiece
from quant.models.tokenization.tokenizers import PROBE

RUNS = [character * n for character in " a\n\t-=" for n in range(1, 40)]  # where the order of merges is a tie
ADDED = -1000.0  # a token that no merge makes


class Pieces(NamedTuple):
    """Scores and types by id; prefix: a text begins with a space."""

    scores: list[float]
    kinds: list[int]
    prefix: bool


def scores(model: dict[str, Any], kinds: list[int]) -> dict[int, float] | None:
    """By id, minus the place of a piece's merges among those of all pieces; None where the merges are not those, or not
    in an order, that scores give, but for runs of one character, of which texts show it (RUNS)."""
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    places: dict[str, int] = {}
    for left, right in pairs:
        piece = left + right
        if places.setdefault(piece, len(places)) != len(places) - 1 and len(set(piece)) > 1:
            return None
    found = {text: -float(places.get(text, len(places))) for text in model["vocab"]}
    apart = {UNKNOWN, CONTROL, BYTE}
    pieces = {text: found[text] for text, index in model["vocab"].items() if kinds[index] not in apart}
    if set(merges_by_score(pieces)) != set(pairs):
        return None
    return {index: found[text] for text, index in model["vocab"].items()}


def by_scores(own: Any, model: dict[str, Any], listed: list[tuple[str, int]], where: str) -> Pieces | None:
    """What gives llama.cpp the ids of a tokenizer, on a text that shows the difference; None where nothing does.

    model: of tokenizer.json; listed: token and type by id.
    """
    tokens, kinds = [text for text, _ in listed], [kind for _, kind in listed]
    for index, text in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", text):
            kinds[index] = BYTE
        elif text == model.get("unk_token"):
            kinds[index] = UNKNOWN
    known = scores(model, kinds)
    if known is None or kinds.count(BYTE) != 256:
        return None
    found = [known.get(index, ADDED) for index in range(len(tokens))]
    expected = [own.encode(text, add_special_tokens=False).ids for text in (PROBE, *RUNS)]
    for prefix in (True, False):
        theirs = sentencepiece(tokens, kinds, found, model.get("unk_token"), prefix, where)
        if [theirs.encode(text, add_special_tokens=False).ids for text in (PROBE, *RUNS)] == expected:
            return Pieces(found, kinds, prefix)
    return None
