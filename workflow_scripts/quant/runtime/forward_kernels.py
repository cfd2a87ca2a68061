"""Triton kernels of a decoder's forward pass: a norm and a rotation in one reading of what they work on, rounded where
the model's own operations round."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 16384  # channels of a row, which a program holds


@triton.jit
def _rms_norm(x, weight, out, n_in, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n_in
    columns = tl.arange(0, BLOCK)
    mask = columns < n_in
    own = tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32)
    normed = own * tl.rsqrt(tl.sum(own * own, 0) / n_in + epsilon)
    normed = normed.to(out.dtype.element_ty).to(tl.float32)
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row + columns, (scale * normed).to(out.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight·x/√(mean x² + ε) of x [..., in] and weight [in] of one type; the mean in float32."""
    x = x.contiguous()
    out, n_in = torch.empty_like(x), x.shape[-1]
    block = triton.next_power_of_2(n_in)
    if x.numel():
        _rms_norm[(x.numel() // n_in,)](
            x, weight.contiguous(), out, n_in, epsilon, BLOCK=block, num_warps=min(16, max(1, block // 512))
        )
    return out


@triton.jit
def _rotate(
    x, cos, sin, out, heads, size, width, x_batch, x_head, x_token, angle_batch, angle_token, BLOCK: tl.constexpr
):
    batch, token = tl.program_id(0) // width, tl.program_id(0) % width
    at = tl.arange(0, BLOCK)
    mask = at < heads * size
    head, channel = at // size, at % size
    half = size // 2
    place = batch.to(tl.int64) * x_batch + token.to(tl.int64) * x_token + head * x_head
    own = tl.load(x + place + channel, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + place + (channel + half) % size, mask=mask, other=0.0).to(tl.float32)
    other = tl.where(channel < half, -other, other)
    angle = batch.to(tl.int64) * angle_batch + token * angle_token + channel
    left = own * tl.load(cos + angle, mask=mask, other=0.0).to(tl.float32)
    right = other * tl.load(sin + angle, mask=mask, other=0.0).to(tl.float32)
    left, right = (left.to(out.dtype.element_ty).to(tl.float32), right.to(out.dtype.element_ty).to(tl.float32))
    tl.store(out + place + channel, (left + right).to(out.dtype.element_ty), mask=mask)


def rotates(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotate` takes these."""
    alike = x.dtype == cos.dtype == sin.dtype and cos.shape == sin.shape and cos.stride() == sin.stride()
    shaped = x.ndim == 4 and cos.ndim == 3 and cos.shape[1:] == (x.shape[2], x.shape[3]) and x.shape[3] % 2 == 0
    dense = x.stride(3) == 1 and cos.stride(2) == 1 and torch.empty_like(x).stride() == x.stride()
    return x.is_cuda and alike and shaped and dense and len(cos) in (1, len(x)) and x.shape[1] * x.shape[3] <= LONGEST


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + (-x₂, x₁)·sin of x [batch, heads, tokens, size] and angles [batch or 1, tokens, size]."""
    n, heads, width, size = x.shape
    out = torch.empty_like(x)
    if x.numel():
        block = triton.next_power_of_2(heads * size)
        _rotate[(n * width,)](
            x, cos, sin, out, heads, size, width, x.stride(0), x.stride(1), x.stride(2),
            cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
            BLOCK=block, num_warps=min(16, max(1, block // 512)), enable_fp_fusion=False,
        )  # fmt: skip
    return out
