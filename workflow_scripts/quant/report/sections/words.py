"""What the report shows of words: texts side by side, and how long each method writes what the original writes."""

from typing import Any

import pandas as pd

from quant.comparison.numbers import number
from quant.comparison.verdicts import ORIGINAL
from quant.comparison.words import GRAM, MARK
from quant.report.page import Cell, Section, Table, number_cell, sortable
from quant.report.sections.cells import of_model, pct, share_cell, text_cell

NOTE = (
    f"Each text is the likeliest next token, again and again. {MARK} stands before the first token that is not the "
    "original's; what follows may differ in every word and be as good. Repeated: share of runs of "
    f"{GRAM} tokens that stood in the text before. Broken: texts with bytes that are no character."
)


def words(
    place: str, rows: pd.DataFrame, examples: list[dict[str, Any]], summary: pd.DataFrame, colours: dict[str, str]
) -> Section:
    """Of one model; rows of words.csv, summary: its rows on the first data set, by which the best and the worst of the
    methods that write are shown."""
    tables = [("How long methods write what the original writes", lengths_table(rows, colours))]
    shown = [ORIGINAL, *extremes(rows, summary)]
    if examples:
        tables.append(("Texts side by side", texts_table(examples, shown, colours)))
    title = f"Words{of_model(str(rows.model.iloc[0]), place)}"
    return Section(f"words{place}", title, headline(rows, summary), tables=tuple(tables), notes=(NOTE,))


def extremes(rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    """The methods of least and of most damage among those that write; one where there is one."""
    writing = summary[summary.method.isin(rows.method) & (summary.method != ORIGINAL)]
    ordered = writing.sort_values("nll", kind="stable").method.tolist()
    return list(dict.fromkeys([*ordered[:1], *ordered[-1:]]))


def headline(rows: pd.DataFrame, summary: pd.DataFrame) -> str:
    by_method = rows.set_index("method")
    said = [
        f"{method} {number(by_method.agreed[method], 1)} of {int(by_method.tokens[method])}"
        for method in extremes(rows, summary)
    ]
    if not said:
        return "No quantised method has written"
    return f"Tokens until a text parts from the original's, on average of {int(rows.texts.iloc[0])}: {', '.join(said)}"


def lengths_table(rows: pd.DataFrame, colours: dict[str, str]) -> Table:
    cells = [
        [
            Cell(row.method, row.method, colours.get(row.method, "")),
            Cell(
                f"{number(row.agreed, 1)} [{number(row.agreed_low, 1)}, {number(row.agreed_high, 1)}]",
                sortable(row.agreed),
                css="num",
            ),
            share_cell(row.whole, 0),
            Cell(pct(row.repeated, 1), sortable(row.repeated), css="num"),
            number_cell(row.broken, 0),
        ]
        for row in rows.itertuples()
    ]
    columns = [
        ("method", ""),
        ("tokens until they part", f"of {int(rows.tokens.iloc[0])} at most, mean with its 95 % interval over texts"),
        ("never parted", "share of texts that are the original's to the end"),
        ("repeated", "see below"),
        ("broken texts", "see below"),
    ]
    return Table("words", columns, cells)


def texts_table(examples: list[dict[str, Any]], methods: list[str], colours: dict[str, str]) -> Table:
    """A row a text: who wrote it behind which prompt."""
    cells = [
        [text_cell(one["prompt"]), Cell(method, method, colours.get(method, "")), text_cell(one["texts"][method])]
        for one in examples
        for method in methods
    ]
    return Table("texts", [("prompt", "its last tokens"), ("method", ""), ("text", f"{MARK}: where it parts")], cells)
