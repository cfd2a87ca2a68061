"""Kernels of one decoded token: INT4 products of up to 16 rows, and what stands between products.

Sums are in float32, what is stored is bfloat16. A word holds the codes of 8 neighbouring inputs, as in the file; a
range the bits of a bfloat16 step above those of a zero point.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, WARPS = 16, 8  # of a block of int4_product.cu


@functools.cache
def product_of_one(n_in: int, group: int) -> Any:
    """int4_product.cu, compiled for inputs of a size."""
    defined = {"N_IN": n_in, "GROUP": group, "WARPS": WARPS}
    source = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    source += Path(__file__).with_name("int4_product.cu").read_text()
    return torch.cuda._compile_kernel(source, "int4_product")


def one(x: Tensor, words: Tensor, ranges: Tensor, base: Tensor | None, scale: float, group: int) -> Tensor:
    """base + scale·Ŵx [1, out] of x [1, in]."""
    n_out, n_in = len(words), x.shape[1]
    out = torch.empty(1, n_out, dtype=torch.bfloat16, device=x.device)
    product_of_one(n_in, group)(
        grid=(-(-n_out // ROWS), 1, 1),
        block=(32 * WARPS, 1, 1),
        args=[x, words, ranges, x if base is None else base, out, float(scale), n_out, int(base is not None)],
    )
    return out


def few(x: Tensor, words: Tensor, ranges: Tensor, base: Tensor | None, scale: float, group: int) -> Tensor:
    """The same of up to 16 rows x [n, in]."""
    n, n_out, n_in = len(x), len(words), x.shape[1]
    out = torch.empty(n, n_out, dtype=torch.bfloat16, device=x.device)
    columns = x.view(n, -1, 8).transpose(1, 2).contiguous()
    product_of_few[lambda meta: (triton.cdiv(n_out, meta["ROWS"]),)](
        columns, words, ranges, x if base is None else base, out, scale, n, n_out, n_in // 8, n_in // group,
        PER_GROUP=group // 8, ADD=base is not None,
    )  # fmt: skip
    return out


@triton.autotune(
    configs=[
        triton.Config({"ROWS": rows, "WORDS": words}, num_warps=4, num_stages=stages)
        for rows, words in ((16, 32), (16, 64), (32, 16), (32, 32), (64, 16), (64, 32))
        for stages in (2, 4)
    ],
    key=["n_out", "n_words"],
)
@triton.jit
def product_of_few(
    columns, words, ranges, base, out, scale, n, n_out, n_words, n_groups,
    PER_GROUP: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """By matrix units; columns [n, 8, n_words]: the j-th inputs of all words next to each other."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sample = tl.arange(0, 16)
    some, real = (sample < n)[:, None], (row < n_out)[None, :]
    total = tl.zeros((16, ROWS), dtype=tl.float32)
    for start in range(0, n_words, WORDS):
        word = start + tl.arange(0, WORDS)
        inside = word < n_words
        both = inside[:, None] & real
        packed = tl.load(words + row[None, :] * n_words + word[:, None], mask=both, other=0)
        held = tl.load(ranges + row[None, :] * n_groups + (word // PER_GROUP)[:, None], mask=both, other=0)
        step, zero = (held & -65536).to(tl.float32, bitcast=True), (held & 255).to(tl.float32)
        first = columns + sample[:, None] * n_words * 8 + word[None, :]
        for j in tl.static_range(8):
            value = tl.load(first + j * n_words, mask=some & inside[None, :], other=0.0)
            weight = (((packed >> (4 * j)) & 15).to(tl.float32) - zero) * step
            total = tl.dot(value, weight.to(tl.bfloat16), total)
    where, mask = sample[:, None] * n_out + row[None, :], some & real
    if ADD:
        total = tl.load(base + where, mask=mask, other=0.0).to(tl.float32) + scale * total
    tl.store(out + where, total.to(tl.bfloat16), mask=mask)


@triton.jit
def norm_rows(x, weight, out, n, eps, SIZE: tl.constexpr):
    """Each row of x [rows, n] over its root mean square, times weight [n]."""
    at = tl.arange(0, SIZE)
    inside = at < n
    value = tl.load(x + tl.program_id(0) * n + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value) / n + eps)
    value = value.to(tl.bfloat16) * tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + tl.program_id(0) * n + at, value, mask=inside)


@triton.jit
def gate_rows(both, out, n, SIZE: tl.constexpr):
    """silu of the first half of each row [2n], times the second."""
    row, at = tl.program_id(0), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    gate = tl.load(both + row * 2 * n + at, mask=at < n, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * n + n + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(out + row * n + at, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=at < n)


@triton.jit
def attend(
    qkv, keys, values, places, cos, sin, out, n_heads, n_kv, context, scale, SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One query head of one sequence: rotates q and k, puts k and v into the cache, attends to what it holds.

    qkv [batch, (n_heads + 2·n_kv)·SIZE]; keys, values [batch, n_kv, context, SIZE]; cos, sin [context, SIZE].
    """
    batch, head = tl.program_id(0), tl.program_id(1)
    shared = n_heads // n_kv
    kv = head // shared
    at = tl.arange(0, SIZE)
    other, sign = (at + SIZE // 2) % SIZE, tl.where(at < SIZE // 2, -1.0, 1.0)
    place = tl.load(places)
    c, s = tl.load(cos + place * SIZE + at).to(tl.float32), sign * tl.load(sin + place * SIZE + at).to(tl.float32)
    row = qkv + batch * (n_heads + 2 * n_kv) * SIZE
    query, key, value = row + head * SIZE, row + (n_heads + kv) * SIZE, row + (n_heads + n_kv + kv) * SIZE
    q = tl.load(query + at).to(tl.float32) * c + tl.load(query + other).to(tl.float32) * s
    k = tl.load(key + at).to(tl.float32) * c + tl.load(key + other).to(tl.float32) * s
    v = tl.load(value + at)
    held = (batch * n_kv + kv) * context * SIZE
    if head % shared == 0:
        tl.store(keys + held + place * SIZE + at, k.to(tl.bfloat16))
        tl.store(values + held + place * SIZE + at, v)
    most = tl.sum(q * k) * scale
    weights, total = most * 0 + 1.0, v.to(tl.float32)
    for start in range(0, place, BLOCK):
        seen = start + tl.arange(0, BLOCK)
        inside = seen < place
        where = held + seen[:, None] * SIZE + at[None, :]
        score = tl.sum(tl.load(keys + where, mask=inside[:, None], other=0.0).to(tl.float32) * q[None, :], 1) * scale
        score = tl.where(inside, score, float("-inf"))
        now = tl.maximum(most, tl.max(score))
        share, before = tl.exp(score - now), tl.exp(most - now)
        held_values = tl.load(values + where, mask=inside[:, None], other=0.0).to(tl.float32)
        total = total * before + tl.sum(share[:, None] * held_values, 0)
        weights, most = weights * before + tl.sum(share), now
    tl.store(out + (batch * n_heads + head) * SIZE + at, (total / weights).to(tl.bfloat16))
