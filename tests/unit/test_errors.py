"""What an exception says, in one line."""

from quant.errors import one_line


def test_an_exception_in_one_line() -> None:
    """With the reason where the first line only announces it."""
    said = {
        "": "ValueError",
        "a\nb": "a",
        " \n one  two \n": "one two",
        "for x:\n    Field 'x'\nmore": "for x: Field 'x'",
        "x:": "x:",
    }
    assert {text: one_line(ValueError(text)) for text in said} == said
    assert len(one_line(ValueError("a" * 999))) == 160
