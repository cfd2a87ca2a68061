"""What the steps of bench.py must do at least, and how fast the device does that: a limit in seconds for each."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

import torch

from quant.second_moments import tf32


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
    """Multiply-adds count twice: FLOP/s of the model's type, of float32 and of float32 with TF32 factors; bytes/s of a
    copy within the device (read and written), from it to page-locked memory, and to disk."""

    model: float
    float32: float
    tf32: float
    copy: float
    off: float
    disk: float


def measure_rates(where: str, dtype: str, folder: Path) -> Rates:
    n = 8192 if where == "cuda" else 1024

    def product(kind: torch.dtype, allowed: bool) -> float:
        a, b = (torch.randn(n, n, device=where).to(kind) for _ in range(2))
        with tf32(allowed):
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
    model = product(getattr(torch, dtype), False)
    return Rates(model, product(torch.float32, False), product(torch.float32, True), copy, off, disk)


# limits: seconds that the products and copies of a step take at those rates


def weights_of(shape: Shape) -> int:
    """Weights of a block's linears."""
    return sum(out * n_in for out, n_in in linears_of(shape))


def forward_flops(shape: Shape, n_tokens: int, width: int) -> float:
    """Of the blocks: linears, and causal attention within sequences of `width`."""
    return shape.depth * n_tokens * (2 * weights_of(shape) + 2 * shape.hidden * width)


def statistics_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    """Forward pass and one triangle of each XᵀX; weights in, triangles out."""
    inputs = [shape.hidden] * 3 + [shape.intermediate]
    triangles = shape.depth * sum(n * (n + 1) for n in inputs)
    rate = rates.tf32 if shape.dtype != "float32" else rates.float32
    bytes_ = shape.depth * weights_of(shape) * getattr(torch, shape.dtype).itemsize + 2 * triangles
    return forward_flops(shape, n_tokens, width) / rates.model + n_tokens * triangles / rate + bytes_ / rates.off


def search_limit(shape: Shape, rates: Rates, recipe: dict[str, Any]) -> float:
    """A triangle of D·H for each α; GPTQ's feedback, half a product with H, and its factor's n³·2/3 for each linear."""
    products = sum(out * n_in * (n_in + 1) for out, n_in in linears_of(shape))
    total = 0.0
    if recipe["salience"] != "none":
        total += (recipe["n_grid"] + 1) * products / rates.tf32
    if recipe["rounding"] == "gptq":
        total += (products + sum(2 / 3 * n_in**3 for _, n_in in linears_of(shape))) / rates.float32
    in_and_out = weights_of(shape) * 2 * getattr(torch, shape.dtype).itemsize
    return shape.depth * (total + in_and_out / rates.copy)


def evaluation_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    return (forward_flops(shape, n_tokens, width) + 2 * n_tokens * shape.hidden * shape.vocabulary) / rates.model
