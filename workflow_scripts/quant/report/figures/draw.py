"""Every figure of the study by the key that the page finds it under."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from quant.comparison.measures import MEASURES
from quant.report.figures.check import check_mse
from quant.report.figures.linears import alpha_by_layer, error_by_kind, error_by_layer
from quant.report.figures.pairs import pairs
from quant.report.figures.profiles import profile
from quant.report.figures.study import delta_nll, perplexity_bits, size_delta_nll, sweep


def draw(
    summary: pd.DataFrame,
    comparisons: pd.DataFrame,
    layers: pd.DataFrame,
    checks: dict[str, Any],
    colours: dict[str, str],
    families: dict[str, list[str]] | None = None,
    chosen: dict[tuple[str, str], str | None] | None = None,
    by: str = "nll",
    profiles: pd.DataFrame | None = None,
) -> dict[str, Figure]:
    """Every figure of the report by key: model/name or model/dataset/name.

    families: the methods of each sweep; chosen: what to deploy, by model and data set; by: what verdicts rest on;
    profiles: profiles.csv.
    """
    drawn: dict[str, Figure] = {}
    for (model, dataset), rows in summary.groupby(["model", "dataset"], sort=False):
        order = rows[rows.method != "original"].sort_values(MEASURES[by].own, kind="stable").method.tolist()
        compared = comparisons[(comparisons.model == model) & (comparisons.dataset == dataset)]
        drawn[f"{model}/{dataset}/perplexity_bits"] = perplexity_bits(rows, colours)
        drawn[f"{model}/{dataset}/size_delta_nll"] = size_delta_nll(rows, colours, (chosen or {}).get((model, dataset)))
        drawn[f"{model}/{dataset}/delta_nll"] = delta_nll(rows, colours)
        drawn[f"{model}/{dataset}/pairs"] = pairs(compared, order, by)
        if profiles is not None:
            own = profiles[(profiles.model == model) & (profiles.dataset == dataset)]
            for name in ("frequency", "position"):
                drawn[f"{model}/{dataset}/by_{name}"] = profile(own[own.by == name], name, colours)
        for family, members in (families or {}).items():
            drawn[f"{model}/{dataset}/sweep-{family}"] = sweep(rows, members, colours)
    for model, rows in layers.groupby("model", sort=False):
        drawn[f"{model}/error_by_layer"] = error_by_layer(rows, colours)
        drawn[f"{model}/error_by_kind"] = error_by_kind(rows)
        drawn[f"{model}/alpha_by_layer"] = alpha_by_layer(rows, colours)
    for model, check in checks.items():
        drawn[f"{model}/check_mse"] = check_mse(check)
    return drawn
