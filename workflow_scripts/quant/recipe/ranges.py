"""What a checkpoint's number type can hold: scales that fold within its range, and codes that do not leave it."""

import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.grids import Grid


def foldable(scale: Tensor, values: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """scale [in], changed so that dtype can hold what it is folded into: values/scale, the largest number of each
    channel's producer, neither overflows nor vanishes, and columns·scale, the largest weight that reads it, does
    not overflow. As it is where that holds; all [in].

    All are first divided by one power of two, which changes no code; a channel that is still out of range is moved to
    its border.
    """
    kind = torch.finfo(dtype)
    least, most = kind.smallest_normal, kind.max / 4  # rounding may enlarge a number, and a step is a part of it
    there = values > 0
    lower, upper = values / most, torch.minimum(values / least, kind.max / columns)
    upper = torch.where(there, upper, kind.max / columns)
    if (scale >= lower).all() and (scale <= upper).all():
        return scale
    slack = torch.stack([(upper / scale).min(), (lower / scale).max()]).double()  # what it may be multiplied with
    factor = slack[0] if slack[0] < 1 else slack[1]
    power = torch.floor(torch.log2(factor)) if slack[0] < 1 else torch.ceil(torch.log2(factor))
    moved = scale * torch.exp2(power).to(scale.dtype)
    return torch.minimum(torch.maximum(moved, lower), torch.maximum(upper, lower))


def held(codes: Tensor, step: Tensor, zero: Tensor, grid: Grid, factor: Tensor, limit: float) -> Tensor:
    """codes [out, n_groups, g], moved towards zero until |ŵ|·factor is within limit; factor broadcasts to codes."""
    for _ in range(2**grid.bits):
        w = grids.decode(codes, step, zero)
        over = (w * factor).abs() > limit
        if not over.any():
            break
        codes = torch.where(over, grid.points.beside(codes, -torch.sign(w * step)), codes)
    return codes
