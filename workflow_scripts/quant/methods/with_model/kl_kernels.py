"""Triton kernel of the divergence of two rows of logits and its gradient, in two readings of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _compared(
    original, quantised, out, vocabulary, stride, other_stride, GRADIENT: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program a row; m and t: each row's largest number so far, and Σ exp(number - m)."""
    own = original + tl.program_id(0).to(tl.int64) * stride
    other = quantised + tl.program_id(0).to(tl.int64) * other_stride
    m_p = -3.0e38  # not −∞, from which a part of nothing but −∞ would take NaN
    m_q = -3.0e38
    t_p = 0.0
    t_q = 0.0
    for first in range(0, vocabulary, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = column < vocabulary
        p = tl.load(own + column, mask=mask, other=float("-inf")).to(tl.float32)
        q = tl.load(other + column, mask=mask, other=float("-inf")).to(tl.float32)
        now_p, now_q = tl.maximum(m_p, tl.max(p, 0)), tl.maximum(m_q, tl.max(q, 0))
        t_p = t_p * tl.exp(m_p - now_p) + tl.sum(tl.exp(p - now_p), 0)
        t_q = t_q * tl.exp(m_q - now_q) + tl.sum(tl.exp(q - now_q), 0)
        m_p, m_q = now_p, now_q
    log_p, log_q = m_p + tl.log(t_p), m_q + tl.log(t_q)
    total = 0.0
    for first in range(0, vocabulary, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = column < vocabulary
        p = tl.load(own + column, mask=mask, other=float("-inf")).to(tl.float32) - log_p
        q = tl.load(other + column, mask=mask, other=float("-inf")).to(tl.float32) - log_q
        share = tl.exp(p)
        total += tl.sum(tl.where(share > 0, share * (p - q), 0.0), 0)
        if GRADIENT:
            tl.store(own + column, (tl.exp(q) - share).to(original.dtype.element_ty), mask=mask)
    tl.store(out + tl.program_id(0), total)


def compared(original: Tensor, quantised: Tensor, with_gradient: bool) -> Tensor:
    """KL [n] in float32 of each row of logits [n, vocab], whose rows may lie apart; the gradient, where it is wanted,
    in the original's place."""
    n, vocabulary = original.shape
    out = torch.empty(n, device=original.device)
    if n:
        _compared[(n,)](
            original, quantised, out, vocabulary, original.stride(0), quantised.stride(0), GRADIENT=with_gradient,
            COLUMNS=4096, num_warps=8,
        )  # fmt: skip
    return out
