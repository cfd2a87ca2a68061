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
from quant.methods.with_model.kernels import weight_kernels
from quant.recipe import grids
from quant.recipe.numbers import Whole
from quant.recipe.quantized import QuantizedLinear
from quant.runtime.replay import Replay, fast_products, recordable, set_rate

NEAR = 0.45  # steps; at half a step the code is another one
BETAS = (0.9, 0.95)
# bytes of a block's numbers up to which the next one takes their place: of a large one, recording takes little of the
# time, and memory is wanted for rounding the next; on a CPU nothing is recorded
SUCCEEDED = {"cuda": 2**30, "cpu": 0}


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
        self._step, self._zero = nn.Buffer(rounded.step.clone()), nn.Buffer(rounded.zero.clone())
        rows = aim.row_scale
        if rows is None and rounded.step.is_cuda:  # so that one recording does for all blocks, whatever folds where
            rows = rounded.step.new_ones(len(rounded.step))
        self._rows = None if rows is None else nn.Buffer(rows.clone()[:, None])
        self._columns = None if aim.column_scale is None else nn.Buffer(aim.column_scale.clone())
        self.bias = bias
        self.settled: Tensor | None = None  # its weight, while it does not move
        scaled = aim.target if rounded.scale is None else aim.target * rounded.scale
        wanted = grids.to_groups(scaled, self._grid.group_size) / self._step + self._zero
        codes, points = rounded.codes.clone(), self._grid.points
        below, above = (points.beside(codes, torch.full_like(codes, way)) - codes for way in (-1, 1))
        below, above = (torch.where(gap == 0, way * points.gap, gap) for gap, way in ((below, -1), (above, 1)))
        self._begun = nn.Buffer(codes / points.gap)
        self.place = nn.Parameter(wanted.clamp(codes + NEAR * below, codes + NEAR * above) / points.gap)
        self.change = nn.Parameter(torch.zeros_like(self._step))

    def alike(self, other: "MovableLinear") -> bool:
        """Whether steps of it compute what those of the other one do, but for the numbers in its tensors."""
        grids_alike = (self._grid, self._n_in) == (other._grid, other._n_in)
        return grids_alike and not self._grid.steps.together  # whose rounding knows a linear's rows

    def stores(self, other: "MovableLinear") -> None:
        """Its steps are stored as the other's."""
        self._stored = other._stored

    @property
    def _is_plain(self) -> bool:
        """Whether codes are whole numbers on a GPU, in steps that are not rounded now."""
        rounds = self.as_stored or self._grid.steps.together
        return self.place.is_cuda and isinstance(self._grid.points, Whole) and not rounds

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
        if (
            self.place.is_cuda
            and (fused := weight_kernels()) is not None
            and self._is_plain
            and fused.takes(self.place)
        ):
            ends = self._grid.lowest, self._grid.highest
            parts = self.place, self._step, self.change, self._zero
            return fused.weight(*parts, self._n_in, ends, self._rows, self._columns)
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
    """Sequences of a step: what the block is called with, its inputs, its goal [n, width, hidden], and what tokens
    count."""

    given: Arguments
    x: Tensor
    goal: Tensor
    counts: Tensor


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by name."""
    return dict([*block.named_parameters(), *block.named_buffers()])


class Descent:
    """A block that can move, its optimiser, and its step, which a GPU records. The next block's numbers take the place
    of its own where it computes the same, so that one recording does for both."""

    def __init__(
        self, block: nn.Module, linears: dict[str, MovableLinear], own: Own, kind: tuple[int, ...], given: Arguments
    ) -> None:
        """kind, given: of one part, by `own`."""
        self.block, self.linears, self.own, self._kind, self._given = block, linears, own, kind, given
        device = self.parameters[0].device
        n = len(linears)
        groups = recordable(device, [self.parameters[:n], self.parameters[n:]])
        self.optimizer, self.replay = torch.optim.Adam(**groups, betas=BETAS), Replay(device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [each.place for each in self.linears.values()] + [each.change for each in self.linears.values()]

    @property
    def is_small(self) -> bool:
        """Whether another block may succeed it."""
        n_bytes = sum(each.nbytes for each in tensors_of(self.block).values())
        return n_bytes <= SUCCEEDED[self.parameters[0].device.type]

    @torch.no_grad()
    def takes(self, block: nn.Module, linears: dict[str, MovableLinear], kind: tuple[int, ...], part: Part) -> bool:
        """Whether another block's numbers are in place of its own now; kind, part: of the other, by `own`."""
        old, new = tensors_of(self.block), tensors_of(block)
        shapes, others = ({name: (t.shape, t.dtype) for name, t in each.items()} for each in (old, new))
        if kind != self._kind or shapes != others or linears.keys() != self.linears.keys():
            return False
        if not all(each.alike(linears[name]) for name, each in self.linears.items()):
            return False
        for name, value in new.items():
            old[name].copy_(value)
        found, wanted = hidden_of(self._given.call(self.block, part.x)), hidden_of(part.given.call(block, part.x))
        if not torch.equal(found, wanted):  # of other layers they may be other functions
            return False
        for name, linear in linears.items():
            self.linears[name].stores(linear)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        return True


class Reconstructor:
    """One block of a quantised model beside the original's."""

    def __init__(
        self,
        pair: Pair,
        aims: Mapping[str, Aim],
        share: float,
        left_out: frozenset[int],
        step_tokens: int,
        before: Descent | None = None,
    ) -> None:
        """The block should put out, of the quantised model's inputs, share·(what the original puts out) + (1 - share)·
        (what the original's block makes of these inputs). aims: by their names within the block; left_out: calibration
        sequences that are not looked at; step_tokens: of a step, whose gradients are added up where the pair's portions
        are smaller; before: of an earlier block, which is spoilt."""
        self._pair, self._goals, self._device = pair, pair.goals(share), pair.device
        self._dtype = torch.float32 if pair.dtype == torch.float16 else pair.dtype  # whose range gradients leave
        self._own = Own(self._dtype) if before is None else before.own
        counts = {i: pair.counted(portion.batch, left_out) for i, portion in enumerate(pair.portions)}
        self._counts = {i: each for i, each in counts.items() if each.any()}
        self.steps = together({i: each.numel() for i, each in self._counts.items()}, step_tokens)
        self._whole = [pair.counted(batch, left_out) for batch in pair.batches]
        with torch.inference_mode(False):
            block, linears = movable(pair.quantised, self._dtype, aims)
            kind, part = self.part(min(self._counts))
            if before is None or not before.takes(block, linears, kind, part):
                self._own = Own(self._dtype)
                before = Descent(block, linears, self._own, *self._own.of(self._arguments(min(self._counts))))
        self.descent = before
        self.block, self.linears, self.parameters = before.block, before.linears, before.parameters

    def _arguments(self, i: int) -> Arguments:
        return self._pair.arguments_of(self._pair.portions[i])

    def part(self, i: int) -> tuple[tuple[int, ...], Part]:
        """A portion, and what tells its arguments from others'."""
        portion = self._pair.portions[i]
        kind, given = self._own.of(self._arguments(i))
        states, goals = self._pair.states(portion.of), self._goals.get(portion.of)
        x, goal = (portion.cut(t).to(self._dtype, copy=True) for t in (states, goals))
        return kind, Part(given, x, goal, self._counts[i])

    @torch.no_grad()
    def error(self) -> float:
        """Mean relative error of the block's output, of what its file would hold."""
        for each in self.linears.values():
            each.as_stored = True
            each.settled = each.weight
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for i, counts in enumerate(self._whole):
            if counts.any():
                x, goal = (t.to(self._dtype) for t in (self._pair.states(i), self._goals.get(i)))
                total += self.loss(Part(self._own.of(self._pair.arguments(i))[1], x, goal, counts))
        for each in self.linears.values():
            each.as_stored, each.settled = False, None
        return float(total / sum(count.sum() for count in self._whole))

    def loss(self, part: Part) -> Tensor:
        """Its errors, summed."""
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

    def _descend(self, wanted: Reconstruction, seed: int) -> None:
        optimizer, replay = self.descent.optimizer, self.descent.replay
        rates = 2 * wanted.code_rate / wanted.iterations, wanted.step_rate
        generator = torch.Generator().manual_seed(seed)
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
