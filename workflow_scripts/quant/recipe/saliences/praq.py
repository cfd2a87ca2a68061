"""PRAQ's salience: what is heard after the activation."""

import torch
from torch import Tensor

from quant.calibration.channels import Channels

PRAQ_RANGE = (0.1, 10.0)  # where the research maps PRAQ's salience before the search


def praq(w: Tensor, channels: Channels) -> Tensor:
    """Σ_k E|SiLU(z_k)|·|W_kj| on MLP linears, E|x_j| on attention, mapped affinely to [0.1, 10]."""
    raw = channels.act_abs @ w.abs() if channels.is_mlp else channels.x_abs
    low, high = torch.aminmax(raw)
    smallest, largest = PRAQ_RANGE
    mapped = smallest + (raw - low) / (high - low) * (largest - smallest)
    return torch.where(high == low, 1.0, mapped)  # a constant salience scales nothing
