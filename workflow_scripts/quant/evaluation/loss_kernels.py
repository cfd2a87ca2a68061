"""Triton kernel of evaluation on a GPU: the loss of logits in one reading of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _token_nll(logits, targets, out, vocabulary, stride, COLUMNS: tl.constexpr):
    """A program a row: log Σ exp(logit - most) + most - logit of the target; most: the largest so far."""
    row = logits + tl.program_id(0).to(tl.int64) * stride
    most = float("-inf")
    total = 0.0
    for first in range(0, vocabulary, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        some = tl.load(row + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        now = tl.maximum(most, tl.max(some, 0))
        total = total * tl.exp(most - now) + tl.sum(tl.exp(some - now), 0)
        most = now
    target = tl.load(row + tl.load(targets + tl.program_id(0))).to(tl.float32)
    tl.store(out + tl.program_id(0), tl.log(total) + (most - target))


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """perplexity.token_nll of logits [n, vocab] whose rows may lie apart, in float32 [n]."""
    n, vocabulary = logits.shape
    out = torch.empty(n, device=logits.device)
    _token_nll[(n,)](logits, targets, out, vocabulary, logits.stride(0), COLUMNS=4096, num_warps=8)
    return out
