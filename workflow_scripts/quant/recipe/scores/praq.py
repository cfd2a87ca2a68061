"""PRAQ's score of an output channel: by its risk of passing the activation."""

import torch
from torch import Tensor

from quant.calibration.channels import Channels

BLOCK_ROWS = 32


def praq_score(w: Tensor, channels: Channels, beta: float, tau: float, noise_factor: float) -> Tensor:
    """Fast-R-PRAQ v3 (docs/methods.md, Protection): P·(E|z|+std z), P = sigmoid(beta·(E z + 3·std z + noise - tau))."""
    noise = channels.x_abs.mean() * w.abs().mean(1) * noise_factor
    risk = torch.sigmoid(beta * (channels.z_mean + 3 * channels.z_std + noise - tau))
    return risk * (channels.z_abs + channels.z_std)


def sum_blocks(score: Tensor) -> Tensor:
    """Each row's score replaced by the sum over its block of 32 rows, where 32 divides their number."""
    if len(score) % BLOCK_ROWS:
        return score
    return score.view(-1, BLOCK_ROWS).sum(1).repeat_interleave(BLOCK_ROWS)


def praq(w: Tensor, channels: Channels, *, beta: float, tau: float, noise_factor: float) -> Tensor:
    """Fast-R-PRAQ v3 in blocks of 32 rows on MLP linears, AWQ's score on attention. [out]"""
    return sum_blocks(praq_score(w, channels, beta, tau, noise_factor)) if channels.is_mlp else channels.z_abs
