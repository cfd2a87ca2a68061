"""What a page is made of: cells, tables, pictures and sections, and how numbers are written in them."""

import base64
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from quant.comparison.numbers import number


class Span(NamedTuple):
    """An interval as it is drawn: where it begins, how wide it is, its value and 0, in percent of the cell's width."""

    left: float
    width: float
    value: float
    zero: float


class Cell(NamedTuple):
    """What a table shows and what it sorts by; swatch is a method's colour, band a quality, css a class; title is said
    where one points at it; span: the interval under the text."""

    text: str
    order: float | str
    swatch: str = ""
    css: str = ""
    band: str = ""
    title: str = ""
    span: Span | None = None


class Table(NamedTuple):
    """columns: (heading, its definition); rows of cells; note: what a reader needs beside it."""

    name: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    note: str = ""


class Picture(NamedTuple):
    """A figure as a data URI, the text that stands in for it, and its caption."""

    source: str
    alt: str
    caption: str


class Folded(NamedTuple):
    """What a section shows only when its label is clicked: figures, and tables with their labels."""

    label: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()


class Section(NamedTuple):
    """Part of the page: what it asks or shows, the answer in one sentence (empty where there is none), lines that
    support it, figures, tables with their labels, notes (what to keep in mind), YAML that would ask it, and what is
    folded away."""

    anchor: str
    title: str
    headline: str = ""
    lines: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    notes: tuple[str, ...] = ()
    code: str = ""
    folded: tuple[Folded, ...] = ()


def sortable(value: float | None) -> float:
    """What a table sorts a number by: missing ones below all others, infinity above."""
    if value is None or pd.isna(value):
        return -1e300
    return max(min(float(value), 1e300), -1e300)


def spans(found: Sequence[tuple[float, float, float]], farthest: float = math.inf) -> list[Span | None]:
    """(low, value, high) of every row on one scale that holds them and 0; what lies beyond `farthest` is cut off; None
    where a row has no interval."""
    drawn = [row for row in found if all(map(math.isfinite, row))]
    low = max(min([0.0, *(row[0] for row in drawn)]), -farthest)
    high = min(max([0.0, *(row[2] for row in drawn)]), farthest)
    reach = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / reach, 1)

    def span(first: float, value: float, last: float) -> Span:
        return Span(place(first), round(place(last) - place(first), 1), place(value), place(0.0))

    return [span(*row) if all(map(math.isfinite, row)) else None for row in found]


def number_cell(value: float, digits: int, unit: str = "") -> Cell:
    text = number(value, digits)
    return Cell(text if text == "–" else text + unit, sortable(value), css="num")


def json_uri(content: object) -> str:
    return data_uri("application/json", json.dumps(content, indent=1))


def csv_uri(frame: pd.DataFrame) -> str:
    return data_uri("text/csv", frame.to_csv(index=False))


def data_uri(kind: str, content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
