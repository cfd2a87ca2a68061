"""KL(original ‖ quantised) of logits with its gradient, a few rows at a time: nothing as large as the logits is made
but the gradient, which takes the original's place."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quant.methods.with_model.kernels import kl_kernels

AT_ONCE = 2**22  # numbers of the rows that are compared together


def compared(original: Tensor, quantised: Tensor, with_gradient: bool) -> Tensor:
    """Σ KL(original ‖ quantised) over rows of logits [n, vocab]; by the quantised ones its gradient, softmax(quantised)
    - softmax(original), is in the original's place then, where it is wanted."""
    wide = torch.promote_types(quantised.dtype, torch.float32)
    if original.is_cuda and wide == torch.float32 and (fused := kl_kernels()) is not None:
        return fused.compared(original, quantised, with_gradient).sum()
    total = torch.zeros((), dtype=wide, device=original.device)
    size = max(1, AT_ONCE // original.shape[1])
    for p, q in zip(original.split(size), quantised.split(size), strict=True):
        log_p, log_q = (torch.log_softmax(logits, dim=-1, dtype=wide) for logits in (p, q))
        share = log_p.exp()
        total += torch.where(log_p > -torch.inf, share * (log_p - log_q), 0.0).sum()
        if with_gradient:
            p.copy_(log_q.exp_().sub_(share))
    return total


class Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, quantised: Tensor) -> Tensor:
        ctx.gradient = original
        return compared(original, quantised, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:
        gradient, ctx.gradient = ctx.gradient, None
        return None, gradient.mul_(upstream)


def divergence(original: Tensor, quantised: Tensor) -> Tensor:
    """Σ KL(original ‖ quantised) over rows of logits [n, vocab] of one dtype, nats. Overwrites the original's."""
    if torch.is_grad_enabled() and quantised.requires_grad:
        return Divergence.apply(original, quantised)
    return compared(original, quantised, False)
