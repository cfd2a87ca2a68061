"""What of a block need not run again: what the original's linears read, and what modules put out whose weights are
final. A pass that is asked for several times then costs about as much as one; where memory ends, it runs as before.

Whether a block writes into what is kept of it is seen on the first batch, of which there are copies; the others are
copied only where it does.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.models.structure.linears import linear_names
from quant.runtime.instead import doing

SHARE = 8  # of a GPU's free memory, one in so many parts for each stream at most
ON_CPU = 2**30  # bytes for each stream: 32,768 tokens of SmolLM2-135M take 0.4 and 0.5 GB
ON_GPU = 2**27  # the same: what more would save is little beside a block's rounding
SMALL, OF_SMALL = 2**26, 2**30  # but of a block of so many bytes at most, whose passes are most of its time


class Budget:
    """Bytes that may still be kept."""

    def __init__(self, block: nn.Module) -> None:
        """block: whose passes are saved."""
        parameters = list(block.parameters())
        device, self.left = parameters[0].device, ON_CPU
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            most = OF_SMALL if sum(each.nbytes for each in parameters) <= SMALL else ON_GPU
            self.left = min(most, (torch.cuda.mem_get_info(device)[0] + unused) // SHARE)

    def takes(self, n_bytes: int) -> bool:
        if n_bytes > self.left:
            return False
        self.left -= n_bytes
        return True


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Of a module's output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def copied(value: Any) -> Any:
    """A module's output, apart from what others may write into."""
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(copied, value)) if type(value) in (tuple, list) else value


class Store:
    """Values by name and batch, the first batch's with copies, by which it is seen whether they are written into."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._held, self._first = budget, dict[tuple[str, int], Any](), dict[str, Any]()
        self._written = False  # whether a block writes into what is kept

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._held

    def get(self, key: tuple[str, int]) -> Any:
        return copied(self._held[key]) if self._written else self._held[key]

    def put(self, key: tuple[str, int], value: Any) -> bool:
        """Whether there was room for it."""
        if not self._budget.takes(sum(each.nbytes for each in tensors_in(value))):
            return False
        if key[1] == 0:
            self._first[key[0]] = copied(value)
        self._held[key] = copied(value) if self._written else value
        return True

    def drop(self, wanted: Callable[[tuple[str, int]], bool] = lambda key: True) -> None:
        for key in list(filter(wanted, self._held)):
            self._budget.left += sum(each.nbytes for each in tensors_in(self._held.pop(key)))
            if key[1] == 0:
                del self._first[key[0]]

    def look(self) -> None:
        """To be called after each run of the first batch, before the others are run."""
        for name, copy in self._first.items():
            pairs = zip(tensors_in(self._held[name, 0]), tensors_in(copy), strict=True)
            if not all(torch.equal(*pair) for pair in pairs):
                self._written, self._held[name, 0] = True, copied(copy)


class Passing:
    """What some linears of a block read, and what others put out, by batch, of one run of it."""

    def __init__(self, block: nn.Module, readers: Sequence[str], makers: Sequence[str], budget: Budget) -> None:
        self._block, self._readers, self._makers, self._store = block, readers, makers, Store(budget)

    def run(self, i: int, call: Callable[[], Any]) -> tuple[Any, bool]:
        """The block's output, and whether all of it is held."""

        def reads(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: held.append(self._store.put((name, i), args[0]))

        def puts(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda module, args, out: held.append(self._store.put((name, i), out))

        held: list[bool] = []
        hooks = [self._block.get_submodule(name).register_forward_pre_hook(reads(name)) for name in self._readers]
        hooks += [self._block.get_submodule(name).register_forward_hook(puts(name)) for name in self._makers]
        try:
            out = call()
        finally:
            for hook in hooks:
                hook.remove()
        if i == 0:
            self._store.look()
        whole = all(held) and len(held) == len(self._readers) + len(self._makers)
        if not whole:
            self._store.drop(lambda key: key[1] == i)
        return out, whole

    def get(self, name: str, i: int) -> Tensor:
        return self._store.get((name, i))

    def release(self, names: Sequence[str]) -> None:
        """These are not asked for again."""
        self._store.drop(lambda key: key[0] in names)


class End(NamedTuple):
    """A module's last linear, whose output is what the module puts out; rest: what comes after it in a tuple, or None
    where it comes alone."""

    linear: str
    rest: tuple[None, ...] | None


def ends_of(block: nn.Module, call: Callable[[], Any]) -> dict[str, End]:
    """Of the block's modules, by name, as one call shows them."""
    linears = linear_names(block)
    put: dict[str, tuple[Tensor, Tensor]] = {}  # as it was put out, and a copy of that
    ends: dict[str, End] = {}

    def noted(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, out: put.__setitem__(name, (out, out.clone()))

    def left(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            first, *rest = out if type(out) is tuple and out else (out,)
            if any(each is not None for each in rest):
                return
            for linear in (each for each in put if each.startswith(f"{name}.")):
                if first is put[linear][0] and torch.equal(*put[linear]):
                    ends[name] = End(linear, tuple(rest) if type(out) is tuple else None)

        return hook

    holders = {name for linear in linears for name, _ in block.named_modules() if linear.startswith(f"{name}.")} - {""}
    hooks = [block.get_submodule(name).register_forward_hook(noted(name)) for name in linears]
    hooks += [block.get_submodule(name).register_forward_hook(left(name)) for name in holders]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return ends


def _input(linear: str) -> str:
    """A name for what a linear reads, where what modules put out goes by theirs."""
    return f"{linear} reads"


class Outputs:
    """What modules of a block put out, by batch, whose linears will not change any more; ends: of `ends_of`."""

    def __init__(self, block: nn.Module, budget: Budget, ends: Mapping[str, End] = MappingProxyType({})) -> None:
        self._block, self._store, self._ends = block, Store(budget), ends
        self._linears = set(linear_names(block))
        self._final: set[str] = set()
        self._settled: dict[str, bool] = {}  # by name: whether it is within no other

    def settle(self, linears: Sequence[str]) -> None:
        """These linears are final; so is each module that holds no others."""
        self._final = set(linears)
        inside = {
            name: {linear for linear in self._linears if linear == name or linear.startswith(f"{name}.")}
            for name, module in self._block.named_modules()
            if name and not isinstance(module, (nn.ModuleList, nn.ModuleDict))  # which are not called themselves
        }
        names = [name for name, held in inside.items() if held and held <= self._final]
        self._settled = {name: not any(name.startswith(f"{other}.") for other in names) for name in names}

    def forget(self, module: str) -> None:
        """A weight of this module changes: all is dropped, unless no kept module has it or runs after it."""
        if any(module == linear or linear.startswith(f"{module}.") for linear in self._linears - self._final):
            return
        self._store.drop()

    def read(self, linear: str, i: int, x: Tensor) -> None:
        """x is what a linear reads. Where it ends its module, the rest of that need not run again."""
        modules = [name for name, end in self._ends.items() if end.linear == linear]
        if modules and self._store.put((_input(linear), i), x):
            inside = f"{min(modules, key=len)}."
            self._store.drop(lambda key: key[1] == i and key[0].startswith(inside) and key[0] != _input(linear))

    @contextlib.contextmanager
    def of(self, i: int) -> Iterator[None]:
        """Within it the block runs on this batch, what is kept in place of what would be computed again. The first
        batch comes before the others."""
        modules = {name: self._block.get_submodule(name) for name in self._settled}
        with doing({each: partial(self._forward, name, i, each.forward) for name, each in modules.items()}):
            yield
        if i == 0:
            self._store.look()

    def _forward(self, name: str, i: int, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if (name, i) in self._store:
            return self._store.get((name, i))
        end = self._ends.get(name)
        if end is not None and end.linear in self._final and (_input(end.linear), i) in self._store:
            out = self._block.get_submodule(end.linear)(self._store.get((_input(end.linear), i)))
            out = out if end.rest is None else (out, *end.rest)
        else:
            out = compute(*args, **kwargs)
        if self._settled[name]:
            self._store.drop(lambda key: key[1] == i and key[0].startswith(f"{name}."))
            self._store.put((name, i), out)
        return out
