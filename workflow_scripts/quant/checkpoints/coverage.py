"""How much of a model is quantised, and whether there is a product for it."""

from collections.abc import Iterable

import torch

from quant.files.tensorfile import Layout
from quant.records.method import Coverage


def quantized_share(dense: Layout, linears: Iterable[str]) -> Coverage:
    """Of these linears; dense: what the unquantised checkpoint holds."""
    numbers = {name: torch.Size(shape).numel() for name, (_, shape) in dense.items()}
    total = sum(numbers.values())
    return {"quantized_share": sum(numbers[f"{name}.weight"] for name in linears) / total, "parameters": total}


def without_kernels(dense: Layout, linears: Iterable[str], group_size: int) -> str | None:
    """The first linear that Marlin, vLLM's product for packed weights, does not take, and why; None where it takes all:
    inputs in multiples of 128, outputs of 64, groups of 32, 64 or 128 inputs or of a whole row."""
    if group_size not in (-1, 32, 64, 128):
        return f"has no product for groups of {group_size} inputs"
    for name in linears:
        n_out, n_in = dense[f"{name}.weight"][1]
        if n_in % 128 or n_out % 64:
            return f"wants inputs in multiples of 128 and outputs of 64, where {name} has {n_in} and {n_out}"
    return None
