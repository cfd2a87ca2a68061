"""How much of an evaluation text has been seen in calibration: by passages of the texts, not by files.

A passage is a run of LENGTH characters, spaces aside, so that line breaks, tokens and scripts without spaces do not
matter; a sequence that is shorter is one passage. A boilerplate line is shorter than that, a shared paragraph is not.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from quant.errors import InputError

LENGTH = 80
LEAST = 20  # characters of a short sequence that counts as a passage
SHARE = 0.01  # of the evaluated characters that may stand in passages of the calibration text
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
AT_ONCE = 2**20  # passages that are hashed at once
SHORT = 8  # sequences; a text that gives fewer is said to be short


def letters(text: str) -> str:
    """Its characters without white space."""
    return "".join(text.split())


class Seen(NamedTuple):
    """passages: their hashes, ascending; short: sequences that are shorter than one."""

    passages: np.ndarray
    short: frozenset[str]

    def beside(self, other: "Seen") -> "Seen":
        """What either has seen."""
        return Seen(np.sort(np.concatenate([self.passages, other.passages])), self.short | other.short)


def hashes(text: str) -> np.ndarray:
    """Of each run of LENGTH characters, uint64: Σ c_k·FACTOR^k mod 2⁶⁴ (Karp and Rabin 1987), k within the run."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    found = np.empty(max(len(codes) - LENGTH + 1, 0), np.uint64)
    powers, inverse = (
        np.cumprod(np.full(AT_ONCE + LENGTH, number, np.uint64), dtype=np.uint64)
        for number in (FACTOR, pow(FACTOR, -1, 2**64))
    )
    for first in range(0, len(found), AT_ONCE):
        n = min(AT_ONCE, len(found) - first)
        sums = np.zeros(n + LENGTH, np.uint64)
        np.cumsum((codes[first : first + n + LENGTH - 1] + np.uint64(1)) * powers[: n + LENGTH - 1], out=sums[1:])
        found[first : first + n] = (sums[LENGTH:] - sums[:n]) * inverse[:n]
    return found


def fingerprints(sequences: Iterable[str]) -> Seen:
    """Of every passage of the sequences, which follow one another in a text; and of every short sequence."""
    parts = [letters(sequence) for sequence in sequences]
    return Seen(np.sort(hashes("".join(parts))), frozenset(part for part in parts if LEAST <= len(part) < LENGTH))


def seen_in(sequences: Iterable[str], seen: Seen) -> list[np.ndarray]:
    """Of each sequence, for each of its letters whether it stands in a passage that has been seen."""
    parts = [letters(sequence) for sequence in sequences]
    own, ends = hashes("".join(parts)), np.cumsum([len(part) for part in parts])
    found = np.zeros(len(own), bool)
    if len(seen.passages):
        order = np.argsort(own)  # looked for in order, which spares a cache
        at = np.searchsorted(seen.passages, own[order]).clip(max=len(seen.passages) - 1)
        found[order] = seen.passages[at] == own[order]
    begun = np.zeros(int(ends[-1]) + 1 if len(ends) else 1, np.int64)  # passages that begin before each letter
    np.cumsum(found, out=begun[1 : len(found) + 1])
    begun[len(found) + 1 :] = begun[len(found)]
    within = begun[1:] > begun[np.maximum(np.arange(1, len(begun)) - LENGTH, 0)]
    return [
        np.ones(len(part), bool) if LEAST <= len(part) < LENGTH and part in seen.short else marks
        for part, marks in zip(parts, np.split(within, ends[:-1]) if parts else [], strict=True)
    ]


def seen_share(sequences: Iterable[str], seen: Seen) -> float:
    """Share of the sequences' letters that stand in a passage whose fingerprint is among `seen`."""
    found = seen_in(sequences, seen)
    return sum(int(marks.sum()) for marks in found) / max(sum(map(len, found)), 1)


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
