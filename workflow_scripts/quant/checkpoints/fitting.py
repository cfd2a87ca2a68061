"""What formats ask of a checkpoint: its widths, the size of its groups, steps that float16 holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.checkpoints import stored
from quant.errors import InputError
from quant.recipe import grids
from quant.recipe.grids import Codes, Grid


def regrouped(linear: Codes, size: int) -> Codes:
    """The same weights in smaller groups, each with the step and zero of the group that it was part of."""
    parts = linear.codes.shape[2] // size
    codes = linear.codes.reshape(len(linear.codes), -1, size)
    step, zero = (t.repeat_interleave(parts, 1) for t in (linear.step, linear.zero))
    return Codes(codes, step, zero, linear.grid._replace(group_size=size), linear.n_in)


def needs(held: stored.Stored, bits: tuple[int, ...], what: str) -> None:
    """Refuses a checkpoint that is not packed in these widths."""
    if not held.packed:
        reason = "its weights are simulated (storage_reason in quantize.json says why)"
        raise InputError(
            f"{held.file.path}: {reason}, and {what} stores codes; export a method whose storage is packed"
        )
    check_widths(held.packed, bits, what, held.file.path)


def check_widths(grids: Mapping[str, Grid], bits: tuple[int, ...], what: str, where: Path) -> None:
    """Refuses linears that are not on grids of these widths."""
    for name, grid in sorted(grids.items()):
        if not grid.in_words:
            raise InputError(
                f"{where}: {name} is in {grid.format}, and {what} holds words of codes; export dense, or another method"
            )
        if grid.bits not in bits:
            raise InputError(
                f"{where}: {name} has {grid.bits} bits, and {what} holds {' or '.join(map(str, bits))}; export another "
                "method"
            )


def fitting_size(held: stored.Stored, sizes: tuple[int, ...], what: str) -> int:
    """The largest of the sizes that divides every group, by which a linear's groups can be cut."""
    widths = {name: held.shape(name)[1] for name in held.packed}
    widths |= {name: held.file.layout()[f"{name}.weight"][1][1] for name in held.embedding}
    return dividing(held.packed | held.embedding, widths, sizes, what, held.file.path)


def dividing(
    grids: Mapping[str, Grid], widths: Mapping[str, int], sizes: tuple[int, ...], what: str, where: Path
) -> int:
    """The largest of the sizes that divides every group of linears with so many inputs."""
    found = {name: n_in if (own := grids[name].group_size) == -1 else own for name, n_in in widths.items()}
    for size in sizes:
        if all(group % size == 0 for group in found.values()):
            return size
    name = next(name for name, group in found.items() if group % sizes[-1])
    raise undivided(f"{where}: {name}", found[name], widths[name], sizes[-1], what)


def undivided(linear: str, group: int, n_in: int, size: int, what: str) -> InputError:
    """Says that a format's `size` divides a linear's groups, or all of its inputs, not, and what helps."""
    if n_in % size:
        return InputError(f"{linear} has {n_in} inputs, which {what}'s {size} does not divide; export dense")
    return InputError(
        f"{linear} has groups of {group} inputs, which {what}'s {size} does not divide; use a group_size that is a "
        f"multiple of {size}"
    )


def half_steps(name: str, step: Tensor, what: str) -> Tensor:
    """Steps in float16, refused where that rounds them."""
    half = step.half()
    if not torch.equal(half.float(), step):
        raise InputError(
            f"{name}: a step of {step[half.float() != step][0].item():g} is no float16, which {what} stores; export "
            "dense, or quantise a float16 model"
        )
    return half


def in_float16(linear: Codes) -> Codes:
    """A linear whose steps below float16's normal numbers are the next larger of those it has, with codes for them: its
    weights are next to nothing, and stay within half such a step of what they were."""
    kind = torch.finfo(torch.float16)
    unit = kind.smallest_normal * kind.eps
    size = linear.step.abs()
    step = torch.where(
        size < kind.smallest_normal, torch.copysign((size / unit).ceil() * unit, linear.step), linear.step
    )
    if torch.equal(step, linear.step):
        return linear
    codes = grids.encode(grids.decode(linear.codes, linear.step, linear.zero), step, linear.zero, linear.grid)
    return linear._replace(codes=codes, step=step)


def without_packing(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def deviation(w: Tensor, linear: Codes) -> float:
    """Largest |w - ŵ| in steps, or in float16's smallest normal number where a step is less; w [out, in]."""
    difference = grids.to_groups(w - linear.dequantize(), linear.grid.group_size)
    step = linear.step.abs().clamp_(min=torch.finfo(torch.float16).smallest_normal)
    return float((difference / step).abs().max())
