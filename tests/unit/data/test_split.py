"""One text as two parts: nothing lost, nothing shared, neither part poor."""

import re
from pathlib import Path

import pytest

from quant.data.overlap import fingerprints, seen_share
from quant.data.split import halves
from quant.data.texts import read_texts, reference_topics
from quant.errors import InputError
from tests.unit.data.paragraphs import WORDS, prose


def paragraphs(texts: list[str]) -> set[str]:
    """Of 40 characters or more, white space aside."""
    found = {" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)}
    return {part for part in found if len(part) >= 40}


def check(texts: list[str]) -> dict[str, list[str]]:
    parts = halves(texts, "text.txt")
    assert list(parts) == ["calibration", "heldout"]
    calibration, heldout = (paragraphs(part) for part in parts.values())
    assert not calibration & heldout
    sizes = [sum(map(len, part)) for part in parts.values()]
    assert min(sizes) >= sum(map(len, texts)) / 4
    return parts


def test_a_long_text_is_dealt_whole_in_its_order() -> None:
    text = "\n\n".join(prose(300, seed=1))
    parts = check([text])
    assert sum(map(len, parts["calibration"] + parts["heldout"])) == len(text)
    places = {part: [text.index(piece) for piece in pieces] for part, pieces in parts.items()}
    assert all(found == sorted(found) for found in places.values())
    assert all(len(pieces) > 5 for pieces in parts.values()), "both have passages from all over the text"


def test_passages_that_share_a_paragraph_stay_together() -> None:
    own = prose(200, seed=2)
    text = "\n\n".join([own[7].replace("\n", "\n   ") if i in (90, 170) else one for i, one in enumerate(own)])
    parts = check([text])
    assert sum(" ".join(own[7].split()) in " ".join("\n\n".join(part).split()) for part in parts.values()) == 1


def test_a_paragraph_that_returns_all_over_is_held_out_of_one_part() -> None:
    """Tied by it, all passages would be one."""
    boilerplate = "This notice is repeated before each and every section of this document."
    text = "\n\n".join(one for paragraph in prose(120, seed=3) for one in (boilerplate, paragraph))
    parts = check([text])
    assert boilerplate in parts["calibration"][0] and all(boilerplate not in part for part in parts["heldout"])
    own = paragraphs([text]) - {boilerplate}
    assert paragraphs(parts["calibration"]) | paragraphs(parts["heldout"]) >= own, "nothing else is lost"


def test_what_calibration_has_within_a_paragraph_is_not_held_out() -> None:
    """Documentation of classes repeats what they inherit: other paragraphs, the same sentences."""
    inherited = prose(6, seed=6, words=20)
    own = [f"{one} {inherited[i % 6]}" if i % 5 == 0 else one for i, one in enumerate(prose(300, seed=7))]
    short = [f"{one}()" for one in WORDS[:30]]  # too short to count, in an order that makes a passage
    parts = check(["\n\n".join(own[:100] + short + own[100:200] + short + own[200:])])
    assert seen_share(parts["heldout"], fingerprints(parts["calibration"])) == 0
    assert sum(map(len, parts["heldout"])) > sum(map(len, own)) / 3, "no more than that is left out"


@pytest.mark.parametrize("kind", ["a line a text", "one line", "rows", "two files"])
def test_texts_of_other_shapes(kind: str) -> None:
    own = prose(200, seed=4)
    flat = [one.replace("\n", " ") for one in own]
    texts = {
        "a line a text": ["".join(f"{one}\n" for one in flat)],
        "one line": [" ".join(flat)],
        "rows": flat,
        "two files": ["\n\n".join(own[:50]), "\n\n".join(own[50:])],
    }[kind]
    parts = check(texts)
    assert sum(map(len, parts["calibration"] + parts["heldout"])) == sum(map(len, texts))
    words = [word for part in parts.values() for text in part for word in text.split()]
    assert sorted(words) == sorted(" ".join(texts).split()), "no word is cut in two"
    if kind == "rows":
        assert all(piece in texts for part in parts.values() for piece in part)


def test_both_protocols_read_the_same_parts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{one}\n" for one in prose(90, seed=5)))
    for part in ("calibration", "heldout"):
        spec = {"files": [str(path)], "part": part}
        lines = read_texts(spec, "samples")
        assert "".join(lines) == "".join(read_texts(spec, "windows")) and len(lines) > 30


def test_the_language_reference_as_one_text() -> None:
    check(["\n\n".join(reference_topics().values())])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["too short"], "text.txt: 9 characters cannot be split"),
        (["The same paragraph over and over again, forty characters and more.\n\n" * 200], "text.txt: repeats itself"),
    ],
)
def test_what_cannot_be_split_is_refused(texts: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        halves(texts, "text.txt")
    assert "another" in str(caught.value) and "\n" not in str(caught.value)
