"""What the page says of its texts."""

import pytest

from quant.comparison.verdicts import ranked
from quant.report.sections.models import plain_words
from quant.report.texts import text_lines
from tests.unit.report.pages import summary


def test_texts_are_said_with_what_was_seen_and_what_is_short() -> None:
    table = summary({"rtn": 0.1, "gw_awq": 0.2})
    assert text_lines(table) == [
        "m on d: 5,120 tokens in 10 sequences (protocol windows, at most 512 tokens each); "
        "KL and top-1 over 2,044 tokens",
        "m calibrated on 32,768 tokens in 64 sequences: rtn, gw_awq",
    ]
    measured, calibrated = text_lines(table.assign(sequences=7, seen_share=0.5, calibration_sequences=3.0))
    assert "in 7 sequences, a short text (under 8 sequences" in measured and "3 sequences, a short text" in calibrated
    assert measured.endswith("calibration has seen 50 % of this text: it is no proof of what learns from it")


@pytest.mark.parametrize(
    ("share", "words"), [(0.0, "of unseen text worse"), (0.5, "of text of which calibration has seen 50 % worse")]
)
def test_text_that_was_seen_is_never_called_unseen(share: float, words: str) -> None:
    table = summary({"rtn": 0.1}).assign(seen_share=share)
    assert words in plain_words(ranked(table, "m", "d"), table)
