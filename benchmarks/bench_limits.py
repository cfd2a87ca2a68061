"""What the steps of bench.py must do at least, and how fast the device does that: a limit in seconds for each."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Shape(NamedTuple):
    """A decoder with gated MLPs, multi-head attention and tied embeddings, and the texts it is used on."""

    hidden: int
    intermediate: int
    heads: int
    vocabulary: int
    depth: int
    group_size: int
    calibration: tuple[int, int]  # sequences × tokens
    evaluation: tuple[int, int]
    dtype: str


def linears_of(shape: Shape) -> list[tuple[int, int]]:
    """(out, in) of a block's linears."""
    h, m = shape.hidden, shape.intermediate
    return [(h, h)] * 4 + [(m, h)] * 2 + [(h, m)]


# rates of the device: what the limits are made of


def seconds_of(work: Callable[[], Any], where: str, repeats: int = 5) -> float:
    """Median seconds of a piece of work, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        begun = clock(where)
        work()
        times.append(clock(where) - begun)
    return statistics.median(times[1:])


def clock(where: str) -> float:
    if where == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Rates(NamedTuple):
    """Multiply-adds count twice: FLOP/s of the model's type and of float32; bytes/s of a copy within the device (read
    and written), from it to page-locked memory, and to disk."""

    model: float
    float32: float
    copy: float
    off: float
    disk: float


def measure_rates(where: str, dtype: str, folder: Path) -> Rates:
    n = 8192 if where == "cuda" else 1024

    def product(kind: torch.dtype) -> float:
        a, b = (torch.randn(n, n, device=where).to(kind) for _ in range(2))
        return 2 * n**3 / seconds_of(lambda: a @ b, where)

    big = torch.empty(2**28 if where == "cuda" else 2**24, device=where)
    host = torch.empty(2**26 if where == "cuda" else 2**22, pin_memory=where == "cuda")
    content = bytes(2**28 if where == "cuda" else 2**24)

    def write() -> None:
        with (folder / "disk").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    copy = 2 * big.nbytes / seconds_of(lambda: big.clone(), where)
    off = host.nbytes / seconds_of(lambda: host.copy_(big[: len(host)]), where)
    disk = len(content) / seconds_of(write, where, 3)
    (folder / "disk").unlink()
    return Rates(product(getattr(torch, dtype)), product(torch.float32), copy, off, disk)


def gpu_seconds(work: Callable[[], Any]) -> float:
    """Seconds of a piece of work in which anything ran on the GPU: a kernel, or a copy from or to it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    busy = until = 0.0
    on_gpu = (e.time_range for e in found.events() if e.device_type == DeviceType.CUDA)
    for start, end in sorted((span.start, span.end) for span in on_gpu):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


# limits: seconds that the products and copies of a step take at those rates, one after the other


def weights_of(shape: Shape) -> int:
    """Weights of a block's linears."""
    return sum(out * n_in for out, n_in in linears_of(shape))


def forward_flops(shape: Shape, n_tokens: int, width: int) -> float:
    """Of the blocks: linears, and causal attention within sequences of `width`."""
    return shape.depth * n_tokens * (2 * weights_of(shape) + 2 * shape.hidden * width)


def activations_of(shape: Shape) -> int:
    """Numbers a token that a block's operations between its products read and write: two norms, rotation, attention,
    two residual sums, gating; and the sums over each input and output."""
    h, m = shape.hidden, shape.intermediate
    return (2 * 2 * h + 4 * h + 4 * h + 2 * 3 * h + 3 * m) + (3 * h + m) + (5 * h + 2 * m)


def statistics_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    """Forward pass and one triangle of each XᵀX, in the model's type; activations; weights in, triangles out."""
    size = getattr(torch, shape.dtype).itemsize
    triangles = shape.depth * sum(n * (n + 1) for n in [shape.hidden] * 3 + [shape.intermediate])
    products = (forward_flops(shape, n_tokens, width) + n_tokens * triangles) / rates.model
    activations = shape.depth * n_tokens * activations_of(shape) * size / rates.copy
    return products + activations + (shape.depth * weights_of(shape) * size + 2 * triangles) / rates.off


def search_limit(shape: Shape, rates: Rates, recipe: dict[str, Any]) -> float:
    """A triangle of D·H for each α in the model's type; GPTQ's feedback, half a product with H, and its factor's n³·2/3
    in float32; weights and triangles in, weights out."""
    products = sum(out * n_in * (n_in + 1) for out, n_in in linears_of(shape))
    total = 0.0
    if recipe["salience"] != "none":
        total += (recipe["n_grid"] + 1) * products / rates.model
    if recipe["rounding"] == "gptq":
        total += (products + sum(2 / 3 * n_in**3 for _, n_in in linears_of(shape))) / rates.float32
    moments = 2 * sum(n * (n + 1) for n in [shape.hidden] * 3 + [shape.intermediate])
    moments *= recipe["salience"] != "none" or recipe["rounding"] == "gptq"
    return shape.depth * (total + (weights_of(shape) * 2 * getattr(torch, shape.dtype).itemsize + moments) / rates.off)


def evaluation_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    return (forward_flops(shape, n_tokens, width) + 2 * n_tokens * shape.hidden * shape.vocabulary) / rates.model
