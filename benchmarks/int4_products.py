"""Products with INT4 codes: of libraries, our own (int4_kernels.py), and the dense one they are compared with."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow_scripts"))

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.recipe import grids
from quant.recipe.grids import Codes

try:
    import int4_kernels as kernels
except ImportError:  # no Triton
    kernels = None

LARGEST_BATCH = 16  # rows that our own products are for; more are a prompt


class Product(nn.Module):
    """A product with a linear's weights [out, in], and what stands around it in a decoded token, of rows [n, in]."""

    compiles = True  # whether torch.compile sees through it

    def added(self, x: Tensor, base: Tensor, scale: float) -> Tensor:
        """base + scale·Wx [n, out]."""
        return torch.add(base, self(x), alpha=scale)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """W·norm(x) [n, out]; weight [in]."""
        return self(kernels.normed(x, weight, eps))

    def gated(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """silu of the first half of `normed` times the second, [n, out/2]."""
        return kernels.gated(self.normed(x, weight, eps))

    def attended(self, qkv: Tensor, *cache_and_scale: Any) -> Tensor:
        """kernels.attended, of what `normed` gave."""
        return kernels.attended(qkv, *cache_and_scale)


class Dense(Product):
    """bf16 (or another dtype) weights."""

    def __init__(self, linear: Codes, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.register_buffer("weight", linear.dequantize().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)

    def added(self, x: Tensor, base: Tensor, scale: float) -> Tensor:
        return torch.addmm(base, x, self.weight.T, alpha=scale)


def scales_and_zeros(linear: Codes, dtype: torch.dtype) -> Tensor:
    """[in/g, out, 2] for tinygemm, whose weight is (code - 8)·scale + zero."""
    zero = (8 - linear.zero) * linear.step
    return torch.cat([linear.step, zero], dim=2).transpose(0, 1).contiguous().to(dtype)


class Tinygemm(Product):
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


class CpuInt4(Product):
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


class OwnInt4(Product):
    """The products of int4_kernels.py, one row with the norm, gate and attention around it; prompts unpack, in bf16."""

    compiles = False

    def __init__(self, linear: Codes) -> None:
        super().__init__()
        if kernels is None:
            raise RuntimeError("triton is not installed")
        self.group, self.n_out, self.n_in = linear.grid.group_size, len(linear.codes), linear.n_in
        codes = grids.from_groups(linear.codes, linear.n_in).to(torch.int64).view(self.n_out, -1, 8)
        words = (codes << (4 * torch.arange(8, device=codes.device))).sum(2)
        step = linear.step[:, :, 0].to(torch.bfloat16).view(torch.int16).long() & 0xFFFF
        for name, bits in (("words", words), ("ranges", step << 16 | linear.zero[:, :, 0].long())):
            self.register_buffer(name, torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).contiguous())

    def unpacked(self) -> Tensor:
        """[out, in] bf16."""
        codes = (self.words[:, :, None] >> (4 * torch.arange(8, device=self.words.device, dtype=torch.int32))) & 15
        step, zero = (self.ranges & -65536).view(torch.float32), self.ranges & 255
        groups = codes.view(self.n_out, -1, self.group) - zero[:, :, None]
        return (groups * step[:, :, None]).view(self.n_out, self.n_in).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.n_in)
        if len(rows) > LARGEST_BATCH:
            return functional.linear(x, self.unpacked())
        found = self._one(rows) if self._single(rows) else self._few(rows.contiguous(), None, 1.0)
        return found.view(*x.shape[:-1], self.n_out)

    def added(self, x: Tensor, base: Tensor, scale: float) -> Tensor:
        return self._one(x, added=(base, scale)) if self._single(x) else self._few(x, base, scale)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._one(x, norm=(weight, eps)) if self._single(x) else super().normed(x, weight, eps)

    def gated(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._one(x, norm=(weight, eps), gated=True) if self._single(x) else super().gated(x, weight, eps)

    def attended(self, qkv: Tensor, *cache_and_scale: Any) -> Tensor:
        attended = kernels.attended_by_one if self._single(qkv) else kernels.attended
        return attended(qkv, *cache_and_scale)

    def _single(self, x: Tensor) -> bool:
        return len(x) == 1 and kernels.fits(self.n_out)

    def _one(self, x: Tensor, **around: Any) -> Tensor:
        return kernels.one(x, self.words, self.ranges, self.group, **around)

    def _few(self, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return kernels.few(x, self.words, self.ranges, base, scale, self.group)


KERNELS: dict[str, type[Product]] = {
    "bf16": Dense,
    "tinygemm": Tinygemm,
    "own": OwnInt4,
    "cpu": CpuInt4,
}
