"""Random codes."""

import torch

from quant.checkpoints import packed
from quant.recipe import grids
from quant.recipe.grids import Grid


def codes_of(grid: Grid, n_out: int, n_in: int, seed: int = 0) -> packed.Codes:
    """Random codes over the whole range, the lowest and the highest among them."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n_out, n_in, generator=generator) * torch.rand(n_out, 1, generator=generator)
    groups = grids.to_groups(w, grid.group_size)
    step, zero = grids.fit(groups, grid)
    codes = grids.encode(groups, step, zero, grid)
    codes[0, 0, 0], codes[0, 0, 1] = grid.lowest, grid.highest
    return packed.Codes(codes, step, zero, grid, n_in)
