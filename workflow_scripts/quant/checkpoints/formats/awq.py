"""AutoAWQ's GEMM layout."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints import gemm, stored
from quant.checkpoints.fitting import (
    deviation,
    fitting_size,
    half_steps,
    in_float16,
    needs,
    regrouped,
    without_packing,
)
from quant.errors import InputError
from quant.files import tensorfile
from quant.files.artifacts import write_plain_json
from quant.recipe import grids
from quant.recipe.grids import Codes

SIZES = (128, 64, 32)  # groups that AutoAWQ's readers have products for, largest first


def awq_linear(name: str, linear: Codes) -> gemm.Packed:
    """One linear in the GEMM layout; a symmetric grid is one with zero 8."""
    if len(linear.codes) % 8:
        raise InputError(
            f"{name}: its {len(linear.codes)} outputs are no multiple of 8, which AutoAWQ's layout needs; export dense"
        )
    offset = 8 if linear.grid.symmetric else 0
    codes = grids.from_groups(linear.codes, linear.n_in) + offset
    return gemm.Packed(
        gemm.pack_int4(codes.T.contiguous()),
        gemm.pack_int4((linear.zero[:, :, 0] + offset).T.contiguous()),
        half_steps(name, linear.step[:, :, 0], "AutoAWQ's layout").T.contiguous(),
    )


def awq(held: stored.Stored, config: dict[str, Any], target: Path) -> dict[str, Any]:
    """AutoAWQ's GEMM layout, everything else in float16, as its readers take it."""
    needs(held, (4,), "AutoAWQ's layout")
    size = fitting_size(held, SIZES, "AutoAWQ")
    tensors: dict[str, Tensor] = {}
    for name in held.packed:
        parts = awq_linear(name, in_float16(regrouped(held.linear(name), size)))._asdict()
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    for key in held.file.names:
        if key.rpartition(".")[0] not in held.packed or key.endswith(".bias"):
            value = held.file.get(key)
            tensors[key] = value.half() if value.is_floating_point() else value
            if not torch.isfinite(tensors[key]).all():
                raise InputError(f"{key}: overflows float16, which AutoAWQ's readers take; export dense")
    tensorfile.save(target / "model.safetensors", tensors, held.file.metadata)
    left = {
        key.removesuffix(".weight") for key, value in tensors.items() if value.ndim == 2 and key.endswith(".weight")
    }
    quantization = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    quantization["modules_to_not_convert"] = sorted(held.file.naming.both({"lm_head"} | left))
    changed = {"dtype": "float16", "quantization_config": quantization}
    write_plain_json(target / "config.json", without_packing(config) | changed)
    worst = 0.0
    with tensorfile.opened(target / "model.safetensors") as file:
        for name, read in gemm.read_packed(file, dict.fromkeys(held.packed, 0)).items():
            worst = max(worst, deviation(read.unpack().dequantize(), held.linear(name)))
    return {"group_size": size, "largest_deviation": worst}
