"""What the report says of pre-activations; its headline is computed from the data."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from quant.comparison.numbers import interval, minus, signed
from quant.models.structure.names import linear_kind
from quant.report.page import Cell, Folded, Picture, Section, Table, data_uri, number_cell, sortable
from quant.report.sections.cells import of_model, pct, share_cell, text_cell


def preactivations(
    place: str, table: pd.DataFrame, record: dict[str, Any], summary: str, layers: Sequence[tuple[int, bytes]]
) -> Section:
    """One model's pre-activations.

    summary: the SVG over layers; layers: (layer, WebP) of each; place ends the anchor, empty where there is one model.
    """
    totals = table[[name for name in table if name.startswith("activated")]].sum()
    dead, sigmas, quantile = (record["thresholds"][key] for key in ("dead", "sigmas", "high_weight"))
    lines = [
        f"z = Wx + b is a linear's output over the {record['tokens']:,} calibration tokens. A channel is dead when "
        f"E z < {minus(dead)}, risky when it is dead and E z + {sigmas:g}·std z > {minus(dead)} all the same, of "
        f"high weight when its row's mean |W| is above its linear's {quantile:g} quantile, and critical when it is "
        "risky and of high weight.",
        *_where(table),
        "The same words for a linear that no activation follows say no more than that a channel's mean is far below 0: "
        "nothing is silenced there, so its dead channels are no reason to spend fewer bits on them.",
        _percentile_line(table, record),
    ]
    model = record["model"]
    alt = f"{model}: shares of dead, risky and critical channels by decoder layer, a line for each linear"
    caption = "Shares of each linear's output channels. The thick line is the linear that the activation reads."
    gallery = tuple(
        Picture(data_uri("image/webp", picture), _layer_alt(model, table[table.layer == layer]), f"Layer {layer}")
        for layer, picture in layers
    )
    folded = (
        Folded(f"Six panels for each of {len(gallery)} layers", pictures=gallery),
        Folded(f"All {len(table)} linears as a table", tables=((f"Pre-activations of {model}", linears_table(table)),)),
    )
    return Section(
        f"preactivations{place}",
        "Pre-activations" + of_model(model, place),
        preactivation_headline(totals),
        tuple(lines),
        (Picture(data_uri("image/svg+xml", summary), alt, caption),),
        ((f"Channels of {model} by kind of linear", kinds_table(table)),),
        folded=folded,
    )


def preactivation_headline(totals: Any) -> str:
    """Do risky dead channels exist? From the counts of channels that an activation reads."""
    n = int(totals.activated)
    if not n:
        return "Which linear the activation reads is not known for this architecture, so nothing is counted as silenced"
    dead, risky, critical = (int(totals[f"activated_{name}"]) for name in ("dead", "risky", "critical"))
    if not dead:
        return f"None of the {n:,} channels that the activation reads is dead"
    return (
        f"{dead:,} of the {n:,} channels that the activation reads are dead ({pct(dead / n)}); {risky:,} of those "
        f"are risky, {critical:,} critical"
    )


def _where(table: pd.DataFrame) -> list[str]:
    """A line that names the layers with the most dead channels before the activation."""
    by_layer = table[table.activated > 0].groupby("layer")[["activated", "activated_dead"]].sum()
    found = by_layer[by_layer.activated_dead > 0].sort_values("activated_dead", ascending=False, kind="stable")
    if found.empty:
        return []
    most = ", ".join(f"layer {layer}: {row.activated_dead:.0f}" for layer, row in found.head(3).iterrows())
    return [
        f"Layers with such a dead channel: {len(found)} of {len(by_layer)}; most in {most} (of "
        f"{found.activated.iloc[0]:,.0f} channels each)."
    ]


def _percentile_line(table: pd.DataFrame, record: dict[str, Any]) -> str:
    widths = pd.concat([(table[f"{name}_high"] - table[f"{name}_low"]) / (2 * table["std"]) for name in ("p5", "p95")])
    return (
        f"Mean, std, min and max are of all tokens; p5 and p95 of {record['sampled_tokens']:,} sampled tokens (values "
        f"rounded to bfloat16, within 0.4 %), with 95 % intervals that are at most ±{widths.max():.2f} of the linear's "
        f"std wide, ±{widths.median():.2f} in half of the cases."
    )


def _layer_alt(model: str, rows: pd.DataFrame) -> str:
    read = rows[rows.activated > 0]
    counts = "" if read.empty else (
        f" Of {read.activated.sum():,} channels that the activation reads {read.activated_dead.sum()} are dead, "
        f"{read.activated_risky.sum()} risky and {read.activated_critical.sum()} critical."
    )  # fmt: skip
    return (
        f"{model}, layer {rows.layer.iloc[0]}: distributions of its linears' channel means, standard deviations and "
        f"upper bounds, standard deviation and weights against the mean, and critical channels.{counts}"
    )


def kinds_table(table: pd.DataFrame) -> Table:
    """Shares over all layers, a row for each kind of linear."""
    columns = [("linear", ""), ("activation follows", "the MLP's activation reads its outputs"),
               ("channels", "output channels in all layers"), *_class_headings()]  # fmt: skip
    rows = []
    for name, group in table.groupby(table.linear.map(linear_kind), sort=False):
        n = group.channels.sum()
        shares = [(group[column] * group.channels).sum() / n for column in ("dead", "risky", "high_weight", "critical")]
        rows.append([Cell(name, name), text_cell("yes" if (group.activated > 0).any() else "no"),
                     number_cell(n, 0), *map(share_cell, shares)])  # fmt: skip
    return Table("kinds", columns, rows)


def linears_table(table: pd.DataFrame) -> Table:
    """Every linear's statistics."""
    columns = [("layer", ""), ("linear", ""), ("mean", "over tokens and channels"), ("std", "over tokens and channels"),
               ("min", ""), ("p5", "5th percentile, with its 95 % interval"),
               ("p95", "95th percentile, with its 95 % interval"), ("max", ""), *_class_headings()]  # fmt: skip
    rows = [
        [
            number_cell(row.layer, 0), text_cell(linear_kind(row.linear)),
            number_cell(row.mean, 3), number_cell(row.std, 3),
            number_cell(row.min, 1), _percentile_cell(row, "p5"), _percentile_cell(row, "p95"), number_cell(row.max, 1),
            *(share_cell(getattr(row, name)) for name in ("dead", "risky", "high_weight", "critical")),
        ]
        for row in table.itertuples()
    ]  # fmt: skip
    return Table("linears", columns, rows)


def _class_headings() -> list[tuple[str, str]]:
    return [
        (name, f"share of the output channels that are {name}") for name in ("dead", "risky", "high weight", "critical")
    ]


def _percentile_cell(row: Any, name: str) -> Cell:
    value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
    return Cell(f"{signed(value, 2)} {interval(low, high, 2)}".strip(), sortable(value), css="num")
