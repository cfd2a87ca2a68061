"""How fast a machine works, and how long an estimate takes at that."""

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from quant.workflow.estimates.amounts import Estimate


class Rates(NamedTuple):
    """Multiply-adds count twice: FLOP/s of the model's type and of float32; bytes/s of a copy within the device (read
    and written), from it to page-locked memory, and of files with their checksums: written, read out of memory, and
    read where memory has not kept them; seconds of a small operation that Python waits for, and of a million additions
    of its own."""

    model: float
    float32: float
    copy: float
    off: float
    disk: float
    read: float
    cold: float
    call: float
    python: float


# of machines that a job's minutes must do for
SLOW_CPU = Rates(20e9, 20e9, 5e9, 5e9, 1e8, 5e8, 1e8, 5e-5, 0.1)
SLOW_GPU = Rates(30e12, 10e12, 3e11, 5e9, 1e8, 5e8, 1e8, 5e-5, 0.1)
# how many times the products in the model's type and in float32 take what they would at those rates, as measured
# (docs/results.md): those of a pass are as large as a square's, those of a linear smaller
TIMES = {"cpu": (1.1, 1.1), "cuda": (1.9, 1.5)}
PYTHON = 0.05  # seconds of a million additions where jobs start in the time that estimates say
BOTH = 0.3  # of the time of reading or of writing, whichever is shorter: they take the host's memory from each other
AHEAD = 1.9  # times what reading takes where all of a file is asked for at once, not two blocks
WARM = 0.3  # seconds until a GPU's first kernels are there


def lanes(found: Estimate, rates: Rates, where: str) -> tuple[float, float, float]:
    """Seconds of a job's reading, work and writing, each alone."""
    model, float32 = TIMES[where]
    work = model * found.model / rates.model + float32 * found.float32 / rates.float32 + found.moved / rates.copy
    work += rates.call * found.calls
    if where == "cuda":  # on the stream that computes, too
        work += (found.before + found.read + found.written) / rates.off
    reading = AHEAD if where == "cuda" else 1.0
    return reading * found.read / rates.read, max(work, found.carried / rates.off), found.written / rates.disk


def within(found: Estimate, rates: Rates, where: str) -> float:
    """Seconds of a job's work, its start left out. A GPU's blocks are read ahead and written behind: the slowest of the
    three, and of the others what the first block waits for and the last one leaves; on a CPU only writing is beside."""
    read, work, written = lanes(found, rates, where)
    together = (read, work, written) if where == "cuda" else (read + work, written)
    longest = max(together)
    rest = (sum(together) - longest) / found.blocks + (BOTH * min(read, written) if where == "cuda" else 0)
    return found.before / rates.read + longest + rest


def seconds(found: Estimate, rates: Rates, where: str) -> float:
    """Wall time of a job."""
    return found.start * rates.python / PYTHON + within(found, rates, where) + (WARM if where == "cuda" else 0)


def seconds_of(work: Callable[[], Any], where: str, repeats: int = 5) -> float:
    """Median seconds of a piece of work, after one that warms up."""
    from quant.runtime.compute import clock

    times = []
    for _ in range(repeats + 1):
        begun = clock(where)
        work()
        times.append(clock(where) - begun)
    return statistics.median(times[1:])


def measure_rates(where: str, dtype: str, folder: Path) -> Rates:
    """Of this machine, in a few seconds; folder: on the disk that is meant."""
    import torch

    n = 8192 if where == "cuda" else 1024

    def product(kind: torch.dtype) -> float:
        a, b = (torch.randn(n, n, device=where).to(kind) for _ in range(2))
        return 2 * n**3 / seconds_of(lambda: a @ b, where)

    big = torch.empty(2**28 if where == "cuda" else 2**24, device=where)
    host = torch.empty(2**26 if where == "cuda" else 2**22, pin_memory=where == "cuda")
    copy = 2 * big.nbytes / seconds_of(lambda: big.clone(), where)
    off = host.nbytes / seconds_of(lambda: host.copy_(big[: len(host)]), where)
    few = torch.zeros(16, device=where)

    def ask() -> None:
        for _ in range(500):
            few.sum().item()

    call = seconds_of(ask, where, 3) / 500
    python = seconds_of(lambda: sum(i for i in range(10**6)), "cpu", 3)
    model, float32 = product(getattr(torch, dtype)), product(torch.float32)
    return Rates(model, float32, copy, off, *files(where, folder), call, python)


def files(where: str, folder: Path) -> tuple[float, float, float]:
    """Bytes/s to a file and back, from memory and from the disk, as methods have them: from the device and to it, with
    checksums."""
    import torch

    from quant.files import tensorfile
    from quant.runtime.compute import clock

    each = torch.zeros(2**25 if where == "cuda" else 2**22, dtype=torch.uint8, device=where)
    n = min(16 if where == "cuda" else 8, max(1, shutil.disk_usage(folder).free // (16 * each.nbytes)))
    layout = {f"{i}": (each.dtype, tuple(each.shape)) for i in range(n)}
    paths = [folder / f".rate{i}" for i in range(6)]
    unused = iter(paths)

    def write(some: dict[str, Any]) -> None:
        with tensorfile.writing(next(unused), some, {}) as out:
            for name in some:
                out.put(name, each)

    def read() -> None:
        with tensorfile.opened(paths[0]) as file:
            file.prefetch(layout, where)
            for name in layout:
                file.get(name, where)

    try:
        whole = seconds_of(lambda: write(layout), where, 2)
        few = {name: layout[name] for name in list(layout)[: n // 4]}
        begins = seconds_of(lambda: write(few), where, 2)  # to open and to close a file takes as long for a large one
        spent = [max(whole - begins, whole / 2) * n / (n - len(few)), seconds_of(read, where, 2)]
        if hasattr(os, "posix_fadvise"):
            with paths[0].open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begun = clock(where)
        read()
        spent.append(clock(where) - begun)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    written, cached, cold = (each.nbytes * n / each_s for each_s in spent)
    return written, cached, min(cold, cached)
