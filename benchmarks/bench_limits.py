"""What the steps of bench.py must do at least: a limit in seconds for each, at the rates that the device was measured
to have (quant.workflow.estimates.rates)."""

from collections.abc import Callable
from typing import Any

import torch

from quant.workflow.estimates.amounts import forward, head, outer, products
from quant.workflow.estimates.rates import Rates
from quant.workflow.estimates.shape import Shape, moment_numbers


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


def activations_of(shape: Shape) -> int:
    """Numbers a token that a block's operations between its products read and write: two norms, rotation, attention,
    two residual sums, gating; and the sums over each input and output."""
    h, m = shape.hidden, shape.middle
    return (2 * 2 * h + 4 * h + 4 * h + 2 * 3 * h + 3 * m) + (3 * h + m) + (5 * h + 2 * m)


def statistics_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    """Forward pass and one triangle of each XᵀX, in the model's type; activations; weights in, triangles out."""
    work = (forward(shape, n_tokens, width) + outer(shape, n_tokens)) / rates.model
    activations = shape.depth * n_tokens * activations_of(shape) * shape.width / rates.copy
    return work + activations + (shape.quantised * shape.width + 4 * moment_numbers(shape)) / rates.off


def search_limit(shape: Shape, rates: Rates, recipe: dict[str, Any]) -> float:
    """A triangle of D·H for each α in the model's type; GPTQ's feedback, half a product with H, and its factor's n³·2/3
    in float32; weights and triangles in, weights out."""
    total, reads = 0.0, 0
    if recipe["salience"] != "none":
        total += (recipe["n_grid"] + 1) * products(shape) / rates.model
    if recipe["rounding"] == "gptq":
        total += (products(shape) + shape.depth * sum(e.n * 2 / 3 * e.n_in**3 for e in shape.linears)) / rates.float32
    if recipe["salience"] != "none" or recipe["rounding"] == "gptq":
        reads = 4 * moment_numbers(shape)
    return total + (shape.quantised * 2 * shape.width + reads) / rates.off


def evaluation_limit(shape: Shape, rates: Rates, n_tokens: int, width: int) -> float:
    return (forward(shape, n_tokens, width) + head(shape, n_tokens)) / rates.model
