"""What a GPU runs many times, a training step or a function: its launches recorded once."""

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger("quant")

WARM = 1  # times a step runs before it is recorded: what it sets up first must be there


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Within it a GPU multiplies float32 by TF32 (10 bits of the mantissa), which is enough for a gradient."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def set_rate(group: dict[str, Any], rate: float) -> None:
    """An optimiser's, in place where it is a tensor, which a recorded step reads."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def recordable(device: torch.device, groups: list[list[nn.Parameter]]) -> dict[str, Any]:
    """Arguments of an Adam whose steps can be recorded, its rates to be set."""
    on_gpu = device.type == "cuda"
    made = [{"params": group, "lr": torch.zeros((), device=device) if on_gpu else 0.0} for group in groups]
    return {"params": made} | ({"fused": True, "capturable": True} if on_gpu else {})


def has_room() -> bool:
    """Whether a GPU has free what has been in use beyond what is now: a recorded step takes memory of its own."""
    wanted = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    if torch.cuda.mem_get_info()[0] < wanted:
        torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] >= wanted


class Replay:
    """Runs steps. On a GPU the first kind of them that comes more than WARM times is recorded (a CUDA graph) and then
    played, as one launch in place of thousands; any other runs as it is, and so does what cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        self._records, self._seen = device.type == "cuda", dict[Hashable, int]()
        self._kind: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, ...] = ()

    def __call__(self, kind: Hashable, step: Callable[..., None], *given: Tensor) -> None:
        """step(*given). kind: alike for steps that differ in the numbers in `given` alone."""
        if not self._records:
            step(*given)
            return
        if self._graph is not None and self._kind == kind:
            for own, each in zip(self._given, given, strict=True):
                own.copy_(each)
            self._graph.replay()
            return
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._graph is None and self._seen[kind] > WARM and self._record(kind, step, given):
            self(kind, step, *given)
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(*given)
        torch.cuda.current_stream().wait_stream(side)

    def _record(self, kind: Hashable, step: Callable[..., None], given: tuple[Tensor, ...]) -> bool:
        """Whether it could be; nothing is computed by it."""
        if not has_room():
            self._records = False
            return False
        own = tuple(each.clone() for each in given)
        found = recorded(step, own)
        if found is None:
            self._records = False
            return False
        self._kind, self._graph, self._given = kind, found[0], own
        return True


def recorded(
    step: Callable[..., Any], given: tuple[Tensor, ...], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Any] | None:
    """The launches of step(*given), which reads what is in `given` whenever they are played, and what it returns; None
    where they cannot be recorded. pool: memory of another recording, whose results are of no use once this one plays.
    """
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    try:
        with torch.cuda.stream(side):
            graph.capture_begin(pool, capture_error_mode="thread_local")  # others may read ahead meanwhile
            try:
                found = step(*given)
            finally:
                graph.capture_end()
    except RuntimeError as error:
        logger.warning("launches cannot be recorded, so each is made anew: %s", str(error).partition("\n")[0])
        return None
    torch.cuda.current_stream().wait_stream(side)
    return graph, found


class Recording(NamedTuple):
    """Of a function: its launches, what it is given, and what it returns."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    found: tuple[Tensor, ...]


class Recorder:
    """Calls functions of tensors. On a GPU each kind of call that comes more than WARM times is recorded, all in one
    piece of memory."""

    def __init__(self) -> None:
        self._known, self._seen = dict[Hashable, Recording](), dict[Hashable, int]()
        self._pool: Any = None
        self._records = True

    def __call__(
        self, kind: Hashable, function: Callable[..., tuple[Tensor, ...]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        """function(*given). kind: alike for calls that differ in the numbers in `given` alone."""
        if not self._records or not given[0].is_cuda:
            return function(*given)
        if kind not in self._known:
            self._seen[kind] = self._seen.get(kind, 0) + 1
            if self._seen[kind] <= WARM or not self._record(kind, function, given):
                return function(*given)
        known = self._known[kind]
        for own, each in zip(known.given, given, strict=True):
            own.copy_(each)
        known.graph.replay()
        return tuple(each.clone() for each in known.found)

    def _record(self, kind: Hashable, function: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor, ...]) -> bool:
        own = tuple(each.clone() for each in given)
        found = recorded(function, own, self._pool)
        if found is None:
            self._records = False
            return False
        self._known[kind] = Recording(found[0], own, found[1])
        self._pool = found[0].pool() if self._pool is None else self._pool
        return True


_recorders: list[Recorder] = []


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Within it `replayed` records."""
    _recorders.append(Recorder())
    try:
        yield
    finally:
        _recorders.pop()


def replayed(kind: Hashable, function: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> tuple[Tensor, ...]:
    """function(*given), by the recorder of where it is called."""
    return _recorders[-1](kind, function, *given) if _recorders else function(*given)
