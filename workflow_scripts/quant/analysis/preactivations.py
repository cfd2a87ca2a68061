"""Which output channels hardly ever pass the activation, and which of those are loud: dead, risky, critical.

z = Wx + b is a linear's output, over calibration tokens. Only what an activation reads can be dead in earnest: the
gate's rows of a gated MLP, the first linear's of a plain one. For other linears the same words say no more than that
the mean is far below 0.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from quant.calibration.channels import OF_OUTPUT, Channels, channels_of
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.models.structure.architectures import ARCHITECTURES
from quant.models.structure.names import kind_of, layer_of, name_in_block

CLASSES = ("dead", "risky", "high_weight", "critical")


class Percentile(NamedTuple):
    """A percentile of a sample, and the ends of its 95 % interval for all tokens."""

    value: float
    low: float
    high: float


def classify(z_mean: Tensor, z_std: Tensor, weight_abs: Tensor, thresholds: dict[str, float]) -> dict[str, Tensor]:
    """Masks [out] of the channels that are dead, risky, high_weight and critical (docs/methods.md, Analyses).

    weight_abs [out]: each row's mean |W|. thresholds: dead (E z below it), sigmas (risky: dead, and E z + sigmas·std z
    above it), high_weight (quantile of this linear's weight_abs that a row must exceed).
    """
    dead, risky = dead_and_risky(z_mean, z_std, thresholds)
    high = weight_abs > torch.quantile(weight_abs.double(), thresholds["high_weight"])
    return dict(zip(CLASSES, (dead, risky, high, risky & high), strict=True))


def dead_and_risky(z_mean: Tensor, z_std: Tensor, thresholds: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Masks [out]: E z < dead; of those, E z + sigmas·std z > dead."""
    dead = z_mean < thresholds["dead"]
    return dead, dead & (upper_bound(z_mean, z_std, thresholds) > thresholds["dead"])


def upper_bound(z_mean: Tensor, z_std: Tensor, thresholds: dict[str, float]) -> Tensor:
    """E z + sigmas·std z [out]."""
    return z_mean + thresholds["sigmas"] * z_std


def percentiles(sample: np.ndarray, levels: tuple[float, ...], n_tokens: int) -> list[Percentile]:
    """Percentiles over the tokens and channels of sample [n, out], drawn from n_tokens without replacement.

    Woodruff's interval (1952): the share of values at or below the percentile is a mean over the n sampled tokens; its
    standard error, from the tokens' own shares, moves the level by ±1.96 of it. One token gives an infinite interval.
    """
    ordered = np.sort(sample, axis=None)
    last = len(ordered) - 1
    found = []
    for level in levels:
        value = float(ordered[round(level * last)])
        if len(sample) < 2:
            found.append(Percentile(value, -np.inf, np.inf))
            continue
        shares = (sample <= value).mean(1)
        left_out = max(1 - len(sample) / n_tokens, 0.0)
        margin = 1.96 * float(shares.std(ddof=1)) * np.sqrt(left_out / len(sample))
        ends = (int(np.floor(max(level - margin, 0) * last)), int(np.ceil(min(level + margin, 1) * last)))
        found.append(Percentile(value, *(float(ordered[end]) for end in ends)))
    return found


def activated_rows(config: dict[str, Any], linear: str, n_rows: int) -> range:
    """Output rows that the MLP's activation reads; none where they are not known (config: the model's config.json)."""
    facts = ARCHITECTURES.get(config.get("model_type", ""))
    if facts is None or name_in_block(linear) != (facts.mlp.gate or facts.mlp.up):
        return range(0)
    return range(n_rows // 2 if facts.mlp.gate == facts.mlp.up else n_rows)


class Files(NamedTuple):
    """What the analyses read of one model: weights, per-channel means, ranges and samples, and its config.json."""

    weights: tensorfile.TensorFile
    channels: tensorfile.TensorFile
    preactivations: tensorfile.TensorFile
    config: dict[str, Any]

    def weight(self, linear: str) -> Tensor:
        """W [out, in], float32."""
        return self.weights.get(f"{linear}.weight", dtype=torch.float32)

    def means(self, linear: str, patterns: dict[str, list[str]]) -> Channels:
        """Its per-channel calibration means."""
        return channels_of(self.channels, linear, self.channels.info("reads"), kind_of(linear, patterns))

    def sample(self, linear: str) -> np.ndarray:
        """z at the sampled tokens [tokens, out], float32."""
        return self.preactivations.get(f"{linear}.sample", dtype=torch.float32).numpy()

    def linears(self, layer: int | None = None) -> list[str]:
        """Names in the order of the calibration pass, of a weight that several blocks share the one in the file; of one
        layer, which the model must have."""
        every = list(self.channels.info("reads"))
        names = [name for name in every if f"{name}.weight" in self.weights.names]
        if layer is None:
            return names
        depth = 1 + max(map(layer_of, every))
        if layer >= depth:
            raise InputError(
                f"deep_dive.layers: layer {layer}: the model has layers 0 to {depth - 1}; choose some of them"
            )
        return [name for name in names if layer_of(name) == layer]


@contextlib.contextmanager
def opened(checkpoint: Path, channels: Path, preactivations: Path) -> Iterator[Files]:
    """A model's Files; checkpoint: its directory."""
    with (
        tensorfile.opened(checkpoint / "model.safetensors") as weights,
        tensorfile.opened(channels) as means,
        tensorfile.opened(preactivations) as kept,
    ):
        yield Files(weights, means, kept, read_json(checkpoint / "config.json"))


def channel_table(files: Files, linear: str, thresholds: dict[str, float]) -> pd.DataFrame:
    """A row per output channel: linear, channel, z_mean, z_std, z_min, z_max, z_abs, act_abs, weight_abs, upper_bound,
    whether an activation reads it, and its classes."""
    mean, std, z_abs, act_abs = (files.channels.get(f"{linear}.{key}") for key in OF_OUTPUT)
    weight_abs = files.weight(linear).abs().mean(1)
    read = activated_rows(files.config, linear, len(mean))
    columns = {
        "z_mean": mean,
        "z_std": std,
        "z_min": files.preactivations.get(f"{linear}.z_min"),
        "z_max": files.preactivations.get(f"{linear}.z_max"),
        "z_abs": z_abs,
        "act_abs": act_abs,
        "weight_abs": weight_abs,
        "upper_bound": upper_bound(mean, std, thresholds),
    } | classify(mean, std, weight_abs, thresholds)
    table = pd.DataFrame({key: value.numpy() for key, value in columns.items()})
    table.insert(0, "linear", linear)
    table.insert(1, "channel", range(len(mean)))
    table.insert(2, "activated", [row in read for row in range(len(mean))])
    return table


def linear_row(table: pd.DataFrame, sample: np.ndarray, n_tokens: int) -> dict[str, Any]:
    """Statistics of one linear over tokens and channels, from its channel table and its sample.

    mean, std, min and max are of all n_tokens; p5 and p95 of the sample, each with its 95 % interval; dead, risky,
    high_weight, critical are shares of its channels, activated_* numbers of those that an activation reads.
    """
    mean = table.z_mean.astype(float)
    low, high = percentiles(sample, (0.05, 0.95), n_tokens)
    counts = {f"activated_{name}": int((table[name] & table.activated).sum()) for name in CLASSES}
    return {
        "channels": len(table),
        "mean": mean.mean(),
        # the total variance: within channels and between them
        "std": float(np.sqrt((table.z_std.astype(float) ** 2).mean() + mean.var(ddof=0))),
        "min": table.z_min.min(),
        "p5": low.value,
        "p5_low": low.low,
        "p5_high": low.high,
        "p95": high.value,
        "p95_low": high.low,
        "p95_high": high.high,
        "max": table.z_max.max(),
        **{name: table[name].mean() for name in CLASSES},
        "activated": int(table.activated.sum()),
        **counts,
    }


def analyse(files: Files, patterns: dict[str, list[str]], thresholds: dict[str, float]) -> list[dict[str, Any]]:
    """A row per linear of the model."""
    n_tokens = files.channels.info("provenance")["tokens"]
    rows = []
    for linear in files.linears():
        found = linear_row(channel_table(files, linear, thresholds), files.sample(linear), n_tokens)
        rows.append({"linear": linear, "layer": layer_of(linear), "kind": kind_of(linear, patterns)} | found)
    return rows


def focus(table: pd.DataFrame) -> pd.DataFrame:
    """The channels that an activation reads; all of them where there are none."""
    return table[table.activated] if table.activated.any() else table


def most_negative(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n channels of lowest mean among those that an activation reads, lowest first."""
    return focus(table).sort_values("z_mean", kind="stable").head(n)


def most_critical(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n channels nearest to critical among those that an activation reads: critical ones, then risky, dead, and
    alive ones; the highest upper bound first among the dead, the lowest mean among the alive."""
    table = focus(table)
    rank = table[["dead", "risky", "critical"]].sum(axis=1)
    within = table.upper_bound.where(table.dead, -table.z_mean)
    return table.iloc[np.lexsort((-within, -rank))[:n]]


def class_words(row: Any) -> str:
    """The class of a channel table's row: critical says it all, risky implies dead."""
    if row.critical:
        return "critical"
    rest = "risky" if row.risky else "dead" if row.dead else "alive"
    return rest + (", high weight" if row.high_weight else "")


def samples_of(preactivations: tensorfile.TensorFile, rows: pd.DataFrame) -> list[np.ndarray]:
    """z at the sampled tokens of each of a channel table's rows, [tokens] each."""
    return [preactivations.get(f"{row.linear}.sample")[:, row.channel].float().numpy() for row in rows.itertuples()]
