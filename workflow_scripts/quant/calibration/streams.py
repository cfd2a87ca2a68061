"""The calibration tokens through two models at once, block by block: the original, and one whose linears take their
quantised weights in turn, so that each is quantised for the inputs that it will get.

Two streams of hidden states and two copies of one block are in memory, however deep the model is.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quant.calibration.blocks import Arguments, Run, Weights, empty, fill
from quant.calibration.hidden import HiddenStates, hidden_states
from quant.calibration.kept import Budget, Outputs, Passing, ends_of
from quant.calibration.second_moments import NARROW_ROWS, add_outer, mirror
from quant.calibration.statistics import check_statistic, token_rows
from quant.data.tokens import Batch, batches
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.linears import linear_names
from quant.runtime import products
from quant.runtime.replay import fast_products

WIDEST = 2**27  # bytes of one linear's numbers of a batch


class _Reached(Exception):
    """A block has come to the linear whose input was asked for."""


def input_of(block: nn.Module, linear: str, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a linear of the block reads; nothing after it is run."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _Reached

    hook = block.get_submodule(linear).register_forward_pre_hook(stop)
    try:
        arguments.call(block, hidden)
    except _Reached:
        return found[0]
    finally:
        hook.remove()
    raise InputError(f"{linear}: no calibration token reached it; use inputs: parallel for this model")


def reading_order(block: nn.Module, hidden: Tensor, arguments: Arguments) -> list[tuple[str, ...]]:
    """A block's linears in the order in which they run, those together that read one input."""
    groups: dict[tuple[int, torch.Size], list[str]] = {}
    seen: list[Tensor] = []  # kept until the end, so that an address is one tensor's

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if x.numel() // x.shape[-1] != hidden.numel() // hidden.shape[-1]:
                raise InputError(
                    f"{name}: reads some tokens and not others, so that its inputs in two models do not compare; use "
                    "inputs: parallel for this model"
                )
            seen.append(x)
            groups.setdefault((x.data_ptr(), x.shape), []).append(name)

        return hook

    names = linear_names(block)
    hooks = [block.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        arguments.call(block, hidden)
    finally:
        for each in hooks:
            each.remove()
    found = [name for group in groups.values() for name in group]
    if sorted(found) != sorted(names):
        odd = next(name for name in names if found.count(name) != 1)
        raise InputError(f"{odd}: runs {found.count(odd)} times in its block; use inputs: parallel for this model")
    return [tuple(group) for group in groups.values()]


def hidden_of(out: Any) -> Tensor:
    """Of a block's output."""
    return out[0] if isinstance(out, (tuple, list)) else out


def add_cross(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ·right of [n, a] and [n, b], float32; 16-bit factors as in second_moments.add_outer."""
    narrow = left.is_cuda and left.dtype.itemsize == 2
    if not narrow:
        products.add_product(total, left.float(), right.float())
        return
    for a, b in zip(left.split(NARROW_ROWS), right.split(NARROW_ROWS), strict=True):
        torch.addmm(total, a.T, b, torch.float32, out=total)


def takes_outputs(block: nn.Module, group: tuple[str, ...]) -> bool:
    """Whether W·C is summed of what the group's linears put out, since those are fewer channels than they read; in
    float32 on a CPU, where that is as exact."""
    weights = [block.get_parameter(f"{name}.weight") for name in group]
    return weights[0].dtype == torch.float32 and not weights[0].is_cuda and sum(map(len, weights)) < weights[0].shape[1]


def counted(count: Tensor, x: Tensor) -> Tensor:
    """Rows [n, in] whose products with themselves count [n] times; float32."""
    return x.float() * count.sqrt()[:, None]


class Portion(NamedTuple):
    """Sequences that run by themselves, of a batch: which batch, its rows, they as a batch, and what each block is
    called with."""

    of: int
    rows: slice
    batch: Batch
    arguments: list[Arguments]

    def cut(self, t: Tensor) -> Tensor:
        """Theirs of what is the batch's, [n, width, …]."""
        return t[self.rows, : self.batch.ids.shape[1]]


class Pair:
    """One block of both models. groups: its linears by `reading_order`, named within the block.

    Both run by `fast_products`: what that leaves out is far less than what rounding moves; moments are summed in
    float32. The original runs once a batch, and of the quantised block only what has not run with its final weights: to
    ask for a group's moments is to say that the groups before it are final.
    """

    def __init__(
        self,
        name: str,
        original: nn.Module,
        batches: list[Batch],
        arguments: list[Arguments],
        streams: tuple[HiddenStates, HiddenStates],
        index: int,
        portions: list[Portion],
    ) -> None:
        self.portions, self._index = portions, index
        self.name, self._batches, self._arguments, self._streams = name, batches, arguments, streams
        shared = {id(each): each for each in original.parameters()}  # until `put` has others in their place
        self._blocks = original, copy.deepcopy(original, shared)
        self.groups: list[tuple[str, ...]] = []

        def run() -> None:
            self.groups = reading_order(original, streams[0].get(0), arguments[0])

        ends = ends_of(original, run)
        self._by_outputs = {group for group in self.groups if takes_outputs(original, group)}
        readers = [group[0] for group in self.groups if group not in self._by_outputs]
        makers = [name for group in self.groups if group in self._by_outputs for name in group]
        self._passing = Passing(original, readers, makers, Budget(original))
        self._outputs = Outputs(self._blocks[1], Budget(original), ends)
        self._ahead: set[int] = set()  # batches whose original is in the next block already

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Parameters of the quantised block by their full names, in any float type."""
        block = self._blocks[1]
        for full, value in weights.items():
            path, _, name = full.removeprefix(f"{self.name}.").rpartition(".")
            owner = block.get_submodule(path)
            self._outputs.forget(path)
            old = getattr(owner, name)
            setattr(owner, name, nn.Parameter(value.to(old.device, old.dtype), requires_grad=False))

    @fast_products()
    def _original_rows(self, group: tuple[str, ...], i: int) -> list[Tensor]:
        """What the group's linears read, or, without its bias, what each of them puts out."""
        states, arguments = self._streams[0], self._arguments[i]
        if i not in self._ahead and group == self.groups[0]:
            out, held = self._passing.run(i, lambda: arguments.call(self._blocks[0], states.get(i)))
            if held:
                states.put(i, hidden_of(out))
                self._ahead.add(i)
        x = None if i in self._ahead else input_of(self._blocks[0], group[0], states.get(i), arguments)
        if group not in self._by_outputs:
            return [token_rows(self._passing.get(group[0], i) if x is None else x, self._batches[i])]
        found = []
        for name in group:
            linear = self._blocks[0].get_submodule(name)
            bias = getattr(linear, "bias", None)
            with products.fast(states.get(i).device):
                out = self._passing.get(name, i) if x is None else linear(x)
            found.append(token_rows(out if bias is None else out - bias, self._batches[i]))
        return found

    @fast_products()
    def _quantised_rows(self, linear: str, i: int) -> Tensor:
        with self._outputs.of(i):
            x = input_of(self._blocks[1], linear, self._streams[1].get(i), self._arguments[i])
        self._outputs.read(linear, i, x)
        return token_rows(x, self._batches[i])

    def moments(self, linear: str, with_cross: bool, counts: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """H̃ = X̃ᵀX̃/N [in, in] of a linear's inputs X̃ in the quantised model and, where it is wanted, for each linear W
        of its group C = XᵀX̃/N [in, in], X in the original, or W·C [out, in] (`takes_outputs`); float32. counts [n,
        tokens]: what each token counts, n times over; then each [n, …, in]."""
        at = next(i for i, group in enumerate(self.groups) if linear in group)
        group = self.groups[at]
        weights, by_outputs, count = (
            [self._blocks[0].get_parameter(f"{name}.weight") for name in group],
            group in self._by_outputs,
            0,
        )
        n, n_in = 1 if counts is None else len(counts), weights[0].shape[1]
        total = torch.zeros(n, n_in, n_in, device=weights[0].device)
        sizes = ([len(w) for w in weights] if by_outputs else [n_in]) if with_cross else []
        crosses = [total.new_zeros(n, size, n_in) for size in sizes]
        before = [name for group in self.groups[:at] for name in group]
        self._outputs.settle(before)
        self._passing.release(before)
        for i in range(len(self._batches)):
            rows = self._quantised_rows(linear, i)
            others = self._original_rows(group, i) if with_cross else []
            for k, into in enumerate(total):
                of = (lambda x: x) if counts is None else partial(counted, counts[k, count : count + len(rows)])
                add_outer(into, own := of(rows))
                for cross, other in zip(crosses, others, strict=True):
                    add_cross(cross[k], of(other), own)
            count += len(rows)
        for each in total:
            mirror(each).div_(count)
        for each in (total, *(cross.div_(count) for cross in crosses)):
            check_statistic(f"{self.name}.{linear}", each)
        found = [each if counts is not None else each[0] for each in crosses]
        named = dict(zip(group, found if by_outputs else found * len(group), strict=True)) if with_cross else {}
        return total if counts is not None else total[0], named

    def original(self, linear: str) -> Tensor:
        """The original's weight of a linear by its full name, in the type that the model runs in."""
        return self._blocks[0].get_parameter(f"{linear.removeprefix(f'{self.name}.')}.weight").data

    @property
    def quantised(self) -> nn.Module:
        """The quantised model's block."""
        return self._blocks[1]

    @property
    def device(self) -> torch.device:
        return next(self._blocks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self._blocks[0].parameters()).dtype

    @property
    def batches(self) -> list[Batch]:
        return self._batches

    def arguments(self, i: int) -> Arguments:
        return self._arguments[i]

    def arguments_of(self, portion: Portion) -> Arguments:
        return portion.arguments[self._index]

    def states(self, i: int) -> Tensor:
        """What the quantised model's block reads [n, width, hidden]."""
        return self._streams[1].get(i)

    def counted(self, batch: Batch, left_out: frozenset[int]) -> Tensor:
        """1 for a batch's or portion's tokens [n, width], 0 for padding and for sequences left out."""
        kept = torch.tensor([batch.first + row not in left_out for row in range(len(batch.ids))])
        mask = torch.ones(batch.ids.shape, dtype=torch.bool) if batch.mask is None else batch.mask
        return (mask & kept[:, None]).float().to(self.device)

    @torch.inference_mode()
    @fast_products()
    def goals(self, share: float) -> HiddenStates:
        """What the quantised block should put out, by batch: share·(the original's own output) + (1 - share)·(what the
        original's block makes of the quantised model's inputs). It ends the block for the original."""
        shape = torch.Size((sum(batch.ids.numel() for batch in self._batches), self.states(0).shape[-1]))
        found = hidden_states(str(self.device), shape.numel() * self.dtype.itemsize)
        for i, arguments in enumerate(self._arguments):
            goal = None if share == 1 else hidden_of(arguments.call(self._blocks[0], self.states(i)))
            if share:
                self._end(i)
                whole = self._streams[0].get(i)
                goal = whole if goal is None else torch.lerp(goal, whole, share)
            assert goal is not None
            found.put(i, goal)
        return found

    @fast_products()
    def _end(self, i: int) -> None:
        """The original's stream to the next block, where it is not there yet."""
        if i not in self._ahead:
            states = self._streams[0]
            states.put(i, hidden_of(self._arguments[i].call(self._blocks[0], states.get(i))))
            self._ahead.add(i)

    @fast_products()
    def advance(self, with_original: bool) -> None:
        """Both streams to the next block; the original's only where it is wanted."""
        self._outputs.settle([name for group in self.groups for name in group])
        for i, arguments in enumerate(self._arguments):
            if with_original:
                self._end(i)
            states = self._streams[1]
            with self._outputs.of(i):
                states.put(i, hidden_of(arguments.call(self._blocks[1], states.get(i))))


class Changed:
    """A file's weights, some in place of its own."""

    def __init__(self, weights: Weights, changed: Mapping[str, Tensor]) -> None:
        self._weights, self._changed, self.path, self.names = weights, changed, weights.path, weights.names

    def get(self, name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        if name in self._changed:
            return self._changed[name].to(device, dtype)
        return self._weights.get(name, device, dtype)

    def prefetch(self, names: Iterable[str], device: str) -> None:
        self._weights.prefetch(names, device)


class Streams(Run):
    """Two models' hidden states on their way through the blocks."""

    def fewer(self, most: int = WIDEST) -> None:
        """Batches of at most so many bytes where they are widest, which fill a GPU."""
        block = self.blocks[0]
        widest = max(max(block.get_parameter(f"{name}.weight").shape) for name in linear_names(block))
        widths = [batch.ids.numel() for batch in self.batches]
        at_once = most // (widest * self._dtype.itemsize)
        if max(widths) > at_once and torch.device(self._device).type != "cpu":
            self.batches = list(batches(self._sequences, at_once, self._alike))

    def _portions(self, weights: Weights, arguments: list[list[Arguments]], most: int | None) -> list[Portion]:
        """Of every batch, in their order, of at most so many tokens (None: whole batches)."""
        found = []
        for i, batch in enumerate(self.batches):
            own = self._sequences[batch.first : batch.first + len(batch.ids)]
            for each in [batch] if most is None else batches(own, most, self._alike):
                first = 0 if each is batch else each.first
                rows = slice(first, first + len(each.ids))
                found.append(Portion(i, rows, each._replace(first=batch.first + first), arguments[i]))
        if len(found) > len(self.batches):
            _, given = self.enter(weights, [portion.batch for portion in found])
            found = [portion._replace(arguments=each) for portion, each in zip(found, given, strict=True)]
        return found

    @torch.inference_mode()
    def pairs(
        self, changed: Mapping[str, Tensor] = MappingProxyType({}), portion_tokens: int | None = None
    ) -> Iterator[Pair]:
        """changed: weights before the blocks that the quantised model has in place of the original's; portion_tokens:
        of a portion, at most, where it is not a whole batch."""
        with tensorfile.opened(self._checkpoint / "model.safetensors") as weights:
            hidden, arguments = self.enter(weights)
            if changed:
                other, _ = self.enter(Changed(weights, changed))
            else:
                n_bytes = sum(hidden.get(i).nbytes for i in range(len(self.batches)))
                other = hidden_states(self._device, n_bytes)
                for i in range(len(self.batches)):
                    other.put(i, hidden.get(i))
            portions = self._portions(weights, arguments, portion_tokens)
            for index in tqdm(range(self.depth), desc=self._progress, unit="block"):
                block, name = self.blocks[index], f"{self.prefix}.{index}"
                fill(block, name, weights, self._device, self._dtype, self.tied)
                if index + 1 < self.depth:
                    weights.prefetch((f"{self.prefix}.{index + 1}.{part}" for part in block.state_dict()), self._device)
                given = [each[index] for each in arguments]
                yield Pair(name, block, self.batches, given, (hidden, other), index, portions)
                empty(block)
