"""What has been seen in calibration is found by passages; boilerplate is not."""

import random

import pytest

from quant.data import overlap
from quant.data.overlap import (
    LENGTH,
    check_overlap,
    fingerprints,
    seen_share,
    seen_words,
    short_words,
    text_columns,
)
from quant.errors import InputError
from tests.unit.data.paragraphs import prose


def slow_share(evaluated: str, calibrated: str) -> float:
    """Characters that some passage of the calibration text covers, by looking for each passage."""
    evaluated, calibrated = ("".join(text.split()) for text in (evaluated, calibrated))
    covered: set[int] = set()
    for i in range(len(evaluated) - LENGTH + 1):
        if evaluated[i : i + LENGTH] in calibrated:
            covered |= set(range(i, i + LENGTH))
    return len(covered) / len(evaluated)


@pytest.mark.parametrize("shared", [0, 1, 3, 10, 20])
def test_shared_paragraphs_are_found_wherever_they_stand(shared: int) -> None:
    own, other = prose(20, seed=1), prose(20, seed=2)
    evaluated = other[: 20 - shared] + own[:shared]
    random.Random(3).shuffle(evaluated)
    found = seen_share(["\n\n".join(evaluated)], fingerprints(["\n\n".join(own)]))
    assert found == slow_share("\n\n".join(evaluated), "\n\n".join(own))
    assert found == pytest.approx(shared / 20, abs=0.02)


def test_other_line_breaks_and_other_sequences_do_not_hide_a_copy() -> None:
    words = " ".join(prose(20, seed=4)).split()
    calibrated = [" ".join(words[i : i + 100]) for i in range(0, len(words), 100)]
    evaluated = ["\n".join(words[i : i + 33]) for i in range(0, len(words), 33)]
    assert seen_share(evaluated, fingerprints(calibrated)) == 1


def test_a_short_line_is_a_passage_of_its_own() -> None:
    """Samples in another order, each shorter than a passage."""
    lines = [" ".join(one.split()[:8]) for one in prose(40, seed=5)]
    assert all(len("".join(line.split())) < LENGTH for line in lines)
    shuffled = random.Random(6).sample(lines, len(lines))
    assert seen_share(shuffled, fingerprints(lines)) == 1
    assert seen_share(["Yes.", "No."], fingerprints(["No.", "Yes."])) == 0, "too short to say anything"


@pytest.mark.parametrize("at_once", [1, 7, 2**20])
def test_runs_alike_have_one_hash_and_others_others(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many are hashed at once, beyond the first 65,536 characters and with halves of some among them."""
    monkeypatch.setattr(overlap, "AT_ONCE", at_once)
    text = "".join(random.Random(11).choices("ab\U0001f600\ud83d", k=300)) * 2
    runs = [text[i : i + LENGTH] for i in range(len(text) - LENGTH + 1)]
    found = overlap.hashes(text).tolist()
    assert len(found) == len(runs) and len(set(found)) == len(set(runs)) < len(runs)
    assert all((a == b) == (found[0] == h) for a, b, h in zip(runs[:1] * len(runs), runs, found, strict=True))
    assert overlap.hashes(text[: LENGTH - 1]).tolist() == [] == overlap.hashes("").tolist()


def test_scripts_without_spaces() -> None:
    text = "".join(chr(0x4E00 + random.Random(7 + i).randrange(3000)) for i in range(400))
    assert seen_share([text[200:]], fingerprints([text])) == 1
    assert seen_share([text[200:]], fingerprints([text[:200]])) == 0


def test_boilerplate_does_not_count() -> None:
    """A line that both texts repeat is shorter than a passage."""
    line = "Copyright 2024 by the authors. All rights reserved. See LICENSE for the terms."
    calibrated, evaluated = ("\n\n".join(one for p in prose(20, seed) for one in (line, p)) for seed in (8, 9))
    assert seen_share([evaluated], fingerprints([calibrated])) == 0


def test_nothing_to_compare() -> None:
    assert seen_share([], fingerprints([])) == 0 and seen_share([" \n"], fingerprints(["x" * 99])) == 0


def test_overlap_is_refused_unless_asked_for() -> None:
    shares = {"datasets.d": 0.004, "datasets.e": 0.43, "tasks.f": 0.012}
    with pytest.raises(InputError, match=r"^datasets\.e: 43 %, tasks\.f: 1\.2 % of the evaluated text") as caught:
        check_overlap(shares, False)
    text = str(caught.value)
    assert "allow_overlap: true" in text and "80 characters" in text and "1% may" in text and "\n" not in text
    check_overlap(shares, True)
    check_overlap({"datasets.d": 0.01}, False)


def test_words() -> None:
    assert seen_words(0.01) == "unseen text" and seen_words(0.43) == "text of which calibration has seen 43 %"
    assert short_words(8) == "" and "under 8 sequences" in short_words(7)


def test_columns_of_the_summary() -> None:
    facts = {
        "calibrations": {"n64-s42": {"sequences": 20, "tokens": 640}},
        "datasets": {"d": {"sequences": 9, "tokens": 99, "seen_share": 0.1}},
    }
    assert text_columns(facts, "d", {"n_calib": 64, "seed": 42}) == {
        **{"seen_share": 0.1, "calibration_sequences": 20, "calibration_tokens": 640}
    }
    for recipe in (None, {"n_calib": None, "seed": 42}):
        assert text_columns(facts, "d", recipe)["calibration_sequences"] is None
