"""A rounded weight made better in place: codes by coordinate descent, steps by least squares.

Both lower tr((W - Ŵ) H (W - Ŵ)ᵀ), of any rounding's result, H being the second moment with FLOOR of its mean diagonal
added to it. Shapes as in grids: groups [out, n_groups, g], step and zero [out, n_groups, 1].
"""

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.context import AT_ONCE, row_chunks
from quant.recipe.grids import Codes, Grid
from quant.recipe.kernels import COLUMNS, column_kernels
from quant.runtime import products
from quant.runtime.replay import replayed

FLOOR = 1e-4
NARROWEST, WIDEST = 0.3, 3.0  # of the old step: a new one outside of them is not taken
NEXT = 16  # columns that hear of each one at once on a CPU; a block's others hear of so many together
SMALL = 2**24  # bytes of a linear whose launches are recorded
PANEL = 512  # columns within which they do on a GPU; those beyond hear of all of them at once
RIDGE = 1e-9  # of a row's mean squared group: groups of zero codes say nothing of their step
SMALLEST = 1e-37  # float32's smallest normal number is 1.2e-38


def sweep(left: Tensor, inner: Tensor, codes: Tensor, steps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Moves the columns of codes [out, width] in turn to the nearest point of c_j + r_j/(H_jj·step_j), each hearing of
    those before it. left: r = (W - Ŵ)H [out, width]; inner: H's block. Returns the codes and the change of Ŵ."""
    if left.is_cuda and left.dtype == torch.float32 and (fused := column_kernels()) is not None:
        return fused.sweep(left, inner, codes, steps, grid)
    left, codes, steps = (t.T.contiguous() for t in (left, codes, steps))  # a column's numbers together
    found, moved, points = torch.empty_like(codes), torch.empty_like(codes), grid.points
    slopes, later = steps * inner.diagonal()[:, None], inner.triu(1)
    slopes = torch.copysign(slopes.abs().clamp_(min=SMALLEST), slopes) if grid.signed else slopes.clamp_(min=SMALLEST)
    for start in range(0, len(left), NEXT):
        now, rest = slice(start, start + NEXT), left[start : start + NEXT]
        for row, slope, code, step, new, change, onto in zip(
            rest, slopes[now], codes[now], steps[now], found[now], moved[now], later[now, now], strict=True
        ):
            points.nearest_(torch.addcdiv(code, row, slope, out=new))
            torch.sub(new, code, out=change).mul_(step)
            rest.addr_(onto, change, alpha=-1)
        left[start + NEXT :].addmm_(inner[now, start + NEXT :].T, moved[now], alpha=-1)
    return found.T, moved.T


def descend(w: Tensor, codes: Tensor, steps: Tensor, zeros: Tensor, grid: Grid, moment: Tensor) -> Tensor:
    """One sweep over all columns by falling H_jj; everything [out, in] but moment [in, in]."""
    order = moment.diagonal().argsort(descending=True, stable=True)
    difference = grids.decode(codes, steps, zeros).neg_().add_(w)
    if w.is_cuda:  # H is put into its order a panel at a time: two of them are too large for a card
        left, ordered = products.linear(difference, moment)[:, order], None
    else:
        ordered = moment[order][:, order]
        left = products.linear(difference[:, order], ordered)  # which is symmetric
    del difference
    codes, steps = (t[:, order] for t in (codes, steps))
    found = torch.empty_like(codes)
    n_in, wide = len(order), PANEL if w.is_cuda else COLUMNS
    for first in range(0, n_in, wide):
        end = min(first + wide, n_in)
        panel = moment[order[first:end]][:, order] if ordered is None else ordered[first:end]
        changes = w.new_empty(len(w), end - first)
        for start in range(first, end, COLUMNS):
            now, later = slice(start, min(start + COLUMNS, end)), slice(start + COLUMNS, end)
            inside = slice(start - first, start - first + COLUMNS)
            found[:, now], moved = sweep(left[:, now], panel[inside, now], codes[:, now], steps[:, now], grid)
            changes[:, inside] = moved
            left[:, later].addmm_(moved, panel[inside, later], alpha=-1)
        left[:, end:].addmm_(changes, panel[:, end:], alpha=-1)
    return torch.empty_like(found).index_copy_(1, order, found)


def whole_matrix(units: Tensor, moment: Tensor) -> Tensor:
    """`step_system`'s A of all groups at once."""
    n_out, n_groups, size = units.shape
    missing = n_groups * size - len(moment)
    moment = torch.nn.functional.pad(moment, (0, missing, 0, missing)) if missing else moment
    product = units.transpose(0, 1) @ moment.view(n_groups, size, -1)  # [n_groups, out, in]
    upper = (units * product.view(n_groups, n_out, n_groups, size)).sum(-1).transpose(0, 1).triu()
    return upper + upper.triu(1).mT


def step_system(units: Tensor, pull: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """A [out, n_groups, n_groups] and b [out, n_groups] of each row's error s A sᵀ - 2 s·b + …, s its steps.

    units: codes - zero, in groups, zeros where padded; pull: W·H [out, in].
    """
    n_out, n_groups, size = units.shape
    n_in = pull.shape[1]
    group_size = size if n_groups > 1 else -1
    right = (units * grids.to_groups(pull, group_size)).sum(-1)
    if units.is_cuda and 4 * n_groups * n_out * n_groups * size <= AT_ONCE:  # few launches in place of many
        return whole_matrix(units, moment), right
    matrix = units.new_zeros(n_out, n_groups, n_groups)
    for g in range(n_groups):
        own = slice(g * size, min((g + 1) * size, n_in))
        product = products.linear(units[:, g, : own.stop - own.start], moment[own.start :, own])
        matrix[:, g, g:] = (units[:, g:] * grids.to_groups(product, group_size)).sum(-1)
    return matrix + matrix.triu(1).mT, right


def fit_steps(pull: Tensor, held: Codes, moment: Tensor, stored: grids.Stored | None = None) -> Tensor:
    """Each row's steps by least squares, those of a block's rows as one, as the file will give them (stored); a row
    that would be no better keeps its own. pull: W·H [out, in]."""
    codes, step, zero, grid, n_in, _ = held
    rows = max(1, AT_ONCE // (8 * codes.shape[1] ** 2 * grid.rows)) * grid.rows
    if len(codes) > rows:  # whose systems would take too much memory
        parts = [slice(first, first + rows) for first in range(0, len(codes), rows)]
        own = (stored if stored is None else partial(within, stored, each, len(codes)) for each in parts)
        return torch.cat(
            [fit_steps(pull[each], held.of(each), moment, some) for each, some in zip(parts, own, strict=True)]
        )
    group_size = codes.shape[2] if codes.shape[1] > 1 else -1
    units = grids.to_groups(grids.from_groups(codes - zero, n_in), group_size)
    matrix, right = (grids.over_rows(t.double(), grid, torch.sum) for t in step_system(units, pull, moment))
    old = step[:, :, 0].double()
    matrix = matrix * old[:, :, None] * old[:, None, :]  # of s/old, so that a ridge means the same to all
    gradient = right * old - matrix.sum(2)
    ridge = RIDGE * matrix.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
    factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ridge[:, None].expand_as(old)))
    change = solved(factor, gradient) + 1
    inside = (change >= NARROWEST) & (change <= WIDEST) & (failed == 0)[:, None]
    new = torch.where(inside, change * old, old).to(step.dtype)[:, :, None]
    new = new if stored is None else stored(new)
    relative = new[:, :, 0].double() / old - 1
    gain = (relative[:, None, :] @ matrix @ relative[:, :, None])[:, 0, 0] - 2 * (relative * gradient).sum(1)
    return torch.where((gain < 0)[:, None, None], new, step)


def solved(factor: Tensor, right: Tensor) -> Tensor:
    """x [n, k] of LLᵀx = right, L [n, k, k]."""
    if not factor.is_cuda:
        return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    # MAGMA, by which many at once are solved there, cannot be recorded
    half = torch.linalg.solve_triangular(factor, right[:, :, None], upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)[:, :, 0]


def of_columns(t: Tensor, groups: Tensor, n_in: int) -> Tensor:
    """A group's number [out, n_groups, 1] for each of its columns, [out, in]."""
    return grids.from_groups(t.expand_as(groups), n_in)


def floored(moment: Tensor) -> Tensor:
    """FLOOR of the mean diagonal added to it, in place."""
    moment.diagonal().add_((FLOOR * moment.diagonal().mean()).clamp_(min=SMALLEST))
    return moment


def within(stored: grids.Stored, rows: slice | Tensor, n_out: int, step: Tensor) -> Tensor:
    """What `stored`, which knows all rows, makes of the steps of some."""
    whole = step.new_ones(n_out, *step.shape[1:])
    whole[rows] = step
    return stored(whole)[rows]


def refine(groups: Tensor, held: Codes, moment: Tensor, rounds: int, stored: grids.Stored | None = None) -> Codes:
    """Codes and steps after so many rounds of `descend` and `fit_steps`, towards the weight in groups. Overwrites
    moment's diagonal."""
    moment, grid = floored(moment), held.grid
    parts = row_chunks(groups, grid.rows)
    if len(parts) == 1:
        work = partial(refined, grid, rounds)
        codes, step = as_recorded(work, ("refine", grid, rounds), stored, groups, *held[:3], moment)
        return held._replace(codes=codes, step=step)
    found = []
    for rows in parts:
        own = stored if stored is None else partial(within, stored, rows, len(groups))
        found.append(refined(grid, rounds, own, groups[rows], *held.of(rows)[:3], moment))
    codes, step = (torch.cat(each) for each in zip(*found, strict=True))
    return held._replace(codes=codes, step=step)


def as_recorded(
    work: Callable[..., tuple[Tensor, ...]], kind: Hashable, stored: grids.Stored | None, *given: Tensor
) -> tuple[Tensor, ...]:
    """work(stored, *given), of a small linear recorded where that can be, which many launches of little work make up.
    given: the weight in groups first; kind: what else tells such works apart."""
    known = stored.keywords if isinstance(stored, partial) and stored.func is grids.stored_step else {}
    if given[0].nbytes > SMALL or (stored is not None and not known):
        return work(stored, *given)
    rows = known.get("rows")

    def function(*every: Tensor) -> tuple[Tensor, ...]:
        own = {} if rows is None else {"rows": every[-1]}
        return work(partial(grids.stored_step, **known | own) if known else None, *every[: len(given)])

    every = given if rows is None else (*given, rows)
    kinds = kind, known.get("dtype"), known.get("unit"), *((t.shape, t.dtype) for t in every)
    return replayed(kinds, function, *every)


def refined(
    grid: Grid,
    rounds: int,
    stored: grids.Stored | None,
    groups: Tensor,
    codes: Tensor,
    step: Tensor,
    zero: Tensor,
    moment: Tensor,
) -> tuple[Tensor, Tensor]:
    """`refine`, of some rows, by a moment whose diagonal is raised."""
    n_in = len(moment)
    w = grids.from_groups(groups, n_in)
    zeros, pull = of_columns(zero, groups, n_in), products.linear(w, moment)
    for _ in range(rounds):
        flat = descend(w, grids.from_groups(codes, n_in), of_columns(step, groups, n_in), zeros, grid, moment)
        codes = grids.to_groups(flat, grid.group_size)
        step = fit_steps(pull, Codes(codes, step, zero, grid, n_in), moment, stored)
    return codes, step
