"""Numbers and cells that several sections write alike."""

from quant.comparison.numbers import number
from quant.report.page import Cell, sortable


def of_model(model: str, place: str) -> str:
    """The model's name in a title where there are several."""
    return f" of {model}" if place else ""


def pct(value: float, digits: int = 2) -> str:
    return f"{number(100 * value, digits)} %"


def share_cell(value: float, digits: int = 2) -> Cell:
    return Cell(pct(value, digits), sortable(value), css="num")


def text_cell(text: str) -> Cell:
    return Cell(text, text)
