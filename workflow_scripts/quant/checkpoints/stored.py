"""A method's checkpoint read back: the dense weight of each linear, however it is stored."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from quant.checkpoints import packed
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import read_json, require
from quant.recipe.grids import Grid


class Stored:
    """model.safetensors of a checkpoint directory; packed: the grid of each packed linear, none where all is dense."""

    def __init__(self, file: tensorfile.TensorFile, grids: dict[str, Grid]) -> None:
        self.file, self.packed = file, grids

    def linear(self, name: str, device: str = "cpu") -> packed.Codes:
        """Codes, step and zero of a packed linear."""
        if name not in self.packed:
            raise InputError(f"{self.file.path}: {name} is not packed; use a method whose storage is packed")
        return packed.unpack(self.file, name, self.packed[name], device)

    def count(self) -> int:
        """Weights in it, packed ones as many as they stand for."""
        held = {name: torch.Size(shape).numel() for name, (_, shape) in self.file.layout().items()}
        parts = packed.by_linear(self.file.layout(), self.packed)
        total = sum(held.values()) - sum(held[key] for of in parts.values() for key in of)
        stands = {
            name: held[f"{name}.weight_packed"] * (32 // grid.bits) if grid.in_words else math.prod(self.shape(name))
            for name, grid in self.packed.items()
        }
        return total + sum(stands.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """[out, in] of a packed linear."""
        return packed.shape_of(self.file, name, self.packed[name])

    def weight(self, name: str, device: str = "cpu") -> Tensor:
        """[out, in], float32."""
        if name in self.packed:
            return self.linear(name, device).dequantize()
        return self.file.get(f"{name}.weight", device, torch.float32)


class Dense:
    """The same by the names of the original's tensors, as a pass through its blocks asks for them."""

    def __init__(self, weights: Stored) -> None:
        self.path, self._weights = weights.file.path, weights
        self._parts = packed.by_linear(weights.file.layout(), weights.packed)
        hidden = {key for parts in self._parts.values() for key in parts}
        self.names = (weights.file.names - hidden) | {f"{name}.weight" for name in weights.packed}

    def get(self, name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and linear in self._weights.packed:
            return self._weights.weight(linear, device).to(dtype or torch.float32)
        return self._weights.file.get(name, device, dtype)

    def prefetch(self, names: Iterable[str], device: str) -> None:
        linears = [(name, name.removesuffix(".weight")) for name in names]
        self._weights.file.prefetch((key for n, linear in linears for key in self._parts.get(linear, [n])), device)


@contextlib.contextmanager
def dense(checkpoint: Path) -> Iterator[Dense]:
    """A checkpoint's dense weights, however they are stored."""
    with opened(checkpoint) as weights:
        yield Dense(weights)


@contextlib.contextmanager
def opened(checkpoint: Path, model_fingerprint: str | None = None) -> Iterator[Stored]:
    """A checkpoint directory whose weights are what its config.json says; refuses one of another model by name."""
    config = checkpoint / "config.json"
    grids = packed.grids_of(read_json(config), str(config))
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        if model_fingerprint is not None:
            require(file.path, file.info("provenance"), model_fingerprint=model_fingerprint)
        yield Stored(file, packed.check(file, grids, str(config)))


def check(checkpoint: Path) -> None:
    """Refuses a checkpoint whose weights are not what its config.json says."""
    with opened(checkpoint):
        pass
