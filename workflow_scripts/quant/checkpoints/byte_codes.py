"""Linears whose codes are bytes, as compressed-tensors stores them and vLLM and transformers load them.

nvfp4 (nvfp4-pack-quantized): weight_packed uint8 [out, in/2], two E2M1 codes a byte, the first in its lower bits;
weight_scale E4M3 [out, in/16]; weight_global_scale float32 [1], what steps were multiplied with. mxfp4
(mxfp4-pack-quantized): the same without it, weight_scale uint8 [out, in/32], exponents of 2 above -127. fp8 and int8
(float-quantized, int-quantized): weight E4M3 or int8 [out, in], weight_scale in the model's own dtype [out, 1], or
[out/128, in/128] of blocks. The library unpacks E2M1 to bfloat16 whatever the model's dtype, so that a model with such
linears is stored in it; codes times steps are exact there, since steps have four digits at most.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.checkpoints.library_code import helpers
from quant.files.tensorfile import Layout, TensorFile
from quant.recipe import grids
from quant.recipe.formats import NAMES
from quant.recipe.grids import Codes, Grid
from quant.recipe.numbers import E2M1

if TYPE_CHECKING:
    import compressed_tensors  # noqa: F401  (so that its version counts as any import's)

BYTES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "iq4_nl": torch.int8}  # of one code each
FP4 = ("nvfp4", "mxfp4")
UNPACKED = torch.bfloat16  # what E2M1 becomes
BIAS = 127  # of a power of two's exponent


def why_not(grid: Grid, n_out: int, n_in: int) -> str | None:
    """Why no reader takes a linear [out, in] on this grid; None where one does."""
    if grid.format not in NAMES:
        return f"no reader of packed checkpoints takes {grid.format}"
    if grid.rows > 1 and (n_out % grid.rows or n_in % grid.group_size):
        return f"blocks of {grid.rows} by {grid.group_size} do not divide {n_out} outputs and {n_in} inputs"
    # the library tells how steps lie by their shape, and takes one column of them for one of channels
    if grid.rows > 1 and n_in == grid.group_size and n_out > grid.rows:
        return f"blocks of {grid.rows} by {grid.group_size} in one column are read as channels"
    return None


def scales_of(n_out: int, n_in: int, grid: Grid) -> tuple[int, int]:
    """Shape of weight_scale."""
    return -(-n_out // grid.rows), grids.n_groups(n_in, grid.group_size)


def layout_of(name: str, shape: tuple[int, ...], dtype: torch.dtype, grid: Grid) -> Layout:
    """Every tensor of a linear; dtype: the model's."""
    n_out, n_in = shape
    scales = scales_of(n_out, n_in, grid)
    if grid.format in BYTES:
        return {f"{name}.weight": (BYTES[grid.format], (n_out, n_in)), f"{name}.weight_scale": (dtype, scales)}
    of_steps = torch.float8_e4m3fn if grid.format == "nvfp4" else torch.uint8
    parts: Layout = {
        f"{name}.weight_packed": (torch.uint8, (n_out, n_in // 2)),
        f"{name}.weight_scale": (of_steps, scales),
    }
    return parts | ({f"{name}.weight_global_scale": (torch.float32, (1,))} if grid.format == "nvfp4" else {})


def in_model_dtype(layout: Layout, formats: Collection[str]) -> Layout:
    """A checkpoint's layout, its floats in bfloat16 where linears are E2M1."""
    if not any(name in FP4 for name in formats):
        return layout
    return {
        key: (UNPACKED if dtype.is_floating_point and dtype.itemsize > 1 else dtype, shape)
        for key, (dtype, shape) in layout.items()
    }


def config_of(formats: Collection[str]) -> dict[str, str]:
    """What config.json says of the model's dtype."""
    return {"dtype": str(UNPACKED).removeprefix("torch.")} if any(name in FP4 for name in formats) else {}


def pack(name: str, linear: Codes) -> dict[str, Tensor]:
    """A linear's tensors in the file, for the writer to cast."""
    codes, scale = grids.from_groups(linear.codes, linear.n_in), {f"{name}.weight_scale": scales(linear)}
    if linear.grid.format in BYTES:
        return {f"{name}.weight": codes} | scale
    parts = {f"{name}.weight_packed": helpers("nvfp4").pack_fp4_to_uint8(codes.contiguous())} | scale
    if linear.grid.format == "nvfp4":
        parts[f"{name}.weight_global_scale"] = torch.tensor([linear.unit])
    return parts


def scales(linear: Codes) -> Tensor:
    """weight_scale."""
    step = linear.step[:, :, 0]
    if linear.grid.format == "nvfp4":
        return step * linear.unit
    if linear.grid.format == "mxfp4":
        return (torch.frexp(step).exponent + (BIAS - 1)).to(torch.uint8)
    return step[:: linear.grid.rows]


def shape_of(file: TensorFile, name: str) -> tuple[int, int]:
    """[out, in] of a linear."""
    held = file.layout()
    if (packed := held.get(f"{name}.weight_packed")) is not None:
        return packed[1][0], 2 * packed[1][1]
    n_out, n_in = held[f"{name}.weight"][1]
    return n_out, n_in


def unpack(file: TensorFile, name: str, grid: Grid, device: str = "cpu") -> Codes:
    """A linear of a file, float32."""
    n_out, n_in = shape_of(file, name)
    unit = 1.0
    if grid.format in BYTES:
        codes = file.get(f"{name}.weight", device, torch.float32)
        step = grids.to_rows(file.get(f"{name}.weight_scale", device, torch.float32), grid, n_out)
    else:
        packed = file.get(f"{name}.weight_packed", device)
        places = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1).long()
        values = torch.tensor(E2M1[len(E2M1) // 2 :], device=device)
        codes = torch.where(places < 8, 1.0, -1.0) * values[places & 7]
        step = file.get(f"{name}.weight_scale", device)
        if grid.format == "mxfp4":
            step = torch.exp2(step.float() - BIAS)
        else:
            unit = file.get(f"{name}.weight_global_scale").item()
            step = step.float() / unit
    step = step[:, :, None]
    return Codes(grids.to_groups(codes, grid.group_size), step, torch.zeros_like(step), grid, n_in, unit)


def weights_of(grid: Grid) -> dict[str, Any]:
    """A grid as a config group has it."""
    if grid.format == "iq4_nl":  # its values are whole numbers of 8 bits
        return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    kind = "int" if grid.format == "int8" else "float"
    weights: dict[str, Any] = {"num_bits": grid.bits, "type": kind, "symmetric": True}
    if grid.format == "nvfp4":
        return weights | {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
    if grid.format == "mxfp4":
        return weights | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    if grid.rows > 1:
        return weights | {"strategy": "block", "block_structure": [grid.rows, grid.group_size]}
    return weights | {"strategy": "channel"}


def inputs_of(grid: Grid) -> dict[str, Any]:
    """Inputs rounded to a format of a byte as they run, as a config group has them: by token, or by 128 inputs of one
    where weights have blocks."""
    kind = "int" if grid.format == "int8" else "float"
    by = {"strategy": "token"} if grid.rows == 1 else {"strategy": "group", "group_size": grid.group_size}
    return {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": True} | by


def rounds_inputs(config: dict[str, Any]) -> bool:
    """Whether a config.json has readers round inputs."""
    groups = config.get("quantization_config", {}).get("config_groups") or {}
    return any(group.get("input_activations") for group in groups.values())


def of_bytes(layout: Layout) -> set[str]:
    """The linears whose weights are bytes of one code each."""
    found = {key.removesuffix(".weight") for key, (dtype, _) in layout.items() if dtype in BYTES.values()}
    return {name for name in found if f"{name}.weight_scale" in layout}


def grid_of(weights: dict[str, Any]) -> Grid:
    """The grid that a config group names; KeyError where it is none of ours."""
    for grid in grids.of_formats(NAMES):
        if weights_of(grid).items() <= weights.items():
            return grid
    raise KeyError("weights")
