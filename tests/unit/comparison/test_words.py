"""Where texts part, and what repeats in them; and the section that shows them."""

from typing import Any

import pandas as pd
import pytest

from quant.comparison.words import MARK, agreed, examples, marked, repeated, words_table
from quant.report.sections import words


def text(*ids: int) -> dict[str, Any]:
    """Each id is one letter and a digit."""
    whole = "".join(f" {chr(97 + one % 26)}{one % 10}" for one in ids)
    return {"prompt": "<i>go</i>", "text": whole, "ids": list(ids), "ends": [3 * (i + 1) for i in range(len(ids))]}


def written(method: str, *texts: dict[str, Any], **made: Any) -> dict[str, Any]:
    provenance = {"versions": {}, "task_fingerprint": "f", "recipe": None} | made
    names = {"model": "m", "method": method, "task": "t", "tokens": 4, "seconds": 1.0}
    return names | {"texts": list(texts), "provenance": provenance}


ORIGINAL = written("original", text(1, 2, 3, 4), text(5, 6))
NEAR = written("near", text(1, 2, 3, 9), text(5, 6), recipe={"bits": 4})
FAR = written("far", text(7, 2, 3, 4), text(5, 6, 8) | {"text": " f5 g6 \ufffd"}, recipe={"bits": 2})


@pytest.mark.parametrize(
    ("ids", "original", "same"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 4, 3], [1, 2, 3], 1)]
)
def test_tokens_until_they_part(ids: list[int], original: list[int], same: int) -> None:
    assert agreed(ids, original) == agreed(original, ids) == same


def test_runs_of_four_that_stood_before() -> None:
    assert repeated([1, 2, 3]) == repeated([1, 2, 3, 4, 5]) == 0
    assert repeated([1] * 8) == pytest.approx(4 / 5) and repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_the_first_token_that_differs_is_marked() -> None:
    first, second = ORIGINAL["texts"]
    assert marked(NEAR["texts"][0], first) == f" b1 c2 d3 {MARK} j9"
    assert marked(FAR["texts"][0], first) == f" {MARK} h7 c2 d3 e4"
    assert marked(FAR["texts"][1], second) == f" f5 g6 {MARK} \ufffd" and marked(second, second) == second["text"]


def test_the_table_says_how_long_texts_stay_the_same() -> None:
    table = words_table([ORIGINAL, NEAR, FAR], 999, 0).set_index("method")
    assert table.agreed.to_dict() == {"original": 3.0, "near": 2.5, "far": 1.0}
    assert table.whole.to_dict() == {"original": 1.0, "near": 0.5, "far": 0.0}
    assert table.broken.to_dict() == {"original": 0, "near": 0, "far": 1}
    with pytest.raises(ValueError, match="different contexts"):
        words_table([ORIGINAL, written("other", *NEAR["texts"], task_fingerprint="g")], 999, 0)


def test_the_page_shows_the_original_the_best_and_the_worst_side_by_side() -> None:
    middle = written("middle", *NEAR["texts"], recipe={"bits": 3})
    rows = words_table([ORIGINAL, NEAR, middle, FAR], 999, 0)
    summary = pd.DataFrame({"method": ["original", "near", "middle", "far", "mute"], "nll": [1.0, 1.1, 1.5, 2.0, 9.0]})
    found = words.words("", rows, examples([ORIGINAL, NEAR, middle, FAR], 1), summary, {})
    assert (
        found.headline == "Tokens until a text parts from the original's, on average of 2: near 2.5 of 4, far 1.0 of 4"
    )
    lengths, texts = (table for _, table in found.tables)
    assert [row[0].text for row in lengths.rows] == ["original", "near", "middle", "far"]
    assert [[cell.text for cell in row] for row in texts.rows] == [
        ["<i>go</i>", "original", " b1 c2 d3 e4"],
        ["<i>go</i>", "near", f" b1 c2 d3 {MARK} j9"],
        ["<i>go</i>", "far", f" {MARK} h7 c2 d3 e4"],
    ]
