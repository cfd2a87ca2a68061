"""Sections of the page from the answers to the research questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from quant.comparison.answers import NO_ANSWER
from quant.report.page import Picture, Section, data_uri
from quant.report.tables import answer_pairs_table, values_table

FEW_LINES = 5  # more of them say in sentences what the table below says better


def answer_section(
    answered: dict[str, Any], model: str, anchor: str, figures: dict[str, str], colours: dict[str, str]
) -> Section:
    """One question of one model; figures: SVG text by model/questions/anchor."""
    asked = answered["outcome"] != NO_ANSWER
    svg = figures.get(f"{model}/questions/{answered['anchor']}")
    alt = f"{answered['question']} {answered['verdict']}."
    pictures: tuple[Picture, ...] = ()
    if svg is not None and asked and (answered["pairs"] or answered["values"]):
        pictures = (Picture(data_uri("image/svg+xml", svg), alt, f"{model}. Its numbers: the table below."),)
    tables = []
    if answered["pairs"]:
        tables.append((f"Paired differences: {answered['question']}", answer_pairs_table(answered["pairs"], colours)))
    if answered["values"]:
        tables.append((f"Numbers: {answered['question']}", values_table(answered["values"], colours)))
    lines = answered["lines"]
    if len(lines) > FEW_LINES:
        lines = [*lines[: FEW_LINES - 1], "The rest is in the table."]
    return Section(
        anchor,
        answered["question"],
        answered["verdict"],
        tuple(lines) if asked else (),
        pictures,
        tuple(tables) if asked else (),
        tuple(answered["caveats"]),
        "" if asked else answered["yaml"],
    )


def answer_sections(
    answers: Mapping[str, Sequence[dict[str, Any]]], figures: dict[str, str], colours: dict[str, str]
) -> list[Section]:
    """A section a question and model, question by question; the title names the model where there are several. One
    that was not asked has code: YAML that would ask it.
    """
    several = len(answers) > 1
    found = []
    for place, one in enumerate(next(iter(answers.values()), [])):
        for i, (model, answered) in enumerate(answers.items()):
            anchor = f"question-{one['anchor']}" + (f"-{i}" if several else "")
            section = answer_section(answered[place], model, anchor, figures, colours)
            found.append(section._replace(title=f"{section.title} ({model})") if several else section)
    return found
