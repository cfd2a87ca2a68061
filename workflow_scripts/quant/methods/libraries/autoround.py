"""AutoRound 0.16.1: what it takes, and its packed file, whose layout it chooses by bits and symmetry."""

from pathlib import Path
from typing import Any

from quant.checkpoints import gemm, gptq_layout
from quant.errors import InputError
from quant.files.tensorfile import TensorFile
from quant.methods.library_shapes import Shapes, no_multiple
from quant.recipe.grids import Codes, Grid

REASON = "AutoRound's own layouts are for its own kernels, so its codes are decoded here"
PACKED = ".qweight"  # of a linear's name in the file
CHANGES_OTHERS = False
SPLITS_BATCHES = False  # a step is taken after `batch` sequences

PACKED_TOGETHER = 32  # inputs, and outputs: a linear of other sizes stays in 16 bit
# its names of the layouts, and what its zeros are short of in the file
GEMM, ZEROS_LESS = "auto_round:auto_awq", {"auto_round": 0, "auto_round:auto_gptq": 1}


def check(checkpoint: Path, shapes: Shapes, recipe: dict[str, Any]) -> None:
    """Refuses linears that AutoRound would leave in 16 bit."""
    for name, (n_out, n_in) in shapes.items():
        for size, what in ((n_out, "outputs"), (n_in, "inputs")):
            if size % PACKED_TOGETHER:
                raise no_multiple(name, f"{size} {what}", PACKED_TOGETHER, "AutoRound's packing", "autoround")


def read(file: TensorFile, name: str, recipe: dict[str, Any], result: dict[str, Any]) -> Codes:
    """A packed linear; result: what the worker said, the layout among it."""
    grid = Grid(recipe["bits"], recipe["group_size"], recipe["symmetric"])
    if result["layout"] == GEMM:
        return gemm.read(file, name).unpack()
    if result["layout"] not in ZEROS_LESS:
        raise InputError(f"{file.path}: AutoRound wrote the layout {result['layout']!r}, which is not read here")
    return gptq_layout.read(file, name, grid, ZEROS_LESS[result["layout"]])
