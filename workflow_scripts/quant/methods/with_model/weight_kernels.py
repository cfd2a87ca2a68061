"""Triton kernels of weights that move: made of codes or places in one reading, and the gradients in another."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 32768  # weights of a group, which a program holds
HELD = 2048  # weights that a program holds, where a group is shorter


@triton.jit
def _read(
    places, steps, changes, zeros, rows, columns, r, c, j, g, n_groups, here, there, lowest, highest,
    SIZE: tl.constexpr, MOVES: tl.constexpr, CHANGES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of rows r and a group g: codes less zeros, what they are multiplied with, whether a gradient reaches places."""
    at = r.to(tl.int64) * n_groups + g
    code = tl.load(places + (at * SIZE)[:, None] + c[None, :], mask=there, other=0).to(tl.float32)
    passes = there
    if MOVES:
        code = (code + 12582912.0) - 12582912.0  # to the nearest whole number, ties to even, where |code| < 2²²
        passes = there & (code >= lowest) & (code <= highest)
        code = tl.minimum(tl.maximum(code, lowest), highest)
    factor = tl.load(steps + at, mask=here, other=0.0)
    if CHANGES:
        factor *= tl.exp(tl.load(changes + at, mask=here, other=0.0))
    factor = tl.broadcast_to(factor[:, None], code.shape)
    if ROWS:
        factor *= tl.load(rows + r, mask=here, other=0.0)[:, None]
    if COLUMNS:
        factor *= tl.load(columns + j, mask=tl.max(there.to(tl.int32), 0) > 0, other=0.0)[None, :]
    zero = tl.load(zeros + at, mask=here, other=0).to(tl.float32)
    return code - zero[:, None], factor, passes


@triton.jit
def _weight(
    places, steps, changes, zeros, rows, columns, out, n_out, n_in, n_groups, lowest, highest,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr, MOVES: tl.constexpr, CHANGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r, c, g = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER), tl.arange(0, BLOCK), tl.program_id(1)
    j, here = g * SIZE + c, r < n_out
    there = here[:, None] & ((c < SIZE) & (j < n_in))[None, :]
    units, factor, _ = _read(
        places, steps, changes, zeros, rows, columns, r, c, j, g, n_groups, here, there, lowest, highest,
        SIZE, MOVES, CHANGES, ROWS, COLUMNS,
    )  # fmt: skip
    tl.store(out + (r.to(tl.int64) * n_in)[:, None] + j[None, :], units * factor, mask=there)


@triton.jit
def _gradients(
    places, steps, changes, zeros, rows, columns, given, of_places, of_changes, n_out, n_in, n_groups, lowest, highest,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr, MOVES: tl.constexpr, CHANGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r, c, g = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER), tl.arange(0, BLOCK), tl.program_id(1)
    j, here = g * SIZE + c, r < n_out
    there = here[:, None] & ((c < SIZE) & (j < n_in))[None, :]
    units, factor, passes = _read(
        places, steps, changes, zeros, rows, columns, r, c, j, g, n_groups, here, there, lowest, highest,
        SIZE, MOVES, CHANGES, ROWS, COLUMNS,
    )  # fmt: skip
    own = tl.load(given + (r.to(tl.int64) * n_in)[:, None] + j[None, :], mask=there, other=0.0) * factor
    at = r.to(tl.int64) * n_groups + g
    tl.store(of_changes + at, tl.sum(own * units, 1), mask=here)
    if MOVES:
        inside = here[:, None] & (c < SIZE)[None, :]
        tl.store(of_places + (at * SIZE)[:, None] + c[None, :], tl.where(passes, own, 0.0), mask=inside)


def takes(places: Tensor) -> bool:
    """Whether these kernels hold a group of places or codes [out, n_groups, g]."""
    return places.is_cuda and places.shape[2] <= LONGEST


def _launch(
    kernel: Any, given: tuple[Any, ...], ends: tuple[Any, ...], n_in: int, lowest: float, highest: float
) -> None:
    places, _, changes, _, rows, columns = given
    n_out, n_groups, size = places.shape
    block = triton.next_power_of_2(size)
    together = max(1, HELD // block)
    kernel[(triton.cdiv(n_out, together), n_groups)](
        *(places if each is None else each for each in given), *ends, n_out, n_in, n_groups, lowest, highest,
        SIZE=size, BLOCK=block, TOGETHER=together, MOVES=places.dtype.is_floating_point, CHANGES=changes is not None,
        ROWS=rows is not None, COLUMNS=columns is not None, num_warps=min(16, max(4, block // 512)),
        enable_fp_fusion=False,
    )  # fmt: skip


class Weight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        places: Tensor,
        steps: Tensor,
        changes: Tensor | None,
        zeros: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        n_in: int,
        lowest: float,
        highest: float,
    ) -> Tensor:
        ctx.save_for_backward(places, steps, changes, zeros, rows, columns)
        ctx.numbers = n_in, lowest, highest
        out = torch.empty(len(places), n_in, device=places.device)
        _launch(_weight, (places, steps, changes, zeros, rows, columns), (out,), *ctx.numbers)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        places, steps, changes, *_ = saved = ctx.saved_tensors
        of_places = torch.empty_like(places) if places.dtype.is_floating_point else None
        of_changes = torch.empty_like(steps)
        ends = (given.contiguous(), of_changes if of_places is None else of_places, of_changes)
        _launch(_gradients, saved, ends, *ctx.numbers)
        return of_places, None, None if changes is None else of_changes, *[None] * 6


def weight(
    places: Tensor,
    steps: Tensor,
    changes: Tensor | None,
    zeros: Tensor,
    n_in: int,
    ends: tuple[float, float] = (0.0, 0.0),
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """[out, in] in float32, (code - zero)·step·exp(change)·row·column, of codes in a byte each, or of places in
    float32, whose codes are the nearest whole numbers within `ends`, [out, n_groups, g]; a gradient passes the rounding
    of a place as if it were none. steps, changes (None: 0), zeros [out, n_groups, 1]; rows [out, 1]; columns [in]."""
    return Weight.apply(places, steps, changes, zeros, rows, columns, n_in, *map(float, ends))
