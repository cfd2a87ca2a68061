"""What blocks compute on their way to gradients: kept of as many as there is room for, computed again of the others."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quant.runtime.instead import doing

KEPT = 2**33  # bytes of a GPU, at most
SHARE = 4  # of a GPU's free memory, one part in so many


def room(device: torch.device) -> int:
    """Bytes for what blocks compute inside; on a CPU it is computed again, as memory is what ends there."""
    if device.type != "cuda":
        return 0
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(KEPT, (torch.cuda.mem_get_info(device)[0] + unused) // SHARE)


def inside(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and the bytes that it keeps for its gradients."""
    found: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        return call(), sum(found.values())


class Insides:
    """How many of a model's blocks keep theirs, the last ones; known once the first one has run."""

    def __init__(self, n_blocks: int) -> None:
        self._n_blocks, self._room = n_blocks, 0
        self._each: float | None = None  # bytes of one block and token

    def call(self, index: int, forward: Callable[..., Any], hidden: Tensor, run: Callable[[], Any]) -> Any:
        """run() of block `index` on hidden states [n, width, hidden]; forward: what runs it again."""
        tokens = hidden.shape[:-1].numel()
        if self._each is None:
            self._room = room(hidden.device)
            if self._room:
                out, n_bytes = inside(run)
                self._each = n_bytes / tokens
                return out
            self._each = float("inf")
        if (self._n_blocks - index) * self._each * tokens <= self._room:
            return run()
        return forward()


@contextlib.contextmanager
def run_again(blocks: Sequence[nn.Module], insides: Insides) -> Iterator[None]:
    """Within it blocks compute their insides again for their gradients, where these are not kept."""
    with doing({block: _watched(index, block.forward, insides) for index, block in enumerate(blocks)}):
        yield


def _watched(index: int, forward: Callable[..., Any], insides: Insides) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def again() -> Any:
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        hidden = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        return insides.call(index, again, hidden, lambda: forward(*args, **kwargs))

    return run
