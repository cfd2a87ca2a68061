"""AutoAWQ's GEMM layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quant.checkpoints import gemm, stored
from quant.checkpoints.fitting import (
    check_widths,
    deviation,
    dividing,
    fitting_size,
    half_steps,
    in_float16,
    needs,
    regrouped,
    without_packing,
)
from quant.errors import InputError
from quant.files import shards, tensorfile
from quant.files.artifacts import write_plain_json
from quant.recipe import grids
from quant.recipe.grids import Codes, Grid

SIZES = (128, 64, 32)  # groups that AutoAWQ's readers have products for, largest first


def check(config: dict[str, Any], checkpoint: Path, dense: tensorfile.Layout, grids: Mapping[str, Grid]) -> None:
    """Refuses what `awq` would, before a method's checkpoint is there, but for numbers that float16 does not hold.
    checkpoint: the unquantised one, its config and its layout; grids: of linears."""
    check_widths(grids, (4,), "AutoAWQ's layout", checkpoint)
    dividing(grids, {name: dense[f"{name}.weight"][1][1] for name in grids}, SIZES, "AutoAWQ", checkpoint)
    for name in grids:
        dtype, (n_out, _) = dense[f"{name}.weight"]
        check_outputs(name, n_out)
        if dtype == torch.float32:
            raise InputError(
                f"{name} is stored in float32, whose steps are no float16, which AutoAWQ's layout stores; give the "
                "model in float16 or bfloat16"
            )


def check_outputs(name: str, n_out: int) -> None:
    if n_out % 8:
        raise InputError(
            f"{name}: its {n_out} outputs are no multiple of 8, which AutoAWQ's layout needs; export dense"
        )


def awq_linear(name: str, linear: Codes) -> gemm.Packed:
    """One linear in the GEMM layout; a symmetric grid is one with zero 8."""
    check_outputs(name, len(linear.codes))
    offset = 8 if linear.grid.symmetric else 0
    codes = grids.from_groups(linear.codes, linear.n_in) + offset
    return gemm.Packed(
        gemm.pack_int4(codes.T.contiguous()),
        gemm.pack_int4((linear.zero[:, :, 0] + offset).T.contiguous()),
        half_steps(name, linear.step[:, :, 0], "AutoAWQ's layout").T.contiguous(),
    )


def awq_layout(name: str, shape: list[int], size: int) -> tensorfile.Layout:
    """Of `awq_linear` of a linear [out, in] in groups of `size`."""
    n_out, n_in = shape
    groups = grids.n_groups(n_in, size)
    packed = ((torch.int32, (n_in, n_out // 8)), (torch.int32, (groups, n_out // 8)), (torch.float16, (groups, n_out)))
    return {f"{name}.{part}": each for part, each in zip(gemm.Packed._fields, packed, strict=True)}


def embedding_left(name: str) -> str:
    return f"{name} is quantised, which AutoAWQ's layout leaves in 16 bit"


def awq(held: stored.Stored, config: dict[str, Any], target: Path) -> dict[str, Any]:
    """AutoAWQ's GEMM layout, everything else in float16, as its readers take it."""
    needs(held, (4,), "AutoAWQ's layout")
    if held.embedding:
        raise InputError(f"{held.file.path}: {embedding_left(next(iter(held.embedding)))}; export dense or gguf")
    size = fitting_size(held, SIZES, "AutoAWQ")
    others = {
        key: (torch.float16 if dtype.is_floating_point else dtype, shape)
        for key, (dtype, shape) in held.file.layout().items()
        if key.rpartition(".")[0] not in held.packed or key.endswith(".bias")
    }
    layout = dict(others)
    for name in held.packed:
        layout |= awq_layout(name, held.file.get(f"{name}.weight_shape").tolist(), size)
    with shards.writing(target / held.file.path.name, layout, held.file.metadata) as out:
        for name in held.packed:
            parts = awq_linear(name, in_float16(regrouped(held.linear(name), size)))._asdict()
            for part, value in parts.items():
                out.put(f"{name}.{part}", value)
        for key, (dtype, _) in others.items():
            value = held.file.get(key).to(dtype)
            if not torch.isfinite(value).all():
                raise InputError(f"{key}: overflows float16, which AutoAWQ's readers take; export dense")
            out.put(key, value)
    left = {
        key.removesuffix(".weight") for key, (_, shape) in others.items() if len(shape) == 2 if key[-7:] == ".weight"
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
