"""Weights and statistics in, a checkpoint and a record out, one decoder block at a time; the model is never built."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quant.calibration.channels import OF_INPUT, channels_of, kind_of
from quant.calibration.second_moments import from_triangle
from quant.checkpoints import packed
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import copy, read_json, require, write_plain_json
from quant.models.architectures import Fold, architecture_of, rows_of, value_heads
from quant.recipe import grids
from quant.recipe.recipe import (
    LinearStatistics,
    QuantizedLinear,
    Recipe,
    check_finite,
    quantize_group,
    rounding_statistics,
    why_not_packed,
)

logger = logging.getLogger("quant")


class Statistics:
    """The statistics files that a recipe asks for, opened; a file of another model or of other tokens is refused.

    paths: any of channels, moments, noisy, weighted, row_weight (which may be one file). A noisy mean stands in for the
    plain one, and so do the weighted means of an input, its second moment among them, where it has them: mixed with
    the plain ones, which count plain_share.
    """

    def __init__(
        self,
        paths: dict[str, str],
        model_fingerprint: str,
        patterns: dict[str, list[str]],
        token_fingerprint: str | None = None,
        plain_share: float = 0.0,
    ) -> None:
        self._stack, self._paths, self._patterns = contextlib.ExitStack(), paths, patterns
        self._plain_share = plain_share
        self._expected = {"model_fingerprint": model_fingerprint}
        if token_fingerprint is not None:
            self._expected["token_fingerprint"] = token_fingerprint
        self._files: dict[str, tensorfile.TensorFile] = {}
        self._reads: dict[str, str] = {}
        self._last: tuple[tuple[str, ...], Tensor | None] = (), None  # the last moment read, which linears may share

    def __enter__(self) -> "Statistics":
        for key, path in self._paths.items():
            file = self._files[key] = self._stack.enter_context(tensorfile.opened(path))
            require(path, file.info("provenance"), **self._expected)
            self._reads |= file.info("reads")
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    @property
    def token_fingerprint(self) -> str | None:
        """Of the calibration tokens; None where the recipe uses none."""
        return next((file.info("provenance")["token_fingerprint"] for file in self._files.values()), None)

    def _weighted(self, linear: str) -> bool:
        return "weighted" in self._files and f"{linear}.moment" in self._files["weighted"].names

    def _moments_of(self, linear: str) -> list[tuple[tensorfile.TensorFile, str, float]]:
        """The files, names and shares of what makes a linear's second moment."""
        if "moments" not in self._files:
            return []
        plain = (self._files["moments"], self._reads[linear])
        if not self._weighted(linear):
            return [(*plain, 1.0)]
        mixed = (self._files["weighted"], f"{linear}.moment", 1 - self._plain_share), (*plain, self._plain_share)
        return [each for each in mixed if each[2]]

    def prefetch(self, linears: list[str], device: str) -> None:
        """Reads ahead the second moments that these linears will ask for."""
        for file, name in dict.fromkeys(
            (file, name) for linear in linears for file, name, _ in self._moments_of(linear)
        ):
            file.prefetch([name], device)

    def _moment(self, linear: str, device: str) -> Tensor | None:
        parts = self._moments_of(linear)
        key = tuple(name for _, name, _ in parts)
        if parts and key != self._last[0]:
            self._last = (), None  # before the next one takes its place in memory
            moments = (from_triangle(file.get(name, device)).mul_(share) for file, name, share in parts)
            self._last = key, reduce(Tensor.add_, moments)
        return self._last[1] if parts else None

    def of(self, linear: str, device: str) -> LinearStatistics:
        """What one linear's recipe reads."""
        channels = weight = None
        x_std = 0.0
        if "channels" in self._files:
            kind = kind_of(linear, self._patterns)
            channels = channels_of(self._files["channels"], linear, self._reads, kind, device)
        if "noisy" in self._files:
            file, source = self._files["noisy"], self._reads[linear]
            x_std = file.get(f"{source}.x_std").item()
            noisy = {key: file.get(f"{source}.{key}", device) for key in ("x_abs", "x_sq")}
            channels = channels._replace(**noisy, act_abs=file.get(f"{linear}.act_abs", device))
        moment = self._moment(linear, device)
        if self._weighted(linear) and channels is not None:
            weighted = {key: self._files["weighted"].get(f"{linear}.{key}", device) for key in OF_INPUT}
            share = self._plain_share
            channels = channels._replace(
                **{key: (1 - share) * value + share * getattr(channels, key) for key, value in weighted.items()}
            )
        if "row_weight" in self._files and f"{linear}.row_weight" in self._files["row_weight"].names:
            weight = self._files["row_weight"].get(f"{linear}.row_weight", device)
        return LinearStatistics(channels, moment, weight, x_std)


@dataclass(frozen=True)
class Shared:
    """Linears of one block that share a scale, by full name, and the full name of what takes over its inverse."""

    linears: tuple[str, ...]
    fold: Fold | None = None
    source: str | None = None


def shared_groups(names: list[str], prefix: str, scope: str, config: dict[str, Any]) -> list[Shared]:
    """A block's linears, grouped by scope; what reads a linear's output comes before it, so that a scale folded into
    its rows is known when its steps are chosen."""
    if scope == "linear":
        return [Shared((name,)) for name in names]
    groups = [
        Shared(tuple(f"{prefix}.{name}" for name in group.linears), group.fold, f"{prefix}.{group.fold.module}")
        for group in architecture_of(config, "scope: shared").groups
    ]
    if not groups:
        raise InputError(f"scope: shared is not known for model_type {config['model_type']!r}; use scope: linear")
    differing = {name for group in groups for name in group.linears} ^ set(names)
    if differing:
        raise InputError(f"scope: shared does not know what to do with {min(differing)} here; use scope: linear")
    return groups[::-1]


class Block:
    """One decoder block on its way through a recipe."""

    def __init__(self, model: tensorfile.TensorFile, config: dict[str, Any], device: str) -> None:
        self._model, self._config, self._device = model, config, device
        self._layout = model.layout()
        self.weights: dict[str, Tensor] = {}
        self.done: dict[str, QuantizedLinear] = {}
        self.milliseconds: dict[str, float] = {}
        self.folded: set[str] = set()
        self.row_scale: dict[str, Tensor] = {}  # by linear, [out]: what its rows are multiplied with
        self.others: dict[str, Tensor] = {}  # norms and biases that took over a scale

    def quantize(self, group: Shared, statistics: Statistics, recipe: Recipe, generator: torch.Generator) -> None:
        started = time.perf_counter()
        for name in group.linears:
            w = self.weights[name] = self._model.get(f"{name}.weight", self._device, torch.float32)
            check_finite(f"{name}.weight", w, str(self._model.path))
        known = [statistics.of(name, self._device) for name in group.linears]
        heads = value_heads(self._config) if self._repeats_values(group) else None
        steps = [partial(grids.stored_step, dtype=self._layout[f"{name}.weight"][0], rows=self.row_scale.get(name))
                 for name in group.linears]  # fmt: skip
        results = quantize_group([self.weights[name] for name in group.linears], known, recipe, generator, heads, steps)
        if group.fold is not None and results[0].scale is not None:
            self._fold(group, results[0].scale, heads)
        if self._device == "cuda":
            torch.cuda.synchronize()
        share = 1e3 * (time.perf_counter() - started) / len(group.linears)
        for name, result in zip(group.linears, results, strict=True):
            self.done[name], self.milliseconds[name] = result, share

    def _repeats_values(self, group: Shared) -> bool:
        """Whether several inputs of the group's linear are one row of its producer (grouped-query attention)."""
        if group.fold is None or group.fold.kind != "rows":
            return False
        rows = rows_of(group.fold, self._rows(group.source), self._config)
        return len(rows) != self.weights[group.linears[0]].shape[1]

    def _rows(self, linear: str) -> int:
        return self._layout[f"{linear}.weight"][1][0]

    def _fold(self, group: Shared, scale: Tensor, heads: tuple[int, int, int] | None) -> None:
        """Gives 1/scale to the norm or to the producer's rows."""
        self.folded |= set(group.linears)
        if group.fold.kind == "norm":
            name, offset = f"{group.source}.weight", group.fold.offset
            norm = self._model.get(name, self._device, torch.float32)
            self.others[name] = (norm + offset) / scale - offset
            bias = f"{group.source}.bias"
            if bias in self._model.names:
                self.others[bias] = self._model.get(bias, self._device, torch.float32) / scale
            return
        if heads is not None:
            n_query, n_value, size = heads
            scale = scale.view(n_value, n_query // n_value, size)[:, 0].flatten()
        n_rows = self._rows(group.source)
        rows = rows_of(group.fold, n_rows, self._config)
        inverse = torch.ones(n_rows, device=scale.device)
        inverse[rows.start : rows.stop] = 1 / scale
        self.row_scale[group.source] = inverse
        bias = f"{group.source}.bias"
        if bias in self._model.names:
            self.others[bias] = self._model.get(bias, self._device, torch.float32) * inverse

    def weight(self, name: str) -> Tensor:
        """A linear's weight as the checkpoint stores it [out, in]."""
        result = self.done[name]
        w = result.dequantize()
        if name in self.folded:
            w = w * result.scale
        return w * self.row_scale[name][:, None] if name in self.row_scale else w

    def codes(self, name: str) -> packed.Codes:
        """A linear as a packed checkpoint stores it."""
        result = self.done[name]
        step = result.step * self.row_scale[name][:, None, None] if name in self.row_scale else result.step
        return packed.Codes(result.codes, step, result.zero, result.grid, result.n_in)

    def folds(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What turns the stored weight back into one of the original's inputs and outputs."""
        if name in self.folded:
            yield f"{name}.input", self.done[name].scale
        if name in self.row_scale:
            yield f"{name}.output", self.row_scale[name]


def quantize_checkpoint(
    source: Path,
    target: Path,
    folds_path: Path,
    linears: dict[str, int],
    statistics: Statistics,
    recipe: Recipe,
    device: str,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Writes target/model.safetensors beside copies of the source's other files, and the folds.

    linears: names and blocks, as convert recorded them. Returns a row per linear and the summary. Where the format
    holds what the recipe makes, linears are packed (quant.packed); otherwise they are dense in the source's dtype, and
    the summary's storage_reason says why.
    """
    config = read_json(source / "config.json")
    generator = torch.Generator().manual_seed(recipe.seed)
    rows: list[dict[str, Any]] = []
    folds: dict[str, Tensor] = {}
    bits = weights = 0
    with tensorfile.opened(source / "model.safetensors") as model, statistics:
        provenance = provenance | {"token_fingerprint": statistics.token_fingerprint}
        dense = layout = model.layout()
        reason = why_not_packed(recipe, {name: dense[f"{name}.weight"][1] for name in linears})
        if reason is None:
            layout = packed.layout(dense, linears, recipe.grid)
            config |= {"quantization_config": packed.quantization_config(recipe.grid, dense, linears)}
        begun = time.perf_counter()
        metadata = {"format": "pt", "provenance": json.dumps(provenance)}
        untouched = set(model.names)
        with tensorfile.writing(target / "model.safetensors", layout, metadata) as out:
            by_block = [(i, list(names)) for i, names in groupby(linears, key=linears.__getitem__)]
            for at, (layer, names) in enumerate(tqdm(by_block, desc="quantize", unit="block")):
                for following in [names for _, names in by_block[at + 1 : at + 2]]:
                    model.prefetch((f"{name}.weight" for name in following), device)
                    statistics.prefetch(following, device)
                block = Block(model, config, device)
                prefix = names[0].partition(f".{layer}.")[0] + f".{layer}"
                for group in shared_groups(names, prefix, recipe.scope, config):
                    block.quantize(group, statistics, recipe, generator)
                for name in names:
                    result = block.done[name]
                    folds |= {key: value.cpu() for key, value in block.folds(name)}
                    if reason is None:
                        written = packed.pack(name, block.codes(name))
                        bits += packed.bits_of({key: layout[key] for key in written})
                    else:
                        written = {f"{name}.weight": block.weight(name)}
                        bits += result.storage_bits(name in block.folded)
                    weights += block.weights[name].numel()
                    row = {"linear": name, "layer": layer, "alpha": result.alpha, "objective": result.objective}
                    row |= {"damp": result.damp, "milliseconds": block.milliseconds[name]}
                    if result.damp is not None and result.damp > recipe.damp:
                        logger.warning("%s: needed damp %g instead of %g", name, result.damp, recipe.damp)
                    rows.append(row | rounding_statistics(block.weights[name], result))
                    put(out, written, layout, target)
                    untouched.remove(f"{name}.weight")
                put(out, block.others, layout, target)
                untouched -= set(block.others)
            for name in sorted(untouched):
                out.put(name, model.get(name))
    tensorfile.save(folds_path, folds, {"provenance": json.dumps(provenance)})
    for file in source.iterdir():
        if file.is_file() and file.name not in ("model.safetensors", "config.json"):
            copy(file, target / file.name)
    write_plain_json(target / "config.json", config)
    (target / "README.md").unlink(missing_ok=True)  # the card of what was here before
    storage = {"storage": "packed" if reason is None else "simulated", "storage_reason": reason or ""}
    summary = {"bits_per_weight": bits / weights, "quantize_s": time.perf_counter() - begun} | storage
    return {"linears": rows, "summary": summary, "provenance": provenance}


def put(out: tensorfile.Writer, tensors: dict[str, Tensor], layout: tensorfile.Layout, target: Path) -> None:
    """Writes tensors in the dtype that the source has them in; refuses what overflows it."""
    for name, value in tensors.items():
        stored = value.to(layout[name][0])
        check_finite(f"{name} after quantisation", stored, str(target))
        out.put(name, stored)
