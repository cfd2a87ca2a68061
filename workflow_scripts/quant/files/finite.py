"""Numbers that a file may hold: none that is NaN or infinite, none beyond its type's end."""

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.tensorfile import Layout


def ends(tensor: Tensor) -> Tensor:
    """Least and greatest [2]; NaN where there is one."""
    return torch.stack([tensor.amin(), tensor.amax()])  # apart, without a copy of it


def judged(name: str, low: float, high: float, where: str | Path) -> float:
    """The larger end, of a tensor that is refused where it is none."""
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(f"{where}: {name} holds NaN or infinite values; use a model whose weights are finite")
    return max(-low, high)


class Sink(Protocol):
    """What takes tensors: a Writer, or one of several files."""

    layout: Layout

    def put(self, name: str, tensor: Tensor) -> None: ...


class Ends:
    """Puts tensors into a file in the dtypes of its layout; a number just beyond a dtype's end, as rounding may leave
    it, becomes its last one, and what is far beyond, or none, is refused, of a GPU's tensors by `settle`: it is waited
    for once for many of them."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._seen: list[tuple[str, torch.dtype, Tensor]] = []

    def put(self, out: Sink, tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            dtype = out.layout[name][0]
            if dtype.is_floating_point and value.numel():
                self._seen.append((name, dtype, ends(value)))
                limit = torch.finfo(dtype).max
                if value.is_cuda or self.settle() > limit:
                    value = value.clamp(-limit, limit)
            out.put(name, value.to(dtype))

    def settle(self) -> float:
        """Looks at what was put. Returns its largest number."""
        seen, self._seen = self._seen, []
        found = torch.stack([own.double() for *_, own in seen]).tolist() if seen else []
        most = 0.0
        for (name, dtype, _), (low, high) in zip(seen, found, strict=True):
            own, limit = judged(f"{name} after quantisation", low, high, self._where), torch.finfo(dtype).max
            if own > 2 * limit:
                raise InputError(
                    f"{self._where}: {name} after quantisation holds {own:g}, and "
                    f"{str(dtype).removeprefix('torch.')} ends at {limit:g}; give the model in bfloat16 or float32"
                )
            most = max(most, own)
        return most


def put_finite(out: Sink, tensors: dict[str, Tensor], where: Path) -> None:
    """`Ends` of these alone."""
    written = Ends(where)
    written.put(out, tensors)
    written.settle()
