"""Where, in what precision and in what batches forward passes run."""

import contextlib
import functools
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.artifacts import read_json
from quant.runtime import cards

logger = logging.getLogger("quant")
Item = TypeVar("Item")
Result = TypeVar("Result")


def where_installed(load: Callable[[], ModuleType]) -> Callable[[], ModuleType | None]:
    """The module that `load` imports and returns, once asked for; None where a library of its is not installed."""

    @functools.cache
    def found() -> ModuleType | None:
        try:
            return load()
        except ImportError:
            return None

    return found


def device(wanted: str) -> str:
    """`auto`: a GPU when there is one, else the CPU. Of several GPUs the job gets one (see `cards`)."""
    if wanted != "cpu" and (torch.version.cuda or torch.version.hip):
        cards.take()
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def memory_left(device: str, root: Path = Path("/")) -> float:
    """Bytes that a device has for one more job: of a GPU, or of this machine, where a cgroup may give less; pages of
    files are given back and count as free."""
    if torch.device(device).type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    found = [float("inf")]
    with contextlib.suppress(OSError, IndexError, ValueError):
        said = (root / "proc/meminfo").read_text(encoding="utf-8").partition("MemAvailable:")[2]
        found.append(1024.0 * int(said.split()[0]))
    with contextlib.suppress(OSError, KeyError, ValueError):  # "max" is no number
        folder = root / "sys/fs/cgroup"
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        found.append(float(limit - used + int(held["active_file"]) + int(held["inactive_file"])))
    return min(found)


def clock(device: str) -> float:
    """Seconds, once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item] | Tensor) -> list[Result]:
    """work of each item, as many at once as there are threads, each on one of them, so that results are the same on any
    number of threads. For operations of 50 µs and more: between them, Python runs one thread at a time."""
    n = torch.get_num_threads()
    if n == 1:
        return [work(item) for item in items]
    try:
        with ThreadPoolExecutor(min(n, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(n)  # which is this thread's, and that of threads to come


def dtype(wanted: str, device: str, checkpoint: Path) -> torch.dtype:
    """`auto`: float32 on a CPU, the checkpoint's own type on a GPU."""
    if wanted == "auto":
        config = read_json(checkpoint / "config.json")
        wanted = "float32" if device == "cpu" else config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, wanted)


def batch_tokens(wanted: int | str, device: str) -> int:
    """`auto`: what was fastest of 512 to 4,096 for a small model on a CPU, and enough to fill a GPU."""
    if wanted != "auto":
        return int(wanted)
    return 1024 if device == "cpu" else 16384


def halved(n: int, width: int) -> int:
    """Tokens of half of a batch of n sequences of `width` tokens, which a GPU's memory did not hold."""
    if n == 1:
        raise InputError(f"a sequence of {width} tokens does not fit into the GPU's memory; use a smaller seq_len")
    logger.warning("%d tokens in a batch do not fit into the GPU's memory; going on with %d", n * width, n // 2 * width)
    return n // 2 * width


def halving(work: Callable[[int], Result], batch_tokens: int, sequences: Sequence[Tensor]) -> Result:
    """work(batch_tokens); where a GPU's memory does not hold a batch, again from its beginning with half of it.

    For passes that sum over batches: of one that failed half way, some sums would hold it already. A batch that is too
    large is so in the first block, so that little is done twice.
    """
    width = max(map(len, sequences))
    while True:
        with contextlib.suppress(torch.OutOfMemoryError):
            return work(batch_tokens)
        batch_tokens = halved(max(1, min(batch_tokens // width, len(sequences))), width)
        gc.collect()  # what the failed pass held, cycles too
        torch.cuda.empty_cache()


class Compute(NamedTuple):
    """Where forward passes run, in what precision, and how many tokens a batch has."""

    device: str
    dtype: torch.dtype
    batch_tokens: int

    @classmethod
    def of(cls, options: dict[str, Any], checkpoint: Path) -> "Compute":
        """Of the configuration's `compute:` and the model that runs."""
        where = device(options["device"])
        return cls(where, dtype(options["dtype"], where, checkpoint), batch_tokens(options["batch_tokens"], where))

    def halving(self, work: Callable[["Compute"], Result], sequences: Sequence[Tensor]) -> Result:
        """work(self), or with the batches that a GPU's memory holds (see `halving`)."""
        return halving(lambda n: work(self._replace(batch_tokens=n)), self.batch_tokens, sequences)
