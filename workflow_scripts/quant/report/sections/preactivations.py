"""What the report says of the analyses: tables and figures in, sections out. Headlines are computed from the data."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from quant.report.figures.study import interval, linear_kind, signed
from quant.report.page import Cell, Folded, Picture, Section, Table, data_uri, number, number_cell, sortable

CHOICES = {"awq": "AWQ", "praq": "PRAQ v3", "random": "random", "oracle": "oracle"}


# ---- pre-activations


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
        f"E z < {_minus(dead)}, risky when it is dead and E z + {sigmas:g}·std z > {_minus(dead)} all the same, of "
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
        "Pre-activations" + _of(model, place),
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
        f"{dead:,} of the {n:,} channels that the activation reads are dead ({_share(dead / n)}); {risky:,} of those "
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
        rows.append([Cell(name, name), _text("yes" if (group.activated > 0).any() else "no"),
                     number_cell(n, 0), *map(_share_cell, shares)])  # fmt: skip
    return Table("kinds", columns, rows)


def linears_table(table: pd.DataFrame) -> Table:
    """Every linear's statistics."""
    columns = [("layer", ""), ("linear", ""), ("mean", "over tokens and channels"), ("std", "over tokens and channels"),
               ("min", ""), ("p5", "5th percentile, with its 95 % interval"),
               ("p95", "95th percentile, with its 95 % interval"), ("max", ""), *_class_headings()]  # fmt: skip
    rows = [
        [
            number_cell(row.layer, 0), _text(linear_kind(row.linear)),
            number_cell(row.mean, 3), number_cell(row.std, 3),
            number_cell(row.min, 1), _percentile_cell(row, "p5"), _percentile_cell(row, "p95"), number_cell(row.max, 1),
            *(_share_cell(getattr(row, name)) for name in ("dead", "risky", "high_weight", "critical")),
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


# ---- one layer in detail


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
        f"Layer {layer}" + _of(model, place),
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
            parts.append(f"{_share(rows[column].min(), 0)} to {_share(rows[column].max(), 0)} of {side} channels")
    return (
        f"Of the top {_share(share, 0)} by AWQ, PRAQ's top {_share(share, 0)} holds {' and '.join(parts)}; "
        f"by chance it would hold {_share(share, 0)}."
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
               *((f"top {_share(share, 0)} shared", f"by chance: {_share(share, 0)}") for share in shares)]  # fmt: skip
    rows = []
    for row in agreement.to_dict("records"):
        rho = f"{signed(row['spearman'], 3)} {interval(row['low'], row['high'], 3)}".strip()
        rows.append([_text(linear_kind(row["linear"])), _text(row["side"]), number_cell(row["channels"], 0),
                     Cell(rho, sortable(row["spearman"]), css="num"),
                     *(_share_cell(row[f"overlap_{share:g}"], 0) for share in shares)])  # fmt: skip
    return Table("agreement", columns, rows)


# ---- the synthetic benchmark


def synthetic(summary: dict[str, Any], figure: str) -> Section:
    """The loud silence benchmark; figure: its SVG."""
    options, scales = summary["options"], summary["scales"]
    lines = [
        f"Half of {options['outputs']} outputs (group A) have z near N(1, 1), so that SiLU lets them through; the "
        f"others (group B) have weights × times as large and a bias of {_minus(options['bias'])}, so that "
        f"they are loud before SiLU. {_share(options['keep_ratio'], 0)} of the outputs are kept exact by each score; "
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
        f"oracle {_small(methods['oracle']['mean'])}; of what PRAQ keeps, {_share(methods['praq']['kept_b'], 0)} is of "
        "group B" + ("; a random choice errs less than PRAQ's." if worse else ".")
    )


def synthetic_table(scales: list[dict[str, Any]]) -> Table:
    columns = [("weights ×", "group B's, in units of group A's"), ("choice", ""),
               ("error", "mean squared error after SiLU, mean over seeds"), ("95 % interval", "over seeds"),
               ("kept of B", "share of the kept outputs that are of group B")]  # fmt: skip
    rows = [
        [number_cell(row["weight_scale"], 1), _text(label), Cell(_small(found["mean"]), found["mean"], css="num"),
         Cell(f"[{_small(found['low'])}, {_small(found['high'])}]", found["low"], css="num"),
         _share_cell(found["kept_b"], 0)]
        for row in scales for name, label in CHOICES.items() for found in [row["methods"][name]]
    ]  # fmt: skip
    return Table("synthetic", columns, rows)


# ---- words


def _of(model: str, place: str) -> str:
    """The model's name in a title where there are several."""
    return f" of {model}" if place else ""


def _minus(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _small(value: float) -> str:
    """Three digits of a number of any size."""
    return "0" if value == 0 else f"{value:.3g}".replace("-", "−")


def _rho(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _share(value: float, digits: int = 2) -> str:
    return f"{number(100 * value, digits)} %"


def _share_cell(value: float, digits: int = 2) -> Cell:
    return Cell(_share(value, digits), sortable(value), css="num")


def _text(text: str) -> Cell:
    return Cell(text, text)
