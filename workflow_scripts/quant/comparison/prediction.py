"""Does a layer's error predict what the whole model suffers? Rank correlations over methods, by NLL and by KL."""

import math

import numpy as np
import pandas as pd

from quant.comparison.answers import NO_DIFFERENCE, Answered, Evidence, finite
from quant.comparison.correlation import rank_correlation
from quant.comparison.measures import MEASURES, PREDICTED, other
from quant.comparison.numbers import LEVEL
from quant.comparison.paired import holm
from quant.comparison.verdicts import p_words

AGGREGATES = {
    "mean log relative error": "log of each linear's E‖(W−Ŵ)x‖²/E‖Wx‖² on the calibration text, averaged over linears",
    "log total MSE": "log of E‖(W−Ŵ)x‖² on the calibration text, summed over linears",
    "log MSE of the checked layer on the data set": "the same sum over one layer's linears on the first data set",
    PREDICTED: "what the end loss's second derivative says that all linears' changes cost, each by itself, in sum",
}


def layer_errors(linears: pd.DataFrame, heldout: pd.DataFrame | None) -> pd.DataFrame:
    """method × AGGREGATES; a method without any error has no logarithm and is left out."""
    with np.errstate(divide="ignore"):
        logs = linears.assign(log=np.log(linears.relative_error)).groupby("method", sort=False)
        columns = {"mean log relative error": logs.log.mean(), "log total MSE": np.log(logs.mse.sum())}
        if heldout is not None and len(heldout):
            sums = heldout.groupby("method", sort=False).mse.sum()
            columns["log MSE of the checked layer on the data set"] = np.log(sums)
    if "predicted_nats" in linears:
        columns[PREDICTED] = logs.predicted_nats.sum(min_count=1)
    return pd.DataFrame(columns).replace([np.inf, -np.inf], np.nan)


def layer_error(evidence: Evidence, answered: Answered) -> None:
    """Rank correlation over methods of each aggregate of layer errors with the rise of the NLL and with KL, on the
    first data set. The verdict is by the study's measure, corrected for the aggregates."""
    rows = evidence.summary[evidence.summary.dataset == evidence.datasets[0]].set_index("method")
    errors = layer_errors(evidence.linears, evidence.heldout)
    by, twin = MEASURES[evidence.by].rise, MEASURES[other(evidence.by)].rise
    deltas = rows[np.isfinite(rows[by])]
    found, beside = {}, {}
    for name in errors:
        column = errors[name].dropna()
        methods = [method for method in column.index if method in deltas.index]
        found[name] = rank_correlation(column[methods].to_numpy(), deltas[by][methods].to_numpy())
        if twin in deltas:
            told = [method for method in methods if np.isfinite(deltas[twin][method])]
            beside[name] = rank_correlation(column[told].to_numpy(), deltas[twin][told].to_numpy())
        answered.values += [
            {"measure": name, "method": method, "value": float(column[method]),
             **{key: finite(deltas[key][method]) for key in ("delta_nll", "kl") if key in deltas}}
            for method in methods
        ]  # fmt: skip
    usable = {name: each for name, each in found.items() if math.isfinite(each.rho)}
    if not usable:
        answered.values = []
        return
    corrected = dict(zip(usable, holm([each.p for each in usable.values()]), strict=True))
    shown = [name for name in usable if corrected[name] <= LEVEL and usable[name].rho > 0]
    answered.outcome = "first" if len(shown) == len(usable) else "mixed" if shown else NO_DIFFERENCE
    best = max(usable, key=lambda name: usable[name].rho)
    start = {"first": "Yes", "mixed": "In part", NO_DIFFERENCE: "Not shown"}[answered.outcome]
    answered.verdict = f"{start}: by {best}, methods rank as by {by} with Spearman's ρ {usable[best].text()}"
    if PREDICTED in usable and best != PREDICTED:
        answered.verdict += f"; by {PREDICTED} with {usable[PREDICTED].text()}"
    answered.lines += [
        f"{name} ({AGGREGATES[name]}): ρ with {by} {each.text()}, {p_words(corrected[name])} corrected"
        + (f"; with {twin} {beside[name].text()}." if name in beside else ".")
        for name, each in usable.items()
    ]
