"""What makes an input channel important: one pure function per salience, and the table that names them.

Each takes the weight [out, in] and the linear's per-channel statistics and returns [in], ≥ 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quant.calibration.channels import Channels

PRAQ_RANGE = (0.1, 10.0)  # where the research maps PRAQ's salience before the search


def l1(w: Tensor, channels: Channels) -> Tensor:
    """E|x_j| (AWQ)."""
    return channels.x_abs


def l2(w: Tensor, channels: Channels) -> Tensor:
    """E[x_j²]."""
    return channels.x_sq


def praq(w: Tensor, channels: Channels) -> Tensor:
    """Σ_k E|SiLU(z_k)|·|W_kj| on MLP linears, E|x_j| on attention, mapped affinely to [0.1, 10]."""
    raw = channels.act_abs @ w.abs() if channels.is_mlp else channels.x_abs
    low, high = torch.aminmax(raw)
    if high == low:  # a constant salience scales nothing
        return torch.ones_like(raw)
    smallest, largest = PRAQ_RANGE
    return smallest + (raw - low) / (high - low) * (largest - smallest)


SALIENCES: dict[str, Callable[[Tensor, Channels], Tensor] | None] = {"none": None, "l1": l1, "l2": l2, "praq": praq}
