"""Kernels of one decoded token: INT4 products of up to 16 rows, and what stands between products.

Sums are in float32, what is stored is bfloat16. A word holds the codes of 8 neighbouring inputs, as in the file; a
range the bits of a bfloat16 step above those of a zero point.
"""

import ctypes
import functools
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor

OVERLAP = (
    True  # whether a CUDA kernel may begin before the one before it ends; int4_common.cuh says what keeps the order
)


# ---- one row, in CUDA


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, of a flag."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("n_attributes", ctypes.c_uint),
    )


MAX_SHARED, CARVEOUT = 8, 9  # of CUfunction_attribute
PROGRAMMATIC = Attribute(id=6, value=1)  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


@functools.cache
def driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: object) -> None:
    """A function of the CUDA driver."""
    code = getattr(driver(), name)(*arguments)
    if code:
        raise RuntimeError(f"{name}: CUDA error {code}")


@functools.cache
def compiled(name: str, shared: int, **defined: int) -> ctypes.c_void_p:
    """The kernel of a .cu file, to be launched with that many bytes of shared memory."""
    source = "".join(f"#define {key} {value}\n" for key, value in {**defined, "SHARED": shared}.items())
    source += "".join(Path(__file__).with_name(file).read_text() for file in ("int4_common.cuh", f"{name}.cu"))
    function = torch.cuda._compile_kernel(source, name).func
    call("cuFuncSetAttribute", function, MAX_SHARED, shared)
    call("cuFuncSetAttribute", function, CARVEOUT, 100)  # the same for all: a block can join those of another kernel
    return function


def launch(
    function: ctypes.c_void_p, blocks: int, warps: int, shared: int, *arguments: Tensor | int | float | None
) -> None:
    """On torch's stream; tensors become pointers, numbers int and float.

    Weights, place and cache may be read while the kernel before still runs: that one must not have made them.
    """
    kinds = {int: ctypes.c_int, float: ctypes.c_float, type(None): ctypes.c_void_p}
    held = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else kinds[type(a)](a) for a in arguments]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
    stream = torch.cuda.current_stream().cuda_stream
    with_what = Configuration((blocks, 1, 1), (32 * warps, 1, 1), shared, stream, ctypes.pointer(PROGRAMMATIC), OVERLAP)
    call("cuLaunchKernelEx", ctypes.byref(with_what), function, pointers, None)


def warps_of(n_in: int) -> int:
    """Of a block of int4_product.cu: two steps of 128 inputs each. Its 16 rows are all on their way before it computes,
    however many warps it has; at 2304 and 5760 inputs this was 5 % faster than three steps each, 10 % than one or four.
    """
    return min(24, -(-n_in // 256))


def sixteens(size: int) -> int:
    """Bytes of a structure of 16-byte words."""
    return -(-size // 16) * 16


def fits(n_out: int) -> bool:
    """Whether `one` takes a product: rows in sixteens, and a GPU that has the instructions."""
    return n_out % 16 == 0 and torch.cuda.get_device_capability() >= (9, 0)


def one(
    x: Tensor,
    words: Tensor,
    ranges: Tensor,
    group: int,
    *,
    norm: tuple[Tensor, float] | None = None,
    added: tuple[Tensor, float] | None = None,
    gated: bool = False,
) -> Tensor:
    """Ŵx [1, out] of x [1, in], or of x normed by a weight [in] and an epsilon.

    `added`: base + scale·Ŵx of a base [1, out] and a scale. `gated`: silu of its first half times the second.
    """
    n_in, warps = x.shape[1], warps_of(x.shape[1])
    n_out, of_block = (len(words) // 2, 8) if gated else (len(words), 16)
    fours, steps = n_in // 32, n_in // min(group, 128)
    row = 16 * (fours + (12 - fours) % 8)  # bytes, apart
    shared = sixteens(16 * row + 2 * n_in + 64 * (n_in // group) + 16 + 4 * steps + 68 * warps)
    weight, eps = norm or (None, 0.0)
    base, scale = added or (None, 1.0)
    out = torch.empty(1, n_out, dtype=torch.bfloat16, device=x.device)
    function = compiled(
        "int4_product", shared, N_IN=n_in, GROUP=group, WARPS=warps,
        NORMED=int(norm is not None), ADDED=int(added is not None), GATED=int(gated),
    )  # fmt: skip
    launch(
        function, n_out // of_block, warps, shared, x, words, ranges, weight, float(eps), base, float(scale), out, n_out
    )
    return out


def attended_by_one(
    qkv: Tensor, keys: Tensor, values: Tensor, place: Tensor, cos: Tensor, sin: Tensor, heads: int, scale: float
) -> Tensor:
    """`attended` of one row."""
    _, n_kv, context, size = keys.shape
    warps, places = 8, 16384 // size  # 32 KiB of keys and of values at a time
    shared = sixteens(4 * places * size + 8 + 4 * warps * (2 + size))
    out = torch.empty(1, heads * size, dtype=torch.bfloat16, device=qkv.device)
    function = compiled("int4_attend", shared, SIZE=size, WARPS=warps, PLACES=places)
    launch(function, heads, warps, shared, qkv, keys, values, place, cos, sin, out, float(scale), context, heads, n_kv)
    return out


# ---- any number of rows, in Triton


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows of x [n, size] over their root mean squares, times weight [size]."""
    out, n = torch.empty_like(x), x.shape[1]
    norm_rows[(len(x),)](x, weight, out, n, eps, SIZE=1 << (n - 1).bit_length(), num_warps=8)
    return out


def gated(both: Tensor) -> Tensor:
    """silu(gate)·up [n, mlp] of rows [n, 2·mlp]."""
    n = both.shape[1] // 2
    out = both.new_empty(len(both), n)
    gate_rows[(len(both), -(-n // 512))](both, out, n, SIZE=512)
    return out


def attended(
    qkv: Tensor, keys: Tensor, values: Tensor, place: Tensor, cos: Tensor, sin: Tensor, heads: int, scale: float
) -> Tensor:
    """Attention's output [batch, heads·size] for rows of qkv; puts k and v into the cache at place [1].

    keys, values [batch, key/value heads, context, size]; cos, sin [context, size].
    """
    _, n_kv, context, size = keys.shape
    out = qkv.new_empty(len(qkv), heads * size)
    attend[(len(qkv), heads)](qkv, keys, values, place, cos, sin, out, heads, n_kv, context, scale, SIZE=size, BLOCK=64)
    return out


def few(x: Tensor, words: Tensor, ranges: Tensor, base: Tensor | None, scale: float, group: int) -> Tensor:
    """base + scale·Ŵx [n, out] of up to 16 rows x [n, in]."""
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
