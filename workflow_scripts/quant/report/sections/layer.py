"""What the report says of one layer in detail; its headline is computed from the data."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from quant.comparison.numbers import interval, minus, signed
from quant.models.structure.names import linear_kind
from quant.report.page import Cell, Picture, Section, Table, data_uri, number_cell, sortable
from quant.report.sections.cells import of_model, pct, share_cell, text_cell


def deep_dive(
    place: str,
    record: dict[str, Any],
    agreement: pd.DataFrame,
    outputs: pd.DataFrame,
    correlation: bytes,
    detailed: bytes,
) -> Section:
    """AWQ's and PRAQ's importance of one layer's channels; the PNGs of both figures."""
    layer, model = record["layer"], record["model"]
    read = outputs[outputs.activated]
    lines = [
        *([f"{record['words']}."] if record["words"] != f"Layer {layer}" else []),
        "Output channels have protection scores, which say what rows to keep in 16 bit: AWQ's E|z| and Fast-R-PRAQ "
        "v3's, here without its sums over blocks of 32 rows. Input channels have saliences, which say what columns to "
        "scale up: AWQ's E|x| and PRAQ's, which on attention linears is AWQ's by definition (ρ = 1).",
        *(_overlap_line(agreement, share) for share in record["top"]),
        *_first_line(agreement),
        "The intervals take a linear's channels for draws from a larger population (Fisher's scale, Bonett and "
        "Wright's variance). Agreement is not quality: the perplexities say which importance serves better.",
    ]
    if len(read):
        lines.append(
            f"The activation reads {len(read):,} channels here: {read.dead.sum()} are dead, {read.risky.sum()} risky, "
            f"{read.critical.sum()} critical."
        )
    pictures = (
        Picture(
            data_uri("image/png", correlation),
            f"{model}, layer {layer}: PRAQ's against AWQ's importance of single channels, a panel for each linear. "
            + dive_headline(agreement),
            "Each point is a channel; ρ is Spearman's rank correlation with its 95 % interval. Blue: output channels' "
            "protection scores, green: input channels' saliences; logarithmic axes.",
        ),
        Picture(
            data_uri("image/png", detailed),
            f"{model}, layer {layer}: histograms of z in the most negative channels and in those nearest to critical",
            "Left the channels of lowest mean, right those nearest to critical, of the ones that the activation reads: "
            "z at the sampled tokens. The axis spans all tokens.",
        ),
    )
    return Section(
        f"layer-{layer}{place}",
        f"Layer {layer}" + of_model(model, place),
        dive_headline(agreement),
        tuple(lines),
        pictures,
        ((f"Agreement of AWQ and PRAQ in layer {layer}", agreement_table(agreement, record["top"])),),
    )


def dive_headline(agreement: pd.DataFrame) -> str:
    """How far the two rank alike on each side, over linears where they are not the same by definition."""
    parts = []
    for side, what in (("output", "output channels"), ("input", "input channels of MLP linears")):
        rows = agreement[(agreement.side == side) & agreement.spearman.notna()]
        rows = rows[rows.spearman < 1] if side == "input" else rows
        if len(rows):
            low, high = rows.spearman.min(), rows.spearman.max()
            words = "much alike" if low >= 0.7 else "quite differently" if high < 0.5 else "alike in part"
            parts.append(f"{what} {words} (Spearman's ρ {_rho(low)} to {_rho(high)})")
    return f"AWQ and PRAQ rank {', '.join(parts)}" if parts else "No rank correlation is defined: scores are constant"


def _overlap_line(agreement: pd.DataFrame, share: float) -> str:
    column, parts = f"overlap_{share:g}", []
    for side in ("output", "input"):
        rows = agreement[agreement.side == side]
        rows = rows[~(rows.spearman == 1)] if side == "input" else rows
        if len(rows):
            parts.append(f"{pct(rows[column].min(), 0)} to {pct(rows[column].max(), 0)} of {side} channels")
    return (
        f"Of the top {pct(share, 0)} by AWQ, PRAQ's top {pct(share, 0)} holds {' and '.join(parts)}; "
        f"by chance it would hold {pct(share, 0)}."
    )


def _first_line(agreement: pd.DataFrame) -> list[str]:
    """Where PRAQ puts the input channel that AWQ puts first, in linears where the two differ."""
    rows = agreement[(agreement.side == "input") & (agreement.spearman < 1)]
    places = ", ".join(
        f"{row.praq_rank_of_first:,} of {row.channels:,} in {linear_kind(row.linear)}" for row in rows.itertuples()
    )
    return [f"The input channel that is AWQ's number 1 is by PRAQ number {places}."] if places else []


def agreement_table(agreement: pd.DataFrame, shares: Sequence[float]) -> Table:
    columns = [("linear", ""), ("channels of", "output: protection scores; input: saliences"), ("channels", ""),
               ("Spearman's ρ", "with its 95 % interval"),
               *((f"top {pct(share, 0)} shared", f"by chance: {pct(share, 0)}") for share in shares)]  # fmt: skip
    rows = []
    for row in agreement.to_dict("records"):
        rho = f"{signed(row['spearman'], 3)} {interval(row['low'], row['high'], 3)}".strip()
        rows.append([text_cell(linear_kind(row["linear"])), text_cell(row["side"]), number_cell(row["channels"], 0),
                     Cell(rho, sortable(row["spearman"]), css="num"),
                     *(share_cell(row[f"overlap_{share:g}"], 0) for share in shares)])  # fmt: skip
    return Table("agreement", columns, rows)


def _rho(value: float) -> str:
    return minus(value, ".2f")
