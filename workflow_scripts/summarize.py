"""Every evaluation → summary.csv, comparisons.csv, what follows from them, and the linears of all methods."""

import logging

import pandas as pd

from quant.comparison.learnt import learnt_table
from quant.comparison.profiles import profile_tables
from quant.comparison.summary import recipes_of, summary_row, summary_table
from quant.comparison.table import comparison_table
from quant.comparison.twins import said, twins
from quant.errors import InputError
from quant.files.artifacts import read_json, rebuild, require
from quant.files.csv_tables import read_table, write_table
from quant.workflow.job import job

logger = logging.getLogger("quant")


def rounding_statistics(linears: pd.DataFrame) -> pd.DataFrame:
    """Rounding directions, distances and flips of every method."""
    names = ["model", "method", "linear", "layer", "kind"]
    counted = [
        name for name in linears if name.startswith(("rounded_", "distance_")) or name in ("unchanged", "flipped")
    ]
    return linears[names + counted]


def check_evaluation(path: str, evaluation: dict, original: dict, recipe: dict) -> None:
    """Refuses a method's evaluation of other tokens, another model or another recipe."""
    made, reference = evaluation["provenance"], original["provenance"]
    same = {key: reference[key] for key in ("evaluated_tokens", "model_fingerprint")}
    require(path, made | {"kl_tokens": evaluation["kl_tokens"]}, **same, recipe=recipe, kl_tokens=original["kl_tokens"])


def read_linears(path: str, checkpoints: dict[tuple[str, str], str]) -> pd.DataFrame:
    """The errors of one method's linears, refused where they are another checkpoint's than the evaluation's."""
    try:
        table = read_table(path)
        names = table.iloc[0]
        key = names["model"], names["method"]
        found = {"checkpoint": names["checkpoint"]}
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, IndexError, KeyError) as error:
        raise InputError(f"{path}: is not a whole table ({type(error).__name__}); {rebuild(path)}") from None
    require(path, found, checkpoint=checkpoints.get(key))
    return table.drop(columns="checkpoint")


with job(snakemake.log[0]):
    options = snakemake.params.comparison["resamples"], snakemake.params.comparison["seed"]
    originals = {(e["model"], e["dataset"]): e for e in map(read_json, snakemake.input.originals)}
    groups: dict[tuple[str, str], dict[str, dict]] = {key: {} for key in originals}
    checkpoints: dict[tuple[str, str], str] = {}
    for path in snakemake.input.evaluations:
        evaluation = read_json(path)
        model, method, dataset = (evaluation[key] for key in ("model", "method", "dataset"))
        check_evaluation(path, evaluation, originals[model, dataset], snakemake.params.recipes[method])
        groups[model, dataset][method] = evaluation
        checkpoint = checkpoints.setdefault((model, method), evaluation["checkpoint"])
        require(path, evaluation, checkpoint=checkpoint)
    texts = {facts["model"]: facts for facts in map(read_json, snakemake.input.texts)}
    summary = [
        summary_row(evaluation, original, texts[key[0]], *options)
        for key, original in originals.items()
        for evaluation in [original, *groups[key].values()]
    ]
    table = summary_table(summary)
    recipes = recipes_of(table)
    for found in twins(table):
        logger.warning("%s: %s", found.model, said(found, recipes))
    linears = pd.concat([read_linears(path, checkpoints) for path in snakemake.input.linears])
    whole = {key: {"original": originals[key], **group} for key, group in groups.items()}
    profiles, contrasts = profile_tables(whole, *options)
    tables = {
        snakemake.output.summary: table,
        snakemake.output.comparisons: comparison_table(list(groups.values()), *options),
        snakemake.output.linears: linears,
        snakemake.output.rounding: rounding_statistics(linears),
        snakemake.output.profiles: profiles,
        snakemake.output.contrasts: contrasts,
        snakemake.output.learnt: learnt_table(groups, originals, snakemake.params.recipes, *options),
    }
    for path, content in tables.items():
        write_table(path, content)
