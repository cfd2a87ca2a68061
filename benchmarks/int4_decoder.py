"""A decoder that runs on INT4 codes through a choice of products; what benchmarks/int4_speed.py times."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from int4_products import Product, kernels
from quant.checkpoints.stored import Stored
from quant.errors import InputError
from quant.recipe.grids import Codes, Grid

GROUPS = (256, 128, 64, 32)  # that _weight_int4pack_mm takes


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


# ---- the decoder


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, n, size]; cos, sin [n, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Block(nn.Module):
    """A decoder block and its cache, two of [batch, key/value heads, context, size]."""

    def __init__(self, shape: Shape, norms: tuple[Tensor, Tensor], products: list[Product]) -> None:
        super().__init__()
        self.shape = shape
        for name, norm in zip(("before", "after"), norms, strict=True):
            self.register_buffer(name, norm)
        self.qkv, self.o, self.gate_up, self.down = products

    def allocate(self, batch: int, context: int) -> None:
        s = self.shape
        size, like = (batch, s.key_value, context, s.head_dim), self.before
        self.keys, self.values = (torch.zeros(size, dtype=like.dtype, device=like.device) for _ in range(2))

    def forward(self, x: Tensor, place: Tensor, cos: Tensor, sin: Tensor, seen: Tensor) -> Tensor:
        """Hidden states [batch, n, hidden] at places [n]; cos, sin [n, size]; seen [n, context]."""
        s = self.shape
        x = x + s.residual * self.o(self.attention(self.qkv(rms(x, self.before, s.eps)), place, cos, sin, seen))
        gate, up = self.gate_up(rms(x, self.after, s.eps)).chunk(2, dim=-1)
        return x + s.residual * self.down(functional.silu(gate) * up)

    def attention(self, qkv: Tensor, place: Tensor, cos: Tensor, sin: Tensor, seen: Tensor) -> Tensor:
        s, (batch, n, _) = self.shape, qkv.shape
        widths = [s.heads * s.head_dim, s.key_value * s.head_dim, s.key_value * s.head_dim]
        q, k, v = (t.view(batch, n, -1, s.head_dim).transpose(1, 2) for t in qkv.split(widths, dim=-1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        self.keys.index_copy_(2, place, k)
        self.values.index_copy_(2, place, v)
        out = functional.scaled_dot_product_attention(
            q, self.keys, self.values, attn_mask=seen, scale=s.attention, enable_gqa=s.key_value != s.heads
        )
        return out.transpose(1, 2).reshape(batch, n, -1)

    def fused(self, x: Tensor, place: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same of one token [batch, hidden] at place [1], by the products' kernels; cos, sin [context, size]."""
        s = self.shape
        qkv = self.qkv.normed(x, self.before, s.eps)
        seen = self.qkv.attended(qkv, self.keys, self.values, place, cos, sin, s.heads, s.attention)
        x = self.o.added(seen, x, s.residual)
        return self.down.added(self.gate_up.gated(x, self.after, s.eps), x, s.residual)


class Decoder(nn.Module):
    """Llama's or Granite's forward pass with a static cache."""

    def __init__(self, weights: Weights, product: Callable[[Codes], nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = weights.shape, dtype
        for name in ("embedding", "head", "norm"):
            self.register_buffer(name, getattr(weights, name).to(dtype))
        if weights.head is weights.embedding:
            self.head = self.embedding
        self.blocks = nn.ModuleList(
            Block(self.shape, (before.to(dtype), after.to(dtype)), [product(linear) for linear in linears])
            for before, after, linears in weights.layers()
        )

    def allocate(self, batch: int, context: int) -> None:
        s, device = self.shape, self.embedding.device
        for block in self.blocks:
            block.allocate(batch, context)
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
        given = place, self.cos[place], self.sin[place], self.places[None, :] <= place[:, None]
        for block in self.blocks:
            x = block(x, *given)
        return functional.linear(rms(x[:, -1], self.norm, s.eps), self.head) / s.logits

    def fused(self, ids: Tensor, place: Tensor) -> Tensor:
        """The same of one token ids [batch, 1] at place [1]."""
        s = self.shape
        x = self.embedding[ids[:, 0]] * s.embedding
        for block in self.blocks:
            x = block.fused(x, place, self.cos, self.sin)
        return functional.linear(kernels.normed(x, self.norm, s.eps), self.head) / s.logits

    def step(self, mode: str) -> None:
        """One token on: reads and writes the token and its place, so that a CUDA graph of it needs no input."""
        logits = (self.fused if mode == "fused" else self)(self.token, self.place)
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.place.add_(1)

    def linear_bytes(self) -> int:
        products = [each for block in self.blocks for each in (block.qkv, block.o, block.gate_up, block.down)]
        return sum(b.numel() * b.element_size() for product in products for b in product.buffers())

    def step_bytes(self) -> int:
        """Read in one decoding step: every weight, and the whole cache, which the mask does not spare."""
        rest = [self.head, self.norm, *(t for b in self.blocks for t in (b.before, b.after, b.keys, b.values))]
        return self.linear_bytes() + sum(t.numel() * t.element_size() for t in rest)
