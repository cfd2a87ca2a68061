"""What a page is made of: cells, tables, pictures and sections, and how numbers are written in them."""

import base64
import json
from typing import NamedTuple

import pandas as pd

from quant.comparison.numbers import number


class Cell(NamedTuple):
    """What a table shows and what it sorts by; swatch is a method's colour, band a quality, css a class; title is said
    where one points at it."""

    text: str
    order: float | str
    swatch: str = ""
    css: str = ""
    band: str = ""
    title: str = ""


class Table(NamedTuple):
    """columns: (heading, its definition); rows of cells."""

    name: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]


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
