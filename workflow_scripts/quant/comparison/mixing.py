"""What mixing widths buys over one width, and how well the prediction that chose them held."""

import math

import numpy as np
import pandas as pd

from quant.comparison.answers import Answered, Evidence, of_pairs
from quant.comparison.correlation import rank_correlation
from quant.comparison.numbers import number
from quant.comparison.pairs import Recipes, differing_keys
from quant.comparison.verdicts import ORIGINAL

# in which a budget and its recipe at one width may differ
WIDTHS = {"bits", "group_size", "budget", "candidates", "swaps", "search_bits", "search_group_size"}
PREDICTED, CORRECTED = "predicted_nats", "corrected_nats"
SAME = 1.001  # sizes within a thousandth are one


def one_width(recipes: Recipes) -> list[tuple[str, str]]:
    """Each budget, and its recipe at each width."""
    own = {name: recipe for name, recipe in recipes.items() if "algorithm" not in recipe}
    return [
        (mix, single)
        for mix, recipe in own.items()
        for single, other in own.items()
        if recipe.get("budget") and not other.get("budget") and differing_keys(recipe, other) <= WIDTHS
    ]


def on_the_line(size: float, known: list[tuple[float, float]]) -> float:
    """The value at a size between the next smaller and the next larger of known (size, value); NaN outside."""
    smaller, larger = ([each for each in known if sign * (size - each[0]) >= 0] for sign in (1, -1))
    if not smaller or not larger:
        return math.nan
    (a, low), (b, high) = max(smaller), min(larger)
    return low if a == b else low + (high - low) * (size - a) / (b - a)


def mixing(evidence: Evidence, answered: Answered) -> None:
    """A budget against every one width of its recipe that is no larger; its KL on the line between its neighbours; and
    predicted against measured KL of all methods."""
    rows = evidence.summary[evidence.summary.dataset == evidence.datasets[0]].set_index("method")
    pairs = [pair for pair in one_width(evidence.recipes) if set(pair) <= set(rows.index)]
    if not pairs:
        return
    bits, kl = rows.bits_per_weight, rows.kl

    def no_larger(_: Recipes) -> list[tuple[str, str]]:
        return [(mix, single) for mix, single in pairs if bits[single] <= SAME * bits[mix]]

    of_pairs({"at most its size": no_larger}, ("a mix", "one width of at most its size"), yes=True)(evidence, answered)
    for mix in dict.fromkeys(mix for mix, _ in pairs):
        singles = [single for other, single in pairs if other == mix]
        line = on_the_line(bits[mix], [(bits[single], kl[single]) for single in singles])
        if math.isfinite(line) and line > 0:
            answered.lines.append(
                f"{mix}: {bits[mix]:.2f} bits per weight and a KL of {number(kl[mix], 4)}, {kl[mix] / line:.2f} of "
                f"{number(line, 4)}, the line between the next smaller and the next larger width."
            )
    predict(evidence.linears, rows, answered)


def predict(linears: pd.DataFrame, rows: pd.DataFrame, answered: Answered) -> None:
    """Sums of predicted_nats, and of what swaps made of them, against each method's KL; rows: of one data set, by
    method."""
    if "predicted_nats" not in linears:
        return
    sums = linears.groupby("method", sort=False)[[key for key in (PREDICTED, CORRECTED) if key in linears]].sum(
        min_count=1
    )
    sums = sums.reindex(columns=[PREDICTED, CORRECTED])
    named = [method for method in rows.index if method != ORIGINAL and method in sums.index]
    found = sums.loc[named].assign(measured=rows.kl[named])
    found = found[np.isfinite(found[[PREDICTED, "measured"]].astype(float)).all(axis=1)]
    with_swaps = found[CORRECTED].notna().any()
    answered.values += [
        {
            "method": method,
            "bits/weight": number(rows.bits_per_weight[method], 2),
            "predicted KL": number(row[PREDICTED], 5),
            **({"corrected by swaps": number(row[CORRECTED], 5)} if with_swaps else {}),
            "measured KL": number(row.measured, 5),
        }
        for method, row in found.iterrows()
    ]
    above = found[found.measured > 0]
    if len(above) >= 3:
        rho = rank_correlation(above[PREDICTED].to_numpy(float), above.measured.to_numpy(float))
        answered.lines.append(
            f"Predicted against measured KL: Spearman's ρ {rho.text()}, median relative error "
            f"{relative_error(above, PREDICTED):.0f} %."
        )
    if with_swaps and len(both := above[above[CORRECTED].notna()]):
        answered.lines.append(
            f"Of {', '.join(both.index)}, whose prediction real swaps corrected: median relative error "
            f"{relative_error(both, CORRECTED):.0f} %, before {relative_error(both, PREDICTED):.0f} %."
        )


def relative_error(found: pd.DataFrame, key: str) -> float:
    """The median, in per cent of what was measured."""
    return float(100 * (found[key] / found.measured - 1).abs().median())
