"""One text as two parts that share no paragraph: `calibration`, and `heldout` to measure on."""

import re
from collections.abc import Iterator
from itertools import groupby

from quant.data.overlap import LENGTH, Seen, fingerprints, seen_in
from quant.errors import InputError

PARTS = ("calibration", "heldout")
PARAGRAPH = 40  # characters; a shorter shared paragraph does not tie two passages together
PASSAGES = 64  # that a text is cut into, or fewer: passages have LEAST characters or more
LEAST = 500
LONG = 2000  # characters; a longer paragraph is cut at its line ends, a longer line at its words


def key_of(paragraph: str) -> str:
    """Its words, however lines break between them; nothing where it is too short to count."""
    words = " ".join(paragraph.split())
    return words if len(words) >= PARAGRAPH else ""


def split_topics(topics: dict[str, str]) -> dict[str, list[str]]:
    """Topic names by part, `calibration` and `heldout`, in name order.

    Topics that share a paragraph go together, so no paragraph is in both parts; groups are dealt largest first, each to
    the part with less text so far.
    """
    group = {name: name for name in topics}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    first: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            if key := key_of(paragraph):
                group[root(name)] = root(first.setdefault(key, name))
    members: dict[str, list[str]] = {}
    for name in sorted(topics):
        members.setdefault(root(name), []).append(name)
    parts: dict[str, list[str]] = {"calibration": [], "heldout": []}
    filled = {"calibration": 0, "heldout": 0}

    def size(names: list[str]) -> int:
        return sum(len(topics[name]) for name in names)

    for names in sorted(members.values(), key=lambda names: (-size(names), names)):
        part = min(parts, key=lambda part: (filled[part], part))
        parts[part] += names
        filled[part] += size(names)
    return {part: sorted(names) for part, names in parts.items()}


def cut(text: str, pattern: str) -> list[str]:
    """A text behind every match of a pattern; the pieces together are the text."""
    ends = [match.end() for match in re.finditer(pattern, text)]
    return [piece for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if (piece := text[start:end])]


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs with the blank lines behind them; long ones by the line, and long lines in pieces of whole words."""
    for paragraph in cut(text, r"\n\s*\n"):
        for line in cut(paragraph, r"\n") if len(paragraph) > LONG else [paragraph]:
            yield from cut(line, rf".{{{LONG // 2},}}?\s+") if len(line) > LONG else [line]


def passages(texts: list[str]) -> list[list[tuple[int, str]]]:
    """Runs of consecutive paragraphs, each with the index of its text: about PASSAGES of them, all of one size."""
    pieces = [(i, paragraph) for i, text in enumerate(texts) for paragraph in paragraphs(text)]
    size = max(sum(map(len, texts)) / PASSAGES, LEAST)
    found: list[list[tuple[int, str]]] = []
    filled = size
    for piece in pieces:
        if filled >= size:
            found.append([])
            filled = 0
        found[-1].append(piece)
        filled += len(piece[1])
    return found


def unseen(pieces: list[str], seen: Seen) -> list[bool]:
    """Of each paragraph of a text, whether it stays where all go that make a passage among `seen`: each that has half
    of one, or lies within one."""
    stays = [True] * len(pieces)
    while True:  # what becomes neighbours may make such a passage
        left = [i for i, stay in enumerate(stays) if stay]
        marked = zip(left, seen_in([pieces[i] for i in left], seen), strict=True)
        again = [i for i, found in marked if found.any() and found.sum() >= min(LENGTH // 2, len(found))]
        if not again:
            return stays
        for i in again:
            stays[i] = False


def gathered(cut_up: list[list[tuple[int, str]]], held: list[bool]) -> dict[str, list[str]]:
    """The texts of both parts; held: of each passage whether it is held out. What was neighbours in a text is one text
    again. Held-out passages go without the paragraphs that the others have, or have a passage of."""
    pairs = list(zip(cut_up, held, strict=True))
    known = {key_of(piece) for passage, out in pairs if not out for _, piece in passage} - {""}
    marked = [
        (out, text, piece) for passage, out in pairs for text, piece in passage if not (out and key_of(piece) in known)
    ]
    seen = fingerprints(piece for out, _, piece in marked if not out)
    stays = iter(unseen([piece for out, _, piece in marked if out], seen))
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for (out, _), run in groupby((piece for piece in marked if not piece[0] or next(stays)), key=lambda one: one[:2]):
        parts[PARTS[out]].append("".join(piece for *_, piece in run))
    return parts


def halves(texts: list[str], what: str) -> dict[str, list[str]]:
    """Both parts of some texts, in their order; what: they are called in messages.

    Passages that share a paragraph go to one part. Where that leaves a part less than a quarter, since a paragraph
    returns all over the text, passages are dealt in turns. `heldout` goes without the paragraphs of which `calibration`
    has a part that counts as seen (quant.data.overlap).
    """
    cut_up, total = passages(texts), sum(map(len, texts))
    if len(cut_up) < 2:
        raise InputError(
            f"{what}: {total} characters cannot be split into a part to calibrate on and one to measure on; give a "
            "longer text, or another one to measure on"
        )
    named = {f"{i:09d}": "\n\n".join(piece for _, piece in passage) for i, passage in enumerate(cut_up)}
    heldout = set(split_topics(named)["heldout"])
    for held in ([name in heldout for name in named], [i % 2 > 0 for i in range(len(named))]):
        found = gathered(cut_up, held)
        if min(sum(map(len, found[part])) for part in PARTS) >= total / 4:
            return found
    raise InputError(
        f"{what}: repeats itself so much that no part of it can be held out; give another text to measure on"
    )
