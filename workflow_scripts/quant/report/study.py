"""All that a page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from quant.comparison.pick import Choice
from quant.comparison.summary import recipes_of
from quant.report.page import Section


@dataclass(frozen=True)
class Study:
    """What the report's script reads and its sections say.

    command: what makes it; adding: the same with the file more.yaml, which adds to the study.
    summary, comparisons, linears: the study's tables; figures: SVG text by the key that figures.draw and
    figures.questions give it; colours: by method; written: the configuration as the user wrote it, to run it again.
    checks (of one layer), answers (of the research questions) and choices (what to deploy) by model; channels: those
    that the check keeps; steps: what each job cost; sections: of the analyses; sources: more tables to download, by
    file name; caveats: of models whose weights were quantised before convert; missing: model, method and reason of
    those that failed.
    """

    summary: pd.DataFrame
    comparisons: pd.DataFrame
    linears: pd.DataFrame
    figures: dict[str, str]
    colours: dict[str, str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    command: str
    adding: str
    written: dict[str, Any] | None = None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    channels: pd.DataFrame | None = None
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    steps: pd.DataFrame | None = None
    sections: Sequence[Section] = ()
    sources: dict[str, pd.DataFrame] = field(default_factory=dict)
    caveats: dict[str, str] = field(default_factory=dict)
    missing: Sequence[dict[str, str]] = ()

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self.summary.model))

    @property
    def by(self) -> str:
        """The measure that verdicts rest on."""
        return str(self.config.get("comparison", {}).get("by", "nll"))

    @cached_property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """By method."""
        return recipes_of(self.summary)

    def datasets(self, model: str) -> list[str]:
        """The model's data sets in the order of the study, then of the summary."""
        present = list(dict.fromkeys(self.summary.dataset[self.summary.model == model]))
        wanted = self.config.get("study", {}).get("datasets", [])
        wanted = list(self.config.get("datasets", {})) if wanted == "all" else wanted
        return sorted(present, key=lambda name: wanted.index(name) if name in wanted else len(wanted))

    def rows(self, model: str, dataset: str) -> pd.DataFrame:
        """Of the summary."""
        return self.summary[(self.summary.model == model) & (self.summary.dataset == dataset)]

    def compared(self, model: str, dataset: str) -> pd.DataFrame:
        """Its pairs of methods."""
        return self.comparisons[(self.comparisons.model == model) & (self.comparisons.dataset == dataset)]
