"""Dense weights, which everything reads."""

from pathlib import Path
from typing import Any

import torch

from quant.checkpoints import stored
from quant.checkpoints.fitting import deviation, without_packing
from quant.files import shards, tensorfile
from quant.files.artifacts import write_plain_json


def dense_type(held: stored.Stored) -> torch.dtype:
    """The model's own: bfloat16 would round what float16 holds."""
    before = held.file.layout()
    matrices = [dtype for dtype, shape in before.values() if len(shape) == 2]
    scales = [before[f"{name}.weight_scale"][0] for name, grid in held.packed.items() if grid.in_words]
    return (scales or [each for each in matrices if each.is_floating_point and each.itemsize > 1])[0]


def dense(held: stored.Stored, config: dict[str, Any], target: Path) -> dict[str, Any]:
    """model.safetensors in the model's own type."""
    before, dtype = held.file.layout(), dense_type(held)
    shapes = {f"{name}.weight": held.shape(name) for name in held.packed}
    shapes |= {f"{name}.weight": before[f"{name}.weight"][1] for name in held.embedding}
    layout = {key: value for key, value in before.items() if key.rpartition(".")[0] not in held.packed}
    layout = {key: value for key, value in layout.items() if not key.endswith(".weight_scale")}
    layout |= {key: value for key, value in before.items() if key.endswith(".bias")}
    layout |= {key: (dtype, shape) for key, shape in shapes.items()}
    with shards.writing(target / held.file.path.name, layout, held.file.metadata) as out:
        for key in layout:
            name = key.removesuffix(".weight")
            out.put(key, held.weight(name).to(dtype) if key in shapes else held.file.get(key))
    write_plain_json(target / "config.json", without_packing(config))
    worst = 0.0
    with tensorfile.opened(target / "model.safetensors") as file:
        for name in (*held.packed, *held.embedding):
            worst = max(worst, deviation(file.get(f"{name}.weight", dtype=torch.float32), held.linear(name)))
    return {"dtype": str(dtype).removeprefix("torch."), "largest_deviation": worst}
