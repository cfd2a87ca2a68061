"""How much of a model is quantised."""

from collections.abc import Iterable

import torch

from quant.files.tensorfile import Layout
from quant.records.method import Coverage


def quantized_share(dense: Layout, linears: Iterable[str]) -> Coverage:
    """Of these linears; dense: what the unquantised checkpoint holds."""
    numbers = {name: torch.Size(shape).numel() for name, (_, shape) in dense.items()}
    total = sum(numbers.values())
    return {"quantized_share": sum(numbers[f"{name}.weight"] for name in linears) / total, "parameters": total}
