"""A block's codes and steps tuned together, once its linears are rounded, so that its output comes near to the
original's: block reconstruction (BRECQ, Li et al. 2021, arXiv 2102.05426), through the rounding as EfficientQAT's first
phase does it (Chen et al. 2024, arXiv 2407.11062).

A code is the value next to a place that moves; it starts where the weight to come near to lies, but no farther
from the code that rounding chose than NEAR. A step becomes step·exp(δ). Adam, rates falling in a line to nothing.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from quant.calibration.blocks import Arguments
from quant.calibration.streams import Pair, hidden_of
from quant.models.replay import Replay, fast_products, recordable, set_rate
from quant.recipe import grids
from quant.recipe.numbers import Whole
from quant.recipe.quantized import QuantizedLinear

NEAR = 0.45  # steps; at half a step the code is another one
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Reconstruction:
    """iterations in each block; batch: sequences each; code_rate: how far a place can move in all, in steps; step_rate:
    Adam's, of a step's logarithm."""

    iterations: int
    batch: int
    code_rate: float
    step_rate: float

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Reconstruction":
        return cls(**{field.name: entry[field.name] for field in fields(cls)})


class Aim(NamedTuple):
    """A linear as rounding left it, the weight [out, in] that it was to come near to, what its rows [out] and columns
    [in] are multiplied with, and its steps as its file will give them."""

    rounded: QuantizedLinear
    target: Tensor
    row_scale: Tensor | None
    column_scale: Tensor | None
    stored: Callable[[Tensor], Tensor]


class MovableLinear(nn.Module):
    """(code - zero)·step·exp(change); a gradient passes the rounding of a place as if it were none."""

    def __init__(self, aim: Aim, bias: nn.Parameter | None) -> None:
        super().__init__()
        rounded = aim.rounded
        self._grid, self._n_in, self._stored, self.as_stored = rounded.grid, rounded.n_in, aim.stored, False
        self._step, self._zero = rounded.step.clone(), rounded.zero.clone()
        self._rows = None if aim.row_scale is None else aim.row_scale.clone()[:, None]
        self._columns = None if aim.column_scale is None else aim.column_scale.clone()
        self.bias = bias
        self.settled: Tensor | None = None  # its weight, while it does not move
        scaled = aim.target if rounded.scale is None else aim.target * rounded.scale
        wanted = grids.to_groups(scaled, self._grid.group_size) / self._step + self._zero
        codes, points = rounded.codes.clone(), self._grid.points
        below, above = (points.beside(codes, torch.full_like(codes, way)) - codes for way in (-1, 1))
        below, above = (torch.where(gap == 0, way * points.gap, gap) for gap, way in ((below, -1), (above, 1)))
        self._begun = codes / points.gap
        self.place = nn.Parameter(wanted.clamp(codes + NEAR * below, codes + NEAR * above) / points.gap)
        self.change = nn.Parameter(torch.zeros_like(self._step))

    @property
    def codes(self) -> Tensor:
        """[out, n_groups, g]."""
        points = self._grid.points
        if isinstance(points, Whole):
            whole = self.place + (self.place.round() - self.place).detach()
            return whole.clamp(points.lowest, points.highest)
        within = (self.place * points.gap).clamp(points.lowest, points.highest)
        return within + (points.nearest_(within.detach().clone()) - within).detach()

    @property
    def step(self) -> Tensor:
        """[out, n_groups, 1]."""
        step = self._step * self.change.exp()
        if self.as_stored:
            return self._stored(step)
        # of steps that few numbers make up, a gradient passes the rounding as if there were none
        return step + (self._stored(step) - step).detach() if self._grid.steps.together else step

    @property
    def weight(self) -> Tensor:
        """As the checkpoint stores it [out, in], float32."""
        if self.settled is not None:
            return self.settled
        w = grids.from_groups(grids.decode(self.codes, self.step, self._zero), self._n_in)
        w = w if self._columns is None else w * self._columns
        return w if self._rows is None else w * self._rows

    @torch.no_grad()
    def moved(self) -> tuple[Tensor, Tensor]:
        """Codes and steps, as its file will give them."""
        return self._grid.points.nearest_(self.codes.clone()), self._stored(self._step * self.change.exp())

    @torch.no_grad()
    def reset(self) -> None:
        """As rounding left it."""
        self.place.copy_(self._begun)
        self.change.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


def movable(
    block: nn.Module, dtype: torch.dtype, aims: Mapping[str, Aim]
) -> tuple[nn.Module, dict[str, MovableLinear]]:
    """A copy of a block whose rounded linears, by their names within it, can move, and those."""
    student = copy.deepcopy(block)
    for name, value in list(student.named_parameters()):
        owner, _, last = name.rpartition(".")
        setattr(student.get_submodule(owner), last, nn.Parameter(value.to(dtype, copy=True), requires_grad=False))
    linears = {}
    for name, aim in aims.items():
        parent, _, child = name.rpartition(".")
        linear = student.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linears[name] = MovableLinear(aim, linear.bias)
        setattr(student.get_submodule(parent), child, linears[name])
    return student, linears


class Own:
    """Blocks' arguments, which are made under inference mode, as gradients may pass them: once for batches that have
    the same ones."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._known = dtype, dict[int, tuple[Tensor, Tensor]]()

    def of(self, given: Arguments) -> tuple[tuple[int, ...], Arguments]:
        """What tells them apart, and a copy of them."""
        seen: list[int] = []
        copied = Arguments(self._copy(given.args, seen), self._copy(given.kwargs, seen), given.place)
        return tuple(seen), copied

    def _copy(self, value: Any, seen: list[int]) -> Any:
        if isinstance(value, Tensor):
            seen.append(id(value))
            if id(value) not in self._known:
                new = value.to(self._dtype, copy=True) if value.is_floating_point() else value.clone()
                self._known[id(value)] = value, new
            return self._known[id(value)][1]
        if isinstance(value, dict):
            return {key: self._copy(each, seen) for key, each in value.items()}
        return type(value)(self._copy(each, seen) for each in value) if type(value) in (tuple, list) else value


def relative_error(found: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Sum over tokens [n, width], which count, of ‖found - wanted‖²/‖wanted‖²; both [n, width, hidden]."""
    wanted = wanted.float()
    error = (found.float() - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-20)
    return (error * counts).sum()


def together(sizes: Mapping[int, int], most: int) -> list[list[int]]:
    """Batches in their order, of so many tokens each, as many together as stay within `most`; at least one."""
    found: list[list[int]] = []
    for i, size in sizes.items():
        if found and sum(sizes[j] for j in found[-1]) + size <= most:
            found[-1].append(i)
        else:
            found.append([i])
    return found


class Part(NamedTuple):
    """A batch: what the block is called with, its inputs, its goal [n, width, hidden], and what tokens count."""

    given: Arguments
    x: Tensor
    goal: Tensor
    counts: Tensor


class Reconstructor:
    """One block of a quantised model beside the original's."""

    def __init__(
        self, pair: Pair, aims: Mapping[str, Aim], share: float, left_out: frozenset[int], step_tokens: int
    ) -> None:
        """The block should put out, of the quantised model's inputs, share·(what the original puts out) + (1 - share)·
        (what the original's block makes of these inputs). aims: by their names within the block; left_out: calibration
        sequences that are not looked at; step_tokens: of a step, whose gradients are added up where the pair's batches
        are smaller."""
        self._pair, self._goals, self._device = pair, pair.goals(share), pair.device
        dtype = torch.float32 if pair.dtype == torch.float16 else pair.dtype  # whose range gradients leave
        with torch.inference_mode(False):
            self.block, self.linears = movable(pair.quantised, dtype, aims)
        self._own, self._dtype = Own(dtype), dtype
        counts = {i: pair.counted(i, left_out) for i in range(pair.n_batches)}
        self._counts = {i: each for i, each in counts.items() if each.any()}
        self.steps = together({i: each.numel() for i, each in self._counts.items()}, step_tokens)

    def part(self, i: int) -> tuple[tuple[int, ...], Part]:
        """A batch, and what tells its arguments from others'."""
        kind, given = self._own.of(self._pair.arguments(i))
        x, goal = (t.to(self._dtype, copy=True) for t in (self._pair.states(i), self._goals.get(i)))
        return kind, Part(given, x, goal, self._counts[i])

    @torch.no_grad()
    def error(self) -> float:
        """Mean relative error of the block's output, of what its file would hold."""
        for each in self.linears.values():
            each.as_stored = True
            each.settled = each.weight
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for i in self._counts:
            total += self.loss(self.part(i)[1])
        for each in self.linears.values():
            each.as_stored, each.settled = False, None
        return float(total / sum(count.sum() for count in self._counts.values()))

    def loss(self, part: Part) -> Tensor:
        """A batch's errors, summed."""
        return relative_error(hidden_of(part.given.call(self.block, part.x)), part.goal, part.counts)

    def gradients(self, parts: Sequence[Part]) -> None:
        """Adds those of a step's mean error to the parameters'."""
        total = torch.stack([part.counts.sum() for part in parts]).sum()
        for part in parts:
            (self.loss(part) / total).backward()

    def run(self, wanted: Reconstruction, seed: int) -> tuple[float, float]:
        """The error before and after; where it is no less, all is as it was."""
        start = [each.detach().clone() for each in self.parameters]
        for each in self.linears.values():
            each.reset()
        before = self.error()
        with torch.no_grad():
            for parameter, value in zip(self.parameters, start, strict=True):
                parameter.copy_(value)
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), fast_products():
            self._descend(wanted, seed)
        after = self.error()
        if not after < before:
            for each in self.linears.values():
                each.reset()
        return before, after

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [each.place for each in self.linears.values()] + [each.change for each in self.linears.values()]

    def _descend(self, wanted: Reconstruction, seed: int) -> None:
        n = len(self.linears)
        groups = recordable(self._device, [self.parameters[:n], self.parameters[n:]])
        optimizer = torch.optim.Adam(**groups, betas=BETAS)
        rates = 2 * wanted.code_rate / wanted.iterations, wanted.step_rate
        replay, generator = Replay(self._device), torch.Generator().manual_seed(seed)
        order: list[list[int]] = []
        for k in range(wanted.iterations):
            order = order or [self.steps[j] for j in torch.randperm(len(self.steps), generator=generator)]
            kinds, parts = zip(*map(self.part, order.pop()), strict=True)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                set_rate(group, rate * (1 - k / wanted.iterations))

            def step(*given: Tensor, parts: tuple[Part, ...] = parts) -> None:
                optimizer.zero_grad(set_to_none=True)
                at = range(0, len(given), 3)
                self.gradients([Part(part.given, *given[j : j + 3]) for part, j in zip(parts, at, strict=True)])
                optimizer.step()

            kind = kinds, *(part.x.shape for part in parts)
            replay(kind, step, *(each for part in parts for each in part[1:]))
