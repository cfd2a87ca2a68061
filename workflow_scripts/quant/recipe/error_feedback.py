"""GPTQ's column loop (Frantar et al. 2022, arXiv 2210.17323, algorithm 1), on static groups: what a column's rounding
leaves goes into the later ones through the inverse factor of H. Columns by descending H_jj·mean_k step²_kj, the error
that rounding leaves in each; H_jj alone (activation order) forgets that scaling moved the steps too.
"""

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import Context, row_chunks
from quant.recipe.grids import Grid
from quant.recipe.inverse import inverse_factor
from quant.recipe.kernels import COLUMNS, feed_back

PANEL = 512  # columns whose errors a GPU takes to all later ones at once, four blocks of COLUMNS


def factored(step: Tensor, group_size: int, context: Context, damp: float) -> tuple[Tensor, Tensor, float]:
    """The inverse factor of H, the order of columns that it is in, and the damp that it took."""
    n_in = len(context.diagonal)
    squares = grids.from_groups(step.square().mean(0, keepdim=True).expand(1, -1, group_size), n_in)[0]
    order = (context.diagonal * squares).argsort(descending=True, stable=True)
    flipped = order.is_cuda  # there it takes longer afterwards
    factor, damp = inverse_factor(context.copied(order.flip(0) if flipped else order), damp, flipped)
    return factor, order, damp


def fed(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, factor: Tensor, order: Tensor) -> Tensor:
    """`feed` of all rows."""
    parts = [feed(groups[rows], step[rows], zero[rows], grid, factor, order) for rows in row_chunks(groups)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def feed(groups: Tensor, step: Tensor, zero: Tensor, grid: Grid, factor: Tensor, order: Tensor) -> Tensor:
    """Codes [out, n_groups, g] of some rows by the inverse factor [in, in] of H in an order."""
    n_in = len(order)
    w = grids.from_groups(groups, n_in)[:, order]
    group_of = order // groups.shape[2]
    steps, zeros = (t[:, :, 0][:, group_of] for t in (step, zero))
    codes = torch.empty_like(w)
    wide = PANEL if w.is_cuda else COLUMNS
    for first in range(0, n_in, wide):
        end = min(first + wide, n_in)
        errors = w.new_empty(len(w), end - first)
        for start in range(first, end, COLUMNS):
            now, later = slice(start, min(start + COLUMNS, end)), slice(start + COLUMNS, end)
            left = errors[:, start - first : start - first + COLUMNS]
            feed_back(w[:, now], factor[now, now], steps[:, now], zeros[:, now], grid, codes[:, now], left)
            w[:, later].addmm_(left, factor[now, later], alpha=-1)
        w[:, end:].addmm_(errors, factor[first:end, end:], alpha=-1)
    return grids.to_groups(torch.empty_like(codes).index_copy_(1, order, codes), grid.group_size)
