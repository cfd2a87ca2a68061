"""llm-compressor 0.14.0.1: what it takes, and its packed file, which is in the format of our own."""

from pathlib import Path
from typing import Any

from quant.checkpoints import packed
from quant.files.tensorfile import TensorFile
from quant.methods.library_shapes import Shapes
from quant.recipe.grids import Codes, Grid

REASON = "its codes are decoded here, as every library's are"
PACKED = ".weight_packed"  # of a linear's name in the file
CHANGES_OTHERS = False
SPLITS_BATCHES = True  # it sums over them


def check(checkpoint: Path, shapes: Shapes, recipe: dict[str, Any]) -> None:
    """It takes any linear whose inputs are whole groups."""


def read(file: TensorFile, name: str, recipe: dict[str, Any], result: dict[str, Any]) -> Codes:
    """A packed linear; result: what the worker said."""
    return packed.unpack(file, name, Grid(recipe["bits"], recipe["group_size"], recipe["symmetric"]))
