"""The research's direct comparison on one layer: keep half the output channels by AWQ's or PRAQ's score, the rest INT4.

Importance comes from the calibration text, the error from a data set run through the original model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quant.calibration.blocks import Run
from quant.calibration.channels import Channels, channels_of
from quant.calibration.second_moments import add_outer, mirror, to_triangle
from quant.calibration.statistics import real_rows
from quant.comparison.paired import holm, paired_difference
from quant.data.tokens import Batch, Tokens
from quant.files import tensorfile
from quant.models.structure.experts import routing
from quant.models.structure.linears import linear_names
from quant.models.structure.names import kind_of
from quant.recipe.grids import Grid, nearest
from quant.recipe.protection import top
from quant.recipe.scores.awq import awq as awq_score
from quant.recipe.scores.praq import praq_score, sum_blocks
from quant.runtime.compute import Compute

INT4 = Grid(bits=4, group_size=-1, symmetric=True)


class Candidates:
    """A linear's weight under both choices; sums squared output errors by sequence and by channel, and its inputs'
    second moment, by which any other method's error on this text is known too."""

    def __init__(self, w: Tensor, kept: dict[str, Tensor], n_sequences: int) -> None:
        rounded = nearest(w, INT4) - w
        self.difference = {name: torch.where(mask[:, None], 0.0, rounded) for name, mask in kept.items()}
        self.kept = kept
        self.by_channel = {name: torch.zeros(len(w), dtype=torch.float64, device=w.device) for name in kept}
        self.by_sequence = {name: torch.zeros(n_sequences, dtype=torch.float64) for name in kept}
        self.outer = torch.zeros(w.shape[1], w.shape[1], device=w.device)

    def add(self, x: Tensor, batch: Batch) -> None:
        """x [n, width, in]: the inputs of a batch of sequences, or the same rows in another shape, as some blocks have
        them."""
        add_outer(self.outer, real_rows(x, batch))
        for name, difference in self.difference.items():
            squared = (x.float() @ difference.T).square().reshape(*batch.ids.shape, -1)
            for row, length in enumerate(batch.lengths.tolist()):
                part = squared[row, :length]
                self.by_channel[name] += part.sum(0)
                self.by_sequence[name][batch.first + row] += part.sum(dtype=torch.float64).cpu()


def choices(w: Tensor, channels: Channels, options: dict[str, float]) -> dict[str, tuple[Tensor, Tensor]]:
    """Score and mask [out] under AWQ and under Fast-R-PRAQ v3 (on attention too: the direct comparison)."""
    parameters = {key: options[key] for key in ("beta", "tau", "noise_factor")}
    scores = {"awq": awq_score(w, channels), "praq": sum_blocks(praq_score(w, channels, **parameters))}
    return {key: (score, top(score, options["keep_ratio"])) for key, score in scores.items()}


class Watch:
    """Hooks on a block that feed each linear's candidates with its inputs."""

    def __init__(self, block: nn.Module, candidates: dict[str, Candidates]) -> None:
        self._batch: Batch  # that runs
        self._hooks = [
            block.get_submodule(name).register_forward_pre_hook(self._hook(each)) for name, each in candidates.items()
        ]

    def observe(self, batch: Batch) -> None:
        self._batch = batch

    def _hook(self, candidates: Candidates) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: candidates.add(args[0], self._batch)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def check(
    checkpoint: Path,
    channels_path: Path,
    heldout: Tokens,
    layer: int,
    options: dict[str, float],
    patterns: dict[str, list[str]],
    compute: Compute,
    resamples: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Tensor], int]:
    """Rows per channel, rows per linear, H = XᵀX/N [in, in] of each linear's held-out inputs, and how many linears of
    experts are left out, which see some tokens of a sequence only; mse is per output value (squared error over tokens
    and channels)."""
    run = Run(checkpoint, heldout.sequences, *compute, last=layer, progress="data set")
    lengths = np.array([len(sequence) for sequence in heldout.sequences], dtype=float)
    channel_rows: list[dict[str, Any]] = []
    linear_rows: list[dict[str, Any]] = []
    moments: dict[str, Tensor] = {}
    of_experts: list[str] = []
    with tensorfile.opened(channels_path) as file:
        reads = file.info("reads")
        for index, prefix, block, advance in run.each():
            if index < layer:
                advance(lambda batch: None)
                continue
            chosen, candidates = {}, {}
            names = linear_names(block)
            within = tuple(f"{name}." for name in routing(block))
            of_experts = [name for name in names if name.startswith(within)]
            for name in (name for name in names if f"{prefix}.{name}" in reads and name not in of_experts):
                w, full = block.get_parameter(f"{name}.weight").float(), f"{prefix}.{name}"
                channels = channels_of(file, full, reads, kind_of(full, patterns), compute.device)
                chosen[name] = choices(w, channels, options)
                candidates[name] = Candidates(w, {key: mask for key, (_, mask) in chosen[name].items()}, len(lengths))
            watch = Watch(block, candidates)
            advance(watch.observe)
            watch.close()
            for name, candidate in candidates.items():
                full = f"{prefix}.{name}"
                common = {"layer": layer, "linear": full, "kind": kind_of(full, patterns)}
                moments[full] = to_triangle(mirror(candidate.outer).div_(lengths.sum())).cpu()
                linear_rows.append(common | compare_choices(candidate, lengths, resamples, seed))
                channel_rows += [common | row for row in rows_by_channel(candidate, chosen[name], lengths.sum())]
    corrected = holm([row["p"] for row in linear_rows])
    linear_rows = [row | {"p_holm": float(p)} for row, p in zip(linear_rows, corrected, strict=True)]
    return channel_rows, linear_rows, moments, len(of_experts)


def compare_choices(candidate: Candidates, lengths: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean squared error under each choice and PRAQ's minus AWQ's, paired by sequence."""
    n_out = len(candidate.by_channel["awq"])
    awq, praq = (candidate.by_sequence[name].numpy() / n_out for name in ("awq", "praq"))
    difference = paired_difference(praq, awq, lengths, resamples, seed)
    return {
        "mse_awq": awq.sum() / lengths.sum(),
        "mse_praq": praq.sum() / lengths.sum(),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
    }


def rows_by_channel(
    candidate: Candidates, chosen: dict[str, tuple[Tensor, Tensor]], n_tokens: float
) -> list[dict[str, Any]]:
    """Scores, choices and errors of each output channel."""
    columns: dict[str, list[Any]] = {}
    for name, (score, mask) in chosen.items():
        columns[f"score_{name}"] = score.tolist()
        columns[f"kept_{name}"] = mask.int().tolist()
        columns[f"mse_{name}"] = (candidate.by_channel[name] / n_tokens).tolist()
    return [
        {"channel": channel} | dict(zip(columns, values, strict=True))
        for channel, values in enumerate(zip(*columns.values(), strict=True))
    ]
