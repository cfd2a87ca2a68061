"""How much of an evaluation text has been seen in calibration: by passages of the texts, not by files.

A passage is a run of LENGTH characters, spaces aside, so that line breaks, tokens and scripts without spaces do not
matter; a sequence that is shorter is one passage. A boilerplate line is shorter than that, a shared paragraph is not.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from quant.errors import InputError

LENGTH = 80
LEAST = 20  # characters of a short sequence that counts as a passage
SHARE = 0.01  # of the evaluated characters that may stand in passages of the calibration text
SHORT = 8  # sequences; a text that gives fewer is said to be short


def letters(text: str) -> str:
    """Its characters without white space."""
    return "".join(text.split())


def fingerprints(sequences: Iterable[str]) -> set[int]:
    """Of every passage of the sequences, which follow one another in a text; and of every short sequence."""
    parts = [letters(sequence) for sequence in sequences]
    whole = "".join(parts)
    runs = {hash(whole[i : i + LENGTH]) for i in range(len(whole) - LENGTH + 1)}
    return runs | {hash(part) for part in parts if LEAST <= len(part) < LENGTH}


def seen_in(sequences: Iterable[str], seen: set[int]) -> list[bytearray]:
    """Of each sequence, a byte for each of its letters: 1 in a passage whose fingerprint is among `seen`."""
    parts = [letters(sequence) for sequence in sequences]
    whole = "".join(parts)
    marked = bytearray(len(whole))
    for i in range(len(whole) - LENGTH + 1):
        if hash(whole[i : i + LENGTH]) in seen:
            marked[i : i + LENGTH] = b"\1" * LENGTH
    found, start = [], 0
    for part in parts:
        short = LEAST <= len(part) < LENGTH and hash(part) in seen
        found.append(bytearray(b"\1" * len(part)) if short else marked[start : start + len(part)])
        start += len(part)
    return found


def seen_share(sequences: Iterable[str], seen: set[int]) -> float:
    """Share of the sequences' letters that stand in a passage whose fingerprint is among `seen`."""
    found = seen_in(sequences, seen)
    return sum(map(sum, found)) / max(sum(map(len, found)), 1)


def counted(sequences: Sequence[Any]) -> dict[str, int]:
    return {"sequences": len(sequences), "tokens": sum(map(len, sequences))}


def check_overlap(shares: dict[str, float], allowed: bool) -> None:
    """Refuses data sets and tasks of which more has been seen than SHARE, unless the study asks for it; shares: by what
    they are called, as datasets.NAME."""
    found = [f"{name}: {percent(share)}" for name, share in shares.items() if share > SHARE]
    if found and not allowed:
        raise InputError(
            f"{', '.join(found)} of the evaluated text has been seen in calibration (it stands in passages of {LENGTH} "
            f"characters, spaces aside, that the calibration text has too; at most {SHARE:.0%} may): a method that "
            "learnt it proves nothing. Give texts that share none; or the same text for both, which is then split by "
            "itself; or write calibration: {allow_overlap: true}, and the report says that it was seen"
        )


def percent(share: float) -> str:
    """0.5 %, 12 %."""
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def seen_words(share: float) -> str:
    """What kind of text that is."""
    return "unseen text" if share <= SHARE else f"text of which calibration has seen {percent(share)}"


def short_words(sequences: int) -> str:
    """What to say of a text that gave so few sequences; nothing where they are enough."""
    return f", a short text (under {SHORT} sequences: little is known)" if sequences < SHORT else ""


def text_columns(facts: dict[str, Any], dataset: str, recipe: dict[str, Any] | None) -> dict[str, Any]:
    """A row's columns of summary.csv: how much of the data set has been seen in calibration, and on how many sequences
    and tokens the method was calibrated, if it was. facts: as check_texts writes them."""
    name = None if recipe is None else f"n{recipe['n_calib']}-s{recipe['seed']}"
    calibrated = facts["calibrations"].get(name, {})
    return {
        "seen_share": facts["datasets"][dataset]["seen_share"],
        **{f"calibration_{key}": calibrated.get(key) for key in ("sequences", "tokens")},
    }
