"""A method's checkpoint read back: the dense weight of each linear and of the embedding, however it is stored."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from quant.checkpoints import embedding_codes, packed
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import read_json, require
from quant.recipe.grids import Grid


class Stored:
    """model.safetensors of a checkpoint directory; packed: the grid of each packed linear, none where all is dense;
    embedding: that of an embedding whose codes it holds."""

    def __init__(
        self, file: tensorfile.TensorFile, grids: dict[str, Grid], embedding: dict[str, Grid] | None = None
    ) -> None:
        self.file, self.packed, self.embedding = file, grids, embedding or {}

    def linear(self, name: str, device: str = "cpu") -> packed.Codes:
        """Codes, step and zero of a packed linear, or of an embedding."""
        if name in self.embedding:
            return embedding_codes.unpack(self.file, name, self.embedding[name], device)
        if name not in self.packed:
            raise InputError(f"{self.file.path}: {name} is not packed; use a method whose storage is packed")
        return packed.unpack(self.file, name, self.packed[name], device)

    def count(self) -> int:
        """Weights in it, packed ones as many as they stand for."""
        held = {name: torch.Size(shape).numel() for name, (_, shape) in self.file.layout().items()}
        held |= dict.fromkeys(self.steps, 0)
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

    @property
    def steps(self) -> set[str]:
        """The tensors of an embedding's steps, a tied head's among them."""
        rest = {key for key in self.file.names if key.endswith(".weight_scale")} if self.embedding else set()
        return {key for key in rest if key.removesuffix(".weight_scale") not in self.packed}

    def weight(self, name: str, device: str = "cpu") -> Tensor:
        """[out, in], float32."""
        if name in self.packed or name in self.embedding:
            return self.linear(name, device).dequantize()
        return self.file.get(f"{name}.weight", device, torch.float32)


class Unfolded:
    """Linears' weights that act on the original's inputs and outputs: without the scales, `folds`, that a recipe moved
    into other operations."""

    def __init__(self, weights: Stored, folds: tensorfile.TensorFile) -> None:
        self.file, self._weights, self._folds = weights.file, weights, folds

    def weight(self, name: str, device: str = "cpu") -> Tensor:
        """[out, in], float32."""
        w = self._weights.weight(name, device)
        for side, shape in (("input", (1, -1)), ("output", (-1, 1))):
            if f"{name}.{side}" in self._folds.names:
                w = w / self._folds.get(f"{name}.{side}", device).view(shape)
        return w


class Dense:
    """The same by the names of the original's tensors, as a pass through its blocks asks for them."""

    def __init__(self, weights: Stored) -> None:
        self.path, self._weights = weights.file.path, weights
        self._parts = packed.by_linear(weights.file.layout(), weights.packed)
        hidden = {key for parts in self._parts.values() for key in parts} | weights.steps
        self.names = (weights.file.names - hidden) | {f"{name}.weight" for name in weights.packed}

    def get(self, name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and (linear in self._weights.packed or linear in self._weights.embedding):
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
    linears, embedding = embedding_codes.without_group(read_json(config))
    grids = packed.grids_of(linears, str(config))
    with tensorfile.opened(checkpoint / "model.safetensors") as file:
        if model_fingerprint is not None:
            require(file.path, file.info("provenance"), model_fingerprint=model_fingerprint)
        own = embedding_codes.check(file, embedding, grids, str(config))
        yield Stored(file, packed.check(file, grids, str(config), own), own)


def check(checkpoint: Path) -> None:
    """Refuses a checkpoint whose weights are not what its config.json says."""
    with opened(checkpoint):
        pass
