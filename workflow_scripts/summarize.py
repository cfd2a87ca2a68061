"""Every evaluation → summary.csv, comparisons.csv and the linears of all methods."""

import json

import pandas as pd

from quant.artifacts import read_json, whole
from quant.compare import comparison_table, corrected, summary_row
from quant.job import job


def with_provenance(row: dict, evaluation: dict) -> dict:
    """A summary row and what made it."""
    made = evaluation["provenance"]
    return row | {
        "recipe": json.dumps(made.get("recipe")),
        "seed": made.get("seed"),
        "versions": json.dumps(made["versions"]),
        "token_fingerprint": made["evaluated_tokens"],
    }


def rounding_statistics(linears: pd.DataFrame, recipes: dict[str, dict]) -> pd.DataFrame:
    """Rounding directions, distances and flips of the methods that round to the nearest point or flip from it."""
    chosen = [method for method, recipe in recipes.items() if recipe.get("rounding") in ("nearest", "greedy_flip")]
    names = ["model", "method", "linear", "layer", "kind"]
    counted = [
        name for name in linears if name.startswith(("rounded_", "distance_")) or name in ("unchanged", "flipped")
    ]
    return linears.loc[linears["method"].isin(chosen), names + counted]


with job(snakemake.log[0]):
    options = snakemake.params.comparison["resamples"], snakemake.params.comparison["seed"]
    originals = {(e["model"], e["dataset"]): e for e in map(read_json, snakemake.input.originals)}
    groups: dict[tuple[str, str], dict[str, dict]] = {key: {} for key in originals}
    for evaluation in map(read_json, snakemake.input.evaluations):
        groups[evaluation["model"], evaluation["dataset"]][evaluation["method"]] = evaluation
    summary = []
    for key, original in originals.items():
        for evaluation in [original, *groups[key].values()]:
            summary.append(with_provenance(summary_row(evaluation, original, *options), evaluation))
    linears = pd.concat(map(pd.read_csv, snakemake.input.linears))
    recipes = {e["method"]: e["provenance"]["recipe"] for group in groups.values() for e in group.values()}
    tables = {
        snakemake.output.summary: corrected(pd.DataFrame(summary)),
        snakemake.output.comparisons: comparison_table(list(groups.values()), *options),
        snakemake.output.linears: linears,
        snakemake.output.rounding: rounding_statistics(linears, recipes),
    }
    for path, table in tables.items():
        with whole(path) as temporary:
            table.to_csv(temporary, index=False)
