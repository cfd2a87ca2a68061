"""Tokens a second of a packed checkpoint through real INT4 products, beside bfloat16 on the same weights.

    python benchmarks/int4_speed.py results/MODEL/METHOD/checkpoint > int4_speed.csv
    python benchmarks/int4_speed.py --random > int4_speed.csv      # a random MiniCPM-2B-shaped Granite, no file needed

The codes are the checkpoint's own; nothing is quantised here. Kernels:
  bf16       dense weights, cuBLAS: what the others are compared with
  tinygemm   torch.ops.aten._weight_int4pack_mm, the product that torchao's int4 weight-only path calls
  triton     the two kernels in this file, on the file's own int32 words; prompts unpack and multiply in bf16
  cpu        torch.ops.aten._weight_int4pack_mm_for_cpu, where there is no GPU
Decoding is a static cache and one CUDA graph a token, of the model as it is (eager) and compiled, so that launches cost
the same for every kernel; q/k/v and gate/up are one product each, in bf16 too. `limit_tokens_per_s` is what reading
each weight and the cache once a step allows at the bandwidth that a copy reaches on the same machine. A part that fails
says so in its row's `error` and the rest goes on.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant import grids
from quant.errors import InputError
from quant.grids import Grid
from quant.packed import Codes
from quant.stored import Stored, opened

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

COLUMNS = (
    *("device", "torch", "model", "kernel", "mode", "phase", "batch", "context", "tokens_per_s", "speedup"),
    *("limit_tokens_per_s", "share_of_limit", "linears_mb", "bandwidth_gb_s", "logits_error", "error"),
)
GROUPS = (256, 128, 64, 32)  # that _weight_int4pack_mm takes
LARGEST_BATCH = 16  # rows that the Triton products are for; more are a prompt


class Shape(NamedTuple):
    """Of a Llama or Granite decoder; the multipliers are 1, 1, 1 and head_dim^-½ in Llama."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    key_value: int
    head_dim: int
    vocabulary: int
    eps: float
    theta: float
    embedding: float
    residual: float
    logits: float
    attention: float


def shape_of(config: dict[str, Any]) -> Shape:
    """From config.json; refuses what `Decoder` does not compute."""
    if config.get("model_type") not in ("llama", "granite") or config.get("attention_bias") or config.get("mlp_bias"):
        raise InputError(
            f"model_type {config.get('model_type')!r} or its biases: give a Llama or a Granite without them"
        )
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type {rope['rope_type']!r}: give a model with the default kind")
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        size,
        config["vocab_size"],
        config["rms_norm_eps"],
        float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        float(config.get("embedding_multiplier", 1.0)),
        float(config.get("residual_multiplier", 1.0)),
        float(config.get("logits_scaling", 1.0)),
        float(config.get("attention_multiplier", size**-0.5)),
    )


# ---- weights: of a checkpoint, or random


class Weights:
    """embedding, head (the embedding where tied), norm, and of each layer two norms and four products by codes."""

    def __init__(self, shape: Shape, embedding: Tensor, head: Tensor, norm: Tensor, group: int) -> None:
        self.shape, self.embedding, self.head, self.norm, self.group = shape, embedding, head, norm, group

    def layers(self) -> Iterator[tuple[Tensor, Tensor, list[Codes]]]:
        """(norm before attention, norm before the MLP, [q/k/v, o, gate/up, down])."""
        raise NotImplementedError


def joined(parts: list[Codes]) -> Codes:
    """Linears that read one input as one, rows one after the other."""
    first = parts[0]
    codes, step, zero = (torch.cat([getattr(part, key) for part in parts]) for key in ("codes", "step", "zero"))
    return Codes(codes, step, zero, first.grid, first.n_in)


def unsigned(linear: Codes, group: int) -> Codes:
    """Codes 0 to 15 with a zero point, in groups of that size."""
    offset = 8 if linear.grid.symmetric else 0
    times = linear.codes.shape[2] // group
    step, zero = (t.repeat_interleave(times, 1) for t in (linear.step, linear.zero + offset))
    codes = (linear.codes + offset).reshape(len(linear.codes), -1, group)
    return Codes(codes, step, zero, Grid(4, group, False), linear.n_in)


class Checkpoint(Weights):
    """A packed checkpoint of 4 bits; its groups are cut to a size that every kernel takes."""

    def __init__(self, held: Stored, config: dict[str, Any], device: str) -> None:
        if held.grid is None or held.grid.bits != 4:
            raise InputError(f"{held.file.path}: is not packed in 4 bits; give such a method's checkpoint")
        self._held, self._device = held, device
        shape = shape_of(config)
        wanted = [shape.hidden, shape.mlp, shape.heads * shape.head_dim]
        wanted = wanted if held.grid.group_size == -1 else [held.grid.group_size]
        group = next((size for size in GROUPS if all(n % size == 0 for n in wanted)), None)
        if group is None:
            raise InputError(f"{held.file.path}: groups of {held.grid.group_size}; the kernels take {GROUPS}")
        embedding = held.file.get("model.embed_tokens.weight", device, torch.bfloat16)
        head = "lm_head.weight"
        own = held.file.get(head, device, torch.bfloat16) if head in held.file.names else embedding
        super().__init__(shape, embedding, own, held.file.get("model.norm.weight", device, torch.bfloat16), group)

    def layers(self) -> Iterator[tuple[Tensor, Tensor, list[Codes]]]:
        for i in range(self.shape.layers):
            name = f"model.layers.{i}"
            norms = [
                self._held.file.get(f"{name}.{norm}_layernorm.weight", self._device, torch.bfloat16)
                for norm in ("input", "post_attention")
            ]
            q, k, v, o = (self._linear(f"{name}.self_attn.{part}_proj") for part in "qkvo")
            gate, up, down = (self._linear(f"{name}.mlp.{part}_proj") for part in ("gate", "up", "down"))
            yield norms[0], norms[1], [joined([q, k, v]), o, joined([gate, up]), down]

    def _linear(self, name: str) -> Codes:
        return unsigned(self._held.linear(name, self._device), self.group)


class Random(Weights):
    """Random codes of the size and spread of a real model's."""

    def __init__(self, shape: Shape, group: int, device: str) -> None:
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)
        embedding = self._normal(shape.vocabulary, shape.hidden)
        super().__init__(shape, embedding, embedding, torch.ones_like(embedding[0]), group)

    def _normal(self, *size: int) -> Tensor:
        drawn = torch.randn(*size, generator=self._generator, device=self._device, dtype=torch.bfloat16)
        return drawn.mul_(0.02)

    def _linear(self, n_out: int, n_in: int) -> Codes:
        groups = (n_out, n_in // self.group, self.group)
        codes = torch.randint(0, 16, groups, generator=self._generator, device=self._device).float()
        spread = 0.5 + torch.rand(*groups[:2], 1, generator=self._generator, device=self._device)
        step = (spread * 0.2 / n_in**0.5).bfloat16().float()
        zero = torch.randint(6, 10, (*groups[:2], 1), generator=self._generator, device=self._device).float()
        return Codes(codes, step, zero, Grid(4, self.group, False), n_in)

    def layers(self) -> Iterator[tuple[Tensor, Tensor, list[Codes]]]:
        s = self.shape
        ones, wide = torch.ones_like(self.norm), s.heads * s.head_dim
        self._generator.manual_seed(1)  # the same for every kernel
        for _ in range(s.layers):
            qkv = self._linear(wide + 2 * s.key_value * s.head_dim, s.hidden)
            rest = [self._linear(s.hidden, wide), self._linear(2 * s.mlp, s.hidden), self._linear(s.hidden, s.mlp)]
            yield ones, ones, [qkv, *rest]


# ---- products


class Dense(nn.Module):
    """bf16 (or another dtype) weights."""

    def __init__(self, linear: Codes, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.register_buffer("weight", linear.dequantize().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


def scales_and_zeros(linear: Codes, dtype: torch.dtype) -> Tensor:
    """[in/g, out, 2] for tinygemm, whose weight is (code - 8)·scale + zero."""
    zero = (8 - linear.zero) * linear.step
    return torch.cat([linear.step, zero], dim=2).transpose(0, 1).contiguous().to(dtype)


class Tinygemm(nn.Module):
    """torch.ops.aten._weight_int4pack_mm; two codes a byte, the first in the high bits, then its own tiling."""

    def __init__(self, linear: Codes) -> None:
        super().__init__()
        codes = grids.from_groups(linear.codes, linear.n_in).to(torch.int32)
        tiles = next(tiles for tiles in (8, 4, 2) if linear.n_in % (16 * tiles) == 0)
        self.group, self.n_out = linear.grid.group_size, len(codes)
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack(pairs, tiles))
        self.register_buffer("scales", scales_and_zeros(linear, torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int4pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.group, self.scales)
        return y.view(*x.shape[:-1], self.n_out)


class CpuInt4(nn.Module):
    """torch.ops.aten._weight_int4pack_mm_for_cpu."""

    def __init__(self, linear: Codes) -> None:
        super().__init__()
        codes = grids.from_groups(linear.codes, linear.n_in).to(torch.int32).contiguous()
        self.group, self.n_out = linear.grid.group_size, len(codes)
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("scales", scales_and_zeros(linear, torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.group, self.scales)
        return y.view(*x.shape[:-1], self.n_out)


if triton is not None:

    @triton.autotune(
        configs=[
            triton.Config({"ROWS": rows, "WORDS": words}, num_warps=warps)
            for rows in (1, 2, 4, 8)
            for words, warps in ((128, 2), (256, 4), (512, 8))
        ],
        key=["n_out", "n_words"],
    )
    @triton.jit
    def product_of_one(
        x, words, steps, zeros, out, n_out, n_words, n_groups,
        PER_GROUP: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
    ):  # fmt: skip
        """out [n_out] = Ŵx for one x [in]; a word holds 8 codes, a group PER_GROUP words."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        total = tl.zeros((ROWS, WORDS), dtype=tl.float32)
        for start in range(0, n_words, WORDS):
            word = start + tl.arange(0, WORDS)
            inside = word < n_words
            both = (row < n_out)[:, None] & inside[None, :]
            packed = tl.load(words + row[:, None] * n_words + word[None, :], mask=both, other=0)
            at = row[:, None] * n_groups + (word // PER_GROUP)[None, :]
            step = tl.load(steps + at, mask=both, other=0.0).to(tl.float32)
            zero = tl.load(zeros + at, mask=both, other=0).to(tl.float32)
            part = tl.zeros((ROWS, WORDS), dtype=tl.float32)
            for j in tl.static_range(8):
                value = tl.load(x + word * 8 + j, mask=inside, other=0.0).to(tl.float32)
                part += (((packed >> (4 * j)) & 15).to(tl.float32) - zero) * value[None, :]
            total += part * step
        tl.store(out + row, tl.sum(total, axis=1).to(tl.bfloat16), mask=row < n_out)

    @triton.autotune(
        configs=[
            triton.Config({"ROWS": rows, "INPUTS": inputs}, num_warps=4, num_stages=stages)
            for rows in (16, 32, 64)
            for inputs in (64, 128)
            for stages in (3, 4)
        ],
        key=["n_out", "n_in"],
    )
    @triton.jit
    def product_of_few(
        x, words, steps, zeros, out, n, n_out, n_in, n_groups,
        GROUP: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr,
    ):  # fmt: skip
        """out [n, n_out] = xŴᵀ for n ≤ 16 rows x [n, in]."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        sample = tl.arange(0, 16)
        total = tl.zeros((16, ROWS), dtype=tl.float32)
        for start in range(0, n_in, INPUTS):
            column = start + tl.arange(0, INPUTS)
            inside = column < n_in
            mask = inside[:, None] & (row < n_out)[None, :]
            value = tl.load(x + sample[:, None] * n_in + column[None, :], mask=(sample < n)[:, None] & inside[None, :],
                            other=0.0)  # fmt: skip
            packed = tl.load(words + row[None, :] * (n_in // 8) + (column // 8)[:, None], mask=mask, other=0)
            at = row[None, :] * n_groups + (column // GROUP)[:, None]
            step = tl.load(steps + at, mask=mask, other=0.0).to(tl.float32)
            zero = tl.load(zeros + at, mask=mask, other=0).to(tl.float32)
            code = ((packed >> ((column % 8) * 4)[:, None]) & 15).to(tl.float32)
            total = tl.dot(value, ((code - zero) * step).to(tl.bfloat16), total)
        where = sample[:, None] * n_out + row[None, :]
        tl.store(out + where, total.to(tl.bfloat16), mask=(sample < n)[:, None] & (row < n_out)[None, :])


class TritonInt4(nn.Module):
    """The kernels above on int32 words of eight codes, as in the file; prompts unpack and multiply in bf16."""

    def __init__(self, linear: Codes) -> None:
        super().__init__()
        if triton is None:
            raise RuntimeError("triton is not installed")
        codes = grids.from_groups(linear.codes, linear.n_in).to(torch.int64).view(len(linear.codes), -1, 8)
        words = (codes << (4 * torch.arange(8, device=codes.device))).sum(2)
        words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
        self.group, self.n_out, self.n_in = linear.grid.group_size, len(codes), linear.n_in
        self.register_buffer("words", words.contiguous())
        self.register_buffer("steps", linear.step[:, :, 0].to(torch.bfloat16).contiguous())
        self.register_buffer("zeros", linear.zero[:, :, 0].to(torch.uint8).contiguous())

    def unpacked(self) -> Tensor:
        """[out, in] bf16."""
        shifts = 4 * torch.arange(8, device=self.words.device, dtype=torch.int32)
        codes = ((self.words[:, :, None] >> shifts) & 15).view(self.n_out, -1, self.group).to(torch.bfloat16)
        return ((codes - self.zeros[:, :, None]) * self.steps[:, :, None]).view(self.n_out, self.n_in)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.n_in)
        if len(rows) > LARGEST_BATCH:
            return functional.linear(x, self.unpacked())
        rows = rows.contiguous()
        out = torch.empty(len(rows), self.n_out, dtype=torch.bfloat16, device=x.device)
        groups = self.n_in // self.group
        if len(rows) == 1:
            product_of_one[lambda meta: (triton.cdiv(self.n_out, meta["ROWS"]),)](
                rows, self.words, self.steps, self.zeros, out, self.n_out, self.n_in // 8, groups,
                PER_GROUP=self.group // 8,
            )  # fmt: skip
        else:
            product_of_few[lambda meta: (triton.cdiv(self.n_out, meta["ROWS"]),)](
                rows, self.words, self.steps, self.zeros, out, len(rows), self.n_out, self.n_in, groups,
                GROUP=self.group,
            )  # fmt: skip
        return out.view(*x.shape[:-1], self.n_out)


KERNELS: dict[str, Callable[[Codes], nn.Module]] = {
    "bf16": Dense,
    "tinygemm": Tinygemm,
    "triton": TritonInt4,
    "cpu": CpuInt4,
}


# ---- the decoder


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, n, size]; cos, sin [n, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Decoder(nn.Module):
    """Llama's or Granite's forward pass with a static cache, for each layer two of [batch, key/value heads, context,
    size]: tensors of their own, so that compiled code writes them where they are."""

    def __init__(self, weights: Weights, product: Callable[[Codes], nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = weights.shape, dtype
        for name in ("embedding", "head", "norm"):
            self.register_buffer(name, getattr(weights, name).to(dtype))
        if weights.head is weights.embedding:
            self.head = self.embedding
        self.norms: list[Tensor] = []
        self.products = nn.ModuleList()
        for before, after, linears in weights.layers():
            self.norms += [before.to(dtype), after.to(dtype)]
            self.products.extend(product(linear) for linear in linears)

    def allocate(self, batch: int, context: int) -> None:
        s, device = self.shape, self.embedding.device
        size = (batch, s.key_value, context, s.head_dim)
        self.keys, self.values = (
            [torch.zeros(size, dtype=self.dtype, device=device) for _ in range(s.layers)] for _ in range(2)
        )
        frequency = s.theta ** (-torch.arange(0, s.head_dim, 2, device=device).float() / s.head_dim)
        angle = torch.outer(torch.arange(context, device=device).float(), frequency).repeat(1, 2)
        self.cos, self.sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        self.places = torch.arange(context, device=device)
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)

    def forward(self, ids: Tensor, place: Tensor) -> Tensor:
        """Logits [batch, vocabulary] after ids [batch, n] at places [n]."""
        s = self.shape
        x = self.embedding[ids] * s.embedding
        cos, sin = self.cos[place], self.sin[place]
        seen = self.places[None, :] <= place[:, None]
        for i in range(s.layers):
            qkv, o, gate_up, down = self.products[4 * i : 4 * i + 4]
            x = x + s.residual * o(self.attention(qkv(rms(x, self.norms[2 * i], s.eps)), i, place, cos, sin, seen))
            gate, up = gate_up(rms(x, self.norms[2 * i + 1], s.eps)).chunk(2, dim=-1)
            x = x + s.residual * down(functional.silu(gate) * up)
        return functional.linear(rms(x[:, -1], self.norm, s.eps), self.head) / s.logits

    def attention(self, qkv: Tensor, i: int, place: Tensor, cos: Tensor, sin: Tensor, seen: Tensor) -> Tensor:
        s, (batch, n, _) = self.shape, qkv.shape
        widths = [s.heads * s.head_dim, s.key_value * s.head_dim, s.key_value * s.head_dim]
        q, k, v = (t.view(batch, n, -1, s.head_dim).transpose(1, 2) for t in qkv.split(widths, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values = self.keys[i], self.values[i]
        keys.index_copy_(2, place, k)
        values.index_copy_(2, place, v)
        out = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=seen, scale=s.attention, enable_gqa=s.key_value != s.heads
        )
        return out.transpose(1, 2).reshape(batch, n, -1)

    def step(self) -> None:
        """One token on: reads and writes the token and its place, so that a CUDA graph of it needs no input."""
        logits = self(self.token, self.place)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.place.add_(1)

    def linear_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.products.buffers())

    def step_bytes(self) -> int:
        """Read in one decoding step: every weight, and the whole cache, which the mask does not spare."""
        rest = [self.head, self.norm, *self.norms, *self.keys, *self.values]
        return self.linear_bytes() + sum(t.numel() * t.element_size() for t in rest)


# ---- measuring


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    """Of one call, the mean of `times`."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - begun) / times


def bandwidth(device: str, size: int) -> float:
    """Bytes a second of a copy, its reads and its writes counted."""
    a = torch.zeros(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * size / seconds_of(lambda: b.copy_(a), device, 10)


def captured(work: Callable[[], None], model: Decoder) -> Callable[[], None]:
    """A CUDA graph of one step; capturing runs it a few times, so the place is put back."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    model.place.zero_()
    return graph.replay


@torch.inference_mode()
def prompt_logits(model: Decoder, ids: Tensor) -> Tensor:
    model.allocate(len(ids), ids.shape[1])
    return model(ids, torch.arange(ids.shape[1], device=ids.device))


@torch.inference_mode()
def prompt_speed(model: Decoder, batch: int, context: int, device: str, times: int) -> float:
    """Tokens a second of reading a prompt of `context` tokens."""
    ids = torch.randint(0, model.shape.vocabulary, (batch, context), device=device)
    place = torch.arange(context, device=device)
    model.allocate(batch, context)
    model(ids, place)
    return batch * context / seconds_of(lambda: model(ids, place), device, times)


@torch.inference_mode()
def decode_speed(model: Decoder, batch: int, context: int, device: str, mode: str) -> float:
    """Tokens a second of writing until the cache of `context` tokens is full."""
    model.allocate(batch, context)
    work: Callable[[], None] = model.step
    if mode == "compiled":
        torch._dynamo.reset()
        work = torch.compile(model.step, fullgraph=True)
    if device == "cuda":
        work = captured(work, model)
    else:
        work()
    model.place.zero_()
    for _ in range(4):
        work()
    model.place.zero_()
    return batch / seconds_of(work, device, context - 4)


def random_shape(options: argparse.Namespace) -> Shape:
    """MiniCPM-2B as Granite, unless options say otherwise."""
    size, scale_depth, dim_model_base = options.hidden // options.heads, 1.4, 256
    multipliers = (12.0, scale_depth / options.layers**0.5, options.hidden / dim_model_base, size**-0.5)
    return Shape(
        options.hidden, options.mlp, options.layers, options.heads, options.heads, size, options.vocabulary, 1e-5,
        10000.0, *multipliers,
    )  # fmt: skip


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def measure(weights: Weights, options: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> None:
    """A row for each kernel, mode, phase and batch."""
    device = options.device
    speed = bandwidth(device, 2**31 if device == "cuda" else 2**27)
    kernels = options.kernels or (["bf16", "tinygemm", "triton"] if device == "cuda" else ["bf16", "cpu"])
    ids = torch.randint(0, weights.shape.vocabulary, (1, 32), device=device)
    baseline: dict[tuple[str, str, int], float] = {}
    reference = None
    for kernel in kernels:
        common = {"kernel": kernel, "bandwidth_gb_s": round(speed / 1e9, 1)}
        try:
            model = Decoder(weights, KERNELS[kernel], torch.bfloat16).eval()
            logits = prompt_logits(model, ids).float()
            logits = torch.cat([logits, decoded_logits(model, ids)])
            reference = logits if kernel == "bf16" else reference
            if reference is not None:
                error = (logits - reference).abs().max() / reference.std()
                common["logits_error"] = f"{error.item():.3g}"
            common["linears_mb"] = round(model.linear_bytes() / 1e6, 1)
        except Exception as error:  # of a kernel that this machine has not; the others are still worth their rows
            write(common | {"error": one_line(error)})
            continue
        for batch in options.batch:
            prompt = partial(prompt_speed, model, batch, options.prompt, device, options.times)
            runs = [("prompt", "eager", prompt)]
            runs += [
                ("decode", mode, partial(decode_speed, model, batch, options.context, device, mode))
                for mode in options.modes
            ]
            for phase, mode, run in runs:
                row = common | {"phase": phase, "mode": mode, "batch": batch}
                row["context"] = options.prompt if phase == "prompt" else options.context
                try:
                    found = run()
                    row["tokens_per_s"] = round(found, 1)
                    key = (phase, mode, batch)
                    if kernel == "bf16":
                        baseline[key] = found
                    if key in baseline:
                        row["speedup"] = round(found / baseline[key], 3)
                    if phase == "decode":
                        limit = batch * speed / model.step_bytes()
                        row |= {"limit_tokens_per_s": round(limit, 1), "share_of_limit": round(found / limit, 3)}
                except Exception as error:
                    row["error"] = one_line(error)
                write(row)
        del model, prompt, runs, run
        if device == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def decoded_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Logits after the same tokens one at a time: the other path through each product."""
    model.allocate(len(ids), ids.shape[1])
    for i in range(ids.shape[1]):
        logits = model(ids[:, i : i + 1], torch.tensor([i], device=ids.device))
    return logits.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a packed checkpoint of 4 bits")
    parser.add_argument("--random", action="store_true", help="random weights of the shape below instead")
    for name, value in (("hidden", 2304), ("mlp", 5760), ("layers", 40), ("heads", 36), ("vocabulary", 122753)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--group", type=int, default=128, help="of the random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS))
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--context", type=int, default=256, help="tokens of the cache in decoding")
    parser.add_argument("--times", type=int, default=5, help="prompts to take the mean over")
    options = parser.parse_args()
    if options.random == (options.checkpoint is not None):
        parser.error("give a checkpoint or --random")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    said = {"device": name, "torch": torch.__version__}
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        writer.writerow(said | row)
        sys.stdout.flush()

    if options.random:
        said["model"] = "random {hidden}x{mlp}x{layers}, {vocabulary} tokens, groups of {group}".format(**vars(options))
        measure(Random(random_shape(options), options.group, options.device), options, write)
        return
    said["model"] = str(options.checkpoint)
    try:
        config = json.loads((options.checkpoint / "config.json").read_text())
        with opened(options.checkpoint) as held:
            measure(Checkpoint(held, config, options.device), options, write)
    except InputError as error:
        sys.exit(f"ERROR {error}")


if __name__ == "__main__":
    main()
