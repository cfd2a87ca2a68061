"""One decoder block on its way through a recipe: its linears in groups that share a scale, and where scales fold."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quant.calibration.reader import LinearStatistics, Statistics
from quant.files import tensorfile
from quant.files.finite import ends, judged
from quant.methods.shared import Shared
from quant.models.structure.architectures import Fold, rows_of, value_heads
from quant.recipe import grids
from quant.recipe.grids import Codes, Grid
from quant.recipe.linear import bounded_scale, round_linear
from quant.recipe.numbers import unit_of
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.ranges import foldable, held
from quant.recipe.recipe import Recipe
from quant.recipe.search import Search


class Spent:
    """Time from its making to its end, of several linears: on a GPU by its own clock, which nothing waits for."""

    def __init__(self, device: str, linears: int) -> None:
        self._linears, self._at = linears, 0.0
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device == "cuda" else []
        if self._events:
            self._events[0].record()
        self._begun = time.perf_counter()

    def end(self) -> None:
        self._at = time.perf_counter()
        if self._events:
            self._events[1].record()

    def share(self) -> float:
        """Milliseconds of each linear."""
        if not self._events:
            return 1e3 * (self._at - self._begun) / self._linears
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / self._linears


class Block:
    """One decoder block on its way through a recipe."""

    def __init__(
        self,
        model: tensorfile.TensorFile,
        config: dict[str, Any],
        device: str,
        fused: Mapping[str, tuple[str, ...]],
        statistics: Statistics,
        recipe: Recipe,
        generator: torch.Generator,
    ) -> None:
        """fused: by linear, those that readers run as one product with it; generator: what random numbers are drawn
        by."""
        self._model, self._config, self._device, self._fused = model, config, device, fused
        self.statistics, self.recipe, self._generator = statistics, recipe, generator
        self._layout = model.layout()
        self.weights: dict[str, Tensor] = {}  # as they are stored
        self._most: dict[str, float] = {}  # max |w|
        self.known: dict[str, LinearStatistics] = {}  # of those not yet rounded
        self.found: dict[str, Search | None] = {}
        self._done: dict[str, QuantizedLinear] = {}  # narrow
        self._spent: dict[str, list[Spent]] = {}
        self.folded: set[str] = set()
        self.units: dict[str, float] = {}  # by linear: what its steps are stored times
        self.row_scale: dict[str, Tensor] = {}  # by linear, [out]: what its rows are multiplied with
        self.others: dict[str, Tensor] = {}  # norms and biases that took over a scale

    def quantize(self, group: Shared) -> None:
        self.round(group.linears, self.find(group) or [self.original(name) for name in group.linears])

    def original(self, name: str) -> Tensor:
        """A linear's weight [out, in], float32."""
        return self.weights[name].float()

    def rounded(self, name: str) -> QuantizedLinear:
        return self._done[name].wide()

    def find(self, group: Shared) -> list[Tensor]:
        """A group's weights, what is known of them, and their scale, folded where it can be. Returns `original` of
        each linear, where it was asked for."""
        recipe = self.recipe
        with self.timed(group.linears):
            seen = []
            for name in group.linears:
                w = self._model.get(f"{name}.weight", self._device)
                w = self.weights[name] = w if w.dtype.itemsize <= 4 else w.float()
                seen.append(ends(w))
                self.known[name] = self.statistics.of(name, self._device)
            heads = value_heads(self._config) if self._repeats_values(group) else None
            weights = [] if recipe.salience == "none" else [self.original(name) for name in group.linears]
            known = [self.known[name] for name in group.linears]
            fold = group.fold
            bound = None if fold is None else partial(self._foldable, group=group, fold=fold, heads=heads)
            own = recipe if recipe.widths else recipe.at(group.linears[0])  # a budget's widths share a scale
            found = bounded_scale(weights, known, own, heads, bound)
            for name, of_weight in zip(group.linears, seen, strict=True):  # for which the search has waited
                low, high = of_weight.tolist()
                self._most[name] = judged(f"{name}.weight", low, high, self._model.path)
            self.found |= dict.fromkeys(group.linears, found)
            if fold is not None and found is not None and found.alpha:
                self._fold(group, fold, found.scale, heads)
        return weights

    def round(self, names: Sequence[str], targets: Sequence[Tensor]) -> None:
        """Linears whose scales are found, each on its grid by the recipe, for steps as its file will give them;
        targets: the weights to come near to."""
        with self.timed(names):
            for name, w in zip(names, targets, strict=True):
                own = self.recipe.at(name)
                self.units[name] = self._unit(name, own.grid)
                stored = self.stored(name, own.grid)
                result = round_linear(w, self.found[name], self.known.pop(name), own, self._generator, stored)
                self._done[name] = self._held(name, result).narrow()

    def stored(self, name: str, grid: Grid) -> Callable[[Tensor], Tensor]:
        """A rounded linear's steps as its file will give them."""
        dtype, rows = self._layout[f"{name}.weight"][0], self.row_scale.get(name)
        return partial(grids.stored_step, dtype=dtype, rows=rows, steps=grid.steps, unit=self.units[name])

    def move(self, name: str, codes: Tensor, step: Tensor) -> None:
        """Other codes and steps for a rounded linear."""
        self._done[name] = self._held(name, replace(self._done[name], codes=codes, step=step)).narrow()

    def _unit(self, name: str, grid: Grid) -> float:
        """numbers.unit_of, one for all linears that readers fuse, since vLLM takes the largest for all of them."""
        if grid.format != "nvfp4":
            return 1.0
        return unit_of(max(self._largest(other) for other in self._fused[name]) / grid.highest)

    def _largest(self, name: str) -> float:
        """Of a linear's scaled weights, as its file holds them."""
        w = self._model.get(f"{name}.weight", self._device) if name not in self.weights else self.weights[name]
        w = w.float()
        found = self.found.get(name)
        w = w if found is None or not found.alpha else w * found.scale
        w = w * self.row_scale[name][:, None] if name in self.row_scale else w
        return float(w.abs().max())

    @contextlib.contextmanager
    def timed(self, names: Sequence[str]) -> Iterator[None]:
        """Adds to the milliseconds of each of these linears its share of what is done meanwhile."""
        spent = Spent(self._device, len(names))
        yield
        spent.end()
        for name in names:
            self._spent.setdefault(name, []).append(spent)

    def milliseconds(self, name: str) -> float:
        """That a linear took so far."""
        return sum(spent.share() for spent in self._spent.get(name, []))

    def _held(self, name: str, result: QuantizedLinear) -> QuantizedLinear:
        """A linear whose readers, multiplying codes by steps, do not leave the checkpoint's type where its original's
        weights are near the end of it. One with an input scale of its own is stored dense, cut where the type ends."""
        limit = torch.finfo(self._layout[f"{name}.weight"][0]).max
        rows = self.row_scale.get(name)
        alone = result.scale is not None and name not in self.folded
        if alone or result.noise is not None:
            return result
        if self._most[name] * (1.0 if rows is None else rows.max().item()) <= limit / 4:
            return result
        rows = torch.ones(1, device=self._device) if rows is None else rows
        codes = held(result.codes, result.step, result.zero, result.grid, rows[:, None, None], limit)
        return replace(result, codes=codes)

    def _foldable(self, scale: Tensor, group: Shared, fold: Fold, heads: tuple[int, int, int] | None) -> Tensor:
        """A scale whose inverse the norm, or the producer's rows, can take over in the type that they are stored in."""
        dtype = self._layout[f"{group.source}.weight"][0]
        values = self._model.get(f"{group.source}.weight", self._device, torch.float32)
        columns = torch.stack([self.weights[name].abs().amax(0) for name in group.linears]).amax(0).float()
        if fold.kind == "norm":
            return foldable(scale, (values + fold.offset).abs(), columns, dtype)
        rows = rows_of(fold, len(values), self._config)
        largest = values[rows.start : rows.stop].abs().amax(1)
        if heads is not None:
            n_query, n_value, size = heads
            largest = largest.view(n_value, 1, size).expand(-1, n_query // n_value, -1).reshape(-1)
            most = columns.view(n_value, n_query // n_value, size).amax(1, keepdim=True)
            columns = most.expand(-1, n_query // n_value, -1).reshape(-1)
        return foldable(scale, largest, columns, dtype)

    def _repeats_values(self, group: Shared) -> bool:
        """Whether several inputs of the group's linear are one row of its producer (grouped-query attention)."""
        if group.fold is None or group.fold.kind != "rows":
            return False
        rows = rows_of(group.fold, self._rows(group.source), self._config)
        return len(rows) != self.weights[group.linears[0]].shape[1]

    def _rows(self, linear: str) -> int:
        return self._layout[f"{linear}.weight"][1][0]

    def _fold(self, group: Shared, fold: Fold, scale: Tensor, heads: tuple[int, int, int] | None) -> None:
        """Gives 1/scale to the norm or to the producer's rows."""
        self.folded |= set(group.linears)
        for name in group.also:
            self.others[f"{name}.weight"] = self._model.get(f"{name}.weight", self._device, torch.float32) * scale
        if fold.kind == "norm":
            name, offset = f"{group.source}.weight", fold.offset
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
        rows = rows_of(fold, n_rows, self._config)
        inverse = torch.ones(n_rows, device=scale.device)
        inverse[rows.start : rows.stop] = 1 / scale
        self.row_scale[group.source] = inverse
        bias = f"{group.source}.bias"
        if bias in self._model.names:
            self.others[bias] = self._model.get(bias, self._device, torch.float32) * inverse

    def _folded_scale(self, name: str) -> Tensor:
        scale = self._done[name].scale
        assert scale is not None
        return scale

    def weight(self, name: str, rounded: QuantizedLinear | None = None) -> Tensor:
        """A linear's weight as the checkpoint stores it [out, in]; rounded: what `rounded` gives, if it is known."""
        w = (rounded or self.rounded(name)).dequantize()
        if name in self.folded:
            w = w * self._folded_scale(name)
        return w * self.row_scale[name][:, None] if name in self.row_scale else w

    def codes(self, name: str, rounded: QuantizedLinear | None = None) -> Codes:
        """A linear as a packed checkpoint stores it; rounded: as for `weight`."""
        result = rounded or self.rounded(name)
        step = result.step * self.row_scale[name][:, None, None] if name in self.row_scale else result.step
        return Codes(result.codes, step, result.zero, result.grid, result.n_in, self.units[name])

    def folds(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """What turns the stored weight back into one of the original's inputs and outputs."""
        if name in self.folded:
            yield f"{name}.input", self._folded_scale(name)
        if name in self.row_scale:
            yield f"{name}.output", self.row_scale[name]
