"""AutoAWQ 0.2.9: what it takes, and its packed file."""

from pathlib import Path
from typing import Any

from quant.checkpoints import gemm
from quant.errors import InputError
from quant.files.artifacts import read_json
from quant.files.tensorfile import TensorFile
from quant.methods.library_shapes import Shapes, no_multiple
from quant.recipe.grids import Codes

REASON = "AutoAWQ's own layout needs a GPU to run, so its codes are decoded here"
PACKED = ".qweight"  # of a linear's name in the file
CHANGES_OTHERS = True  # scales are folded into norms, biases and other linears
SPLITS_BATCHES = True  # so many sequences in a forward pass as memory holds: it sums over them

# each tried: their scales fold into norms and linears alone; others get modules that plain transformers does not load
MODEL_TYPES = ("llama", "granite", "mistral", "qwen2", "qwen3", "gemma", "phi3")
NOT_CLIPPED = ("q_", "k_")  # in a linear's name; the library's own list, as far as these models have such names
CLIP_ROWS = 64  # its clipping goes through so many output channels at a time
PACK_ROWS = 32  # its packing counts its int32 columns as out // 32 · 4


def check(checkpoint: Path, shapes: Shapes, recipe: dict[str, Any]) -> None:
    """Refuses what AutoAWQ would end on with an assertion: an architecture or shapes that it does not take."""
    config = read_json(checkpoint / "config.json")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise InputError(
            f"{checkpoint}: AutoAWQ's scales fold away for model_type {', '.join(MODEL_TYPES)}, not {kind!r}; leave "
            "autoawq out of study.methods for this model"
        )
    if any(isinstance(value, dict) for value in (config.get("rope_parameters") or {}).values()):
        raise InputError(
            f"{checkpoint}: its rope_parameters differ by layer, which the transformers of AutoAWQ cannot say; leave "
            "autoawq out of study.methods for this model"
        )
    for name, (n_out, _) in shapes.items():
        clipped = recipe["clip"] and not any(part in name for part in NOT_CLIPPED)
        multiple = CLIP_ROWS if clipped else PACK_ROWS
        if n_out % multiple:
            raise no_multiple(name, f"{n_out} outputs", multiple, f"AutoAWQ's {'clipping' if clipped else 'packing'}",
                              "autoawq")  # fmt: skip


def read(file: TensorFile, name: str, recipe: dict[str, Any], result: dict[str, Any]) -> Codes:
    """A packed linear; result: what the worker said."""
    return gemm.read(file, name).unpack()
