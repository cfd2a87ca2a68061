"""Numbers that a file may hold: none that is NaN or infinite, none beyond its type's end."""

import math
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import Layout
from quant.files.waits import judge


def ends(tensor: Tensor) -> Tensor:
    """Least and greatest [2]; NaN where there is one."""
    return torch.stack([tensor.amin(), tensor.amax()])  # apart, without a copy of it


def check_finite(name: str, tensor: Tensor, where: str | Path) -> None:
    """Refuses NaN and infinities by the tensor's name, of a GPU's at the end of `waits.together`."""
    if tensor.numel():
        judge(ends(tensor), lambda found: judged(name, found[0], found[1], where))


def judged(name: str, low: float, high: float, where: str | Path) -> float:
    """The larger end, of a tensor that is refused where it is none."""
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(f"{where}: {name} holds NaN or infinite values; use a model whose weights are finite")
    return max(-low, high)


class Sink(Protocol):
    """What takes tensors: a Writer, or one of several files."""

    layout: Layout

    def put(self, name: str, tensor: Tensor) -> None: ...


def put_finite(out: Sink, tensors: dict[str, Tensor], where: Path) -> None:
    """Writes tensors in the dtypes of the file's layout; a number just beyond a dtype's end, as rounding may leave it,
    becomes its last one, and what is far beyond is refused."""
    for name, value in tensors.items():
        dtype = out.layout[name][0]
        if dtype.is_floating_point and value.numel():
            found, limit = ends(value), torch.finfo(dtype).max
            judge(found, partial(_within, name=name, dtype=dtype, where=where))
            if value.is_cuda or found.abs().max() > limit:
                value = value.clamp(-limit, limit)
        out.put(name, value.to(dtype))


def _within(found: list[float], name: str, dtype: torch.dtype, where: Path) -> None:
    most, limit = judged(f"{name} after quantisation", found[0], found[1], where), torch.finfo(dtype).max
    if most > 2 * limit:
        raise InputError(
            f"{where}: {name} after quantisation holds {most:g}, and "
            f"{str(dtype).removeprefix('torch.')} ends at {limit:g}; give the model in bfloat16 or float32"
        )
