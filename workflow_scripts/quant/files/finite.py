"""Numbers that a file may hold: none that is NaN or infinite, none beyond its type's end."""

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import Layout


def largest(tensor: Tensor) -> float:
    """max |t|, in one wait for the device and without a copy; NaN where there is one."""
    low, high = torch.stack([tensor.amin(), tensor.amax()]).tolist()
    return max(-low, high)


def check_finite(name: str, tensor: Tensor, where: str) -> float:
    """Refuses NaN and infinities by the tensor's name. Returns max |t|."""
    found = largest(tensor) if tensor.numel() else 0.0
    if not math.isfinite(found):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(f"{where}: {name} holds {bad} NaN or infinite values; use a model whose weights are finite")
    return found


class Sink(Protocol):
    """What takes tensors: a Writer, or one of several files."""

    layout: Layout

    def put(self, name: str, tensor: Tensor) -> None: ...


def put_finite(out: Sink, tensors: dict[str, Tensor], where: Path) -> None:
    """Writes tensors in the dtypes of the file's layout; a number just beyond a dtype's end, as rounding may leave it,
    becomes its last one, and what is far beyond is refused."""
    for name, value in tensors.items():
        dtype = out.layout[name][0]
        if dtype.is_floating_point:
            limit, most = torch.finfo(dtype).max, check_finite(f"{name} after quantisation", value, str(where))
            if most > 2 * limit:
                raise InputError(
                    f"{where}: {name} after quantisation holds {most:g}, and "
                    f"{str(dtype).removeprefix('torch.')} ends at {limit:g}; give the model in bfloat16 or float32"
                )
            value = value.clamp(-limit, limit) if most > limit else value
        out.put(name, value.to(dtype))
