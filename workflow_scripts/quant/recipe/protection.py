"""Which output channels to keep in 16 bit: one score per table entry, [out], higher is kept first."""

from collections.abc import Callable

import torch
from torch import Tensor

from quant.calibration.channels import Channels

BLOCK_ROWS = 32


def awq_score(w: Tensor, channels: Channels, **_: float) -> Tensor:
    """E|z_k|."""
    return channels.z_abs


def praq_score(w: Tensor, channels: Channels, beta: float, tau: float, noise_factor: float) -> Tensor:
    """Fast-R-PRAQ v3 (docs/methods.md, Protection): P·(E|z|+std z), P = sigmoid(beta·(E z + 3·std z + noise - tau))."""
    noise = channels.x_abs.mean() * w.abs().mean(1) * noise_factor
    risk = torch.sigmoid(beta * (channels.z_mean + 3 * channels.z_std + noise - tau))
    return risk * (channels.z_abs + channels.z_std)


def hybrid_score(w: Tensor, channels: Channels, **parameters: float) -> Tensor:
    """Fast-R-PRAQ v3 in blocks of 32 rows on MLP linears, AWQ's score on attention."""
    return sum_blocks(praq_score(w, channels, **parameters)) if channels.is_mlp else awq_score(w, channels)


def sum_blocks(score: Tensor) -> Tensor:
    """Each row's score replaced by the sum over its block of 32 rows, where 32 divides their number."""
    if len(score) % BLOCK_ROWS:
        return score
    return score.view(-1, BLOCK_ROWS).sum(1).repeat_interleave(BLOCK_ROWS)


def top(score: Tensor, keep_ratio: float) -> Tensor:
    """Mask [out] of the round(keep_ratio·out) highest scores; the lower index on a tie."""
    order = torch.argsort(score, descending=True, stable=True)
    mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    mask[order[: round(keep_ratio * len(score))]] = True
    return mask


SCORES: dict[str, Callable[..., Tensor] | None] = {"none": None, "awq": awq_score, "praq": hybrid_score}
