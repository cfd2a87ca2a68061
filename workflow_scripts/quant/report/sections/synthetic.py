"""What the report says of the synthetic benchmark; its headline is computed from the data."""

from typing import Any

from quant.comparison.numbers import minus
from quant.report.page import Cell, Picture, Section, Table, data_uri, number_cell
from quant.report.sections.cells import pct, share_cell, text_cell

CHOICES = {"awq": "AWQ", "praq": "PRAQ v3", "random": "random", "oracle": "oracle"}


def synthetic(summary: dict[str, Any], figure: str) -> Section:
    """The loud silence benchmark; figure: its SVG."""
    options, scales = summary["options"], summary["scales"]
    lines = [
        f"Half of {options['outputs']} outputs (group A) have z near N(1, 1), so that SiLU lets them through; the "
        f"others (group B) have weights × times as large and a bias of {minus(options['bias'])}, so that "
        f"they are loud before SiLU. {pct(options['keep_ratio'], 0)} of the outputs are kept exact by each score; "
        f"the other rows get weight noise of {options['noise']:g} times their own size. X is {options['tokens']:,} × "
        f"{options['inputs']}, drawn anew for each of {options['seeds']} seeds; intervals are 95 %, over seeds.",
        *(_scale_line(row) for row in scales),
        "The data is made to mislead E|z|: it shows a mechanism, and no model need have such channels. How many a real "
        "one has, the section on pre-activations counts.",
    ]
    caption = (
        "Above: the mean squared error after SiLU that is left; the oracle's is the least that any choice of as many "
        "outputs can leave. Below: how many of the kept outputs are of group B."
    )
    picture = Picture(data_uri("image/svg+xml", figure), "Synthetic benchmark. " + synthetic_headline(scales), caption)
    return Section(
        "synthetic",
        "Synthetic benchmark",
        synthetic_headline(scales),
        tuple(lines),
        (picture,),
        (("Error by choice and weight scale", synthetic_table(scales)),),
    )


def synthetic_headline(scales: list[dict[str, Any]]) -> str:
    """Where PRAQ's choice errs less than AWQ's, where more, where no difference is shown."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "same": [], "open": []}
    for row in scales:
        found[_outcome(row["praq_minus_awq"])].append(f"{row['weight_scale']:g}")
    words = {
        "better": "errs less than AWQ's",
        "worse": "errs more than AWQ's",
        "same": "is AWQ's own",
        "open": "shows no difference from AWQ's",
    }
    parts = [f"{words[key]} with group B's weights × {', '.join(values)}" for key, values in found.items() if values]
    return f"PRAQ's choice {parts[0]}" + "".join(f"; it {part}".replace(" group B's weights", "") for part in parts[1:])


def _outcome(difference: dict[str, float]) -> str:
    if difference["low"] == difference["high"] == 0:
        return "same"
    return "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else "open"


def _scale_line(row: dict[str, Any]) -> str:
    methods, difference = row["methods"], row["praq_minus_awq"]
    worse = methods["praq"]["low"] > methods["random"]["high"]
    return (
        f"Weights × {row['weight_scale']:g}: PRAQ v3 minus AWQ {_small(difference['mean'])} "
        f"[{_small(difference['low'])}, {_small(difference['high'])}], AWQ {_small(methods['awq']['mean'])}, the "
        f"oracle {_small(methods['oracle']['mean'])}; of what PRAQ keeps, {pct(methods['praq']['kept_b'], 0)} is of "
        "group B" + ("; a random choice errs less than PRAQ's." if worse else ".")
    )


def synthetic_table(scales: list[dict[str, Any]]) -> Table:
    columns = [("weights ×", "group B's, in units of group A's"), ("choice", ""),
               ("error", "mean squared error after SiLU, mean over seeds"), ("95 % interval", "over seeds"),
               ("kept of B", "share of the kept outputs that are of group B")]  # fmt: skip
    rows = [
        [number_cell(row["weight_scale"], 1), text_cell(label), Cell(_small(found["mean"]), found["mean"], css="num"),
         Cell(f"[{_small(found['low'])}, {_small(found['high'])}]", found["low"], css="num"),
         share_cell(found["kept_b"], 0)]
        for row in scales for name, label in CHOICES.items() for found in [row["methods"][name]]
    ]  # fmt: skip
    return Table("synthetic", columns, rows)


def _small(value: float) -> str:
    """Three digits of a number of any size."""
    return minus(value, ".3g")
