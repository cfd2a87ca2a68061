"""How fast a machine works, and how long an estimate takes at that."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from quant.workflow.amounts import Estimate


class Rates(NamedTuple):
    """Multiply-adds count twice: FLOP/s of the model's type and of float32; bytes/s of a copy within the device (read
    and written), from it to page-locked memory, and to disk."""

    model: float
    float32: float
    copy: float
    off: float
    disk: float


# of machines that a job's minutes must do for
SLOW_CPU = Rates(20e9, 20e9, 5e9, 5e9, 1e8)
SLOW_GPU = Rates(30e12, 10e12, 3e11, 5e9, 1e8)
# how many times the products in the model's type and in float32 take what they would at those rates, as measured
# (docs/results.md): between them stand norms, rotations, sums and rounding
TIMES = {"cpu": (1.1, 1.1), "cuda": (1.9, 2.5)}
PIECE = 4.4e-3  # seconds of Python, launches and waiting for each linear that is gone through by itself
READ = 3.5e9  # bytes a second of mapped files, held against their checksums
BESIDE = 0.1  # of the shorter of work and writing that does not go on beside the other
WARM = 0.3  # seconds until a GPU's first kernels are there


def within(found: Estimate, rates: Rates, where: str) -> float:
    """Seconds of a job's work, its start left out: files are written beside it, but for a part."""
    model, float32 = TIMES[where]
    work = model * found.model / rates.model + float32 * found.float32 / rates.float32
    work += found.pieces * PIECE + found.read / READ
    writing = found.written / rates.disk
    return max(work, writing) + BESIDE * min(work, writing) + (WARM if where == "cuda" else 0)


def seconds(found: Estimate, rates: Rates, where: str) -> float:
    """Wall time of a job."""
    return found.start + within(found, rates, where)


def seconds_of(work: Callable[[], Any], where: str, repeats: int = 5) -> float:
    """Median seconds of a piece of work, after one that warms up."""
    from quant.models.compute import clock

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
    content = bytes(2**28 if where == "cuda" else 2**24)

    def write() -> None:
        with (folder / ".rate").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    copy = 2 * big.nbytes / seconds_of(lambda: big.clone(), where)
    off = host.nbytes / seconds_of(lambda: host.copy_(big[: len(host)]), where)
    try:
        disk = len(content) / seconds_of(write, where, 3)
    finally:
        (folder / ".rate").unlink(missing_ok=True)
    return Rates(product(getattr(torch, dtype)), product(torch.float32), copy, off, disk)
