"""A method's checkpoint read back: the dense weight of each linear, however it is stored."""

import contextlib
from collections.abc import Iterator
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

    def weight(self, name: str, device: str = "cpu") -> Tensor:
        """[out, in], float32."""
        if name in self.packed:
            return self.linear(name, device).dequantize()
        return self.file.get(f"{name}.weight", device, torch.float32)


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
