"""Which output channels stay in 16 bit, given their scores."""

import torch
from torch import Tensor


def top(score: Tensor, keep_ratio: float) -> Tensor:
    """Mask [out] of the round(keep_ratio·out) highest scores; the lower index on a tie."""
    order = torch.argsort(score, descending=True, stable=True)
    mask = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    mask[order[: round(keep_ratio * len(score))]] = True
    return mask
