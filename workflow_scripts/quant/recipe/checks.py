"""What a salience, a rounding or a score gives back, before it is taken for what it is called: a mistake in one that is
new would else be a checkpoint like any other."""

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe.context import AT_ONCE, Rounded
from quant.recipe.grids import Grid


def check_importance(found: object, n: int, what: str, least: float) -> Tensor:
    """A number for each of n channels, none below least; what: `salience: NAME`."""
    if not isinstance(found, Tensor) or tuple(found.shape) != (n,):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"{what}: gives {shape} where a number for each channel, [{n}], is due; mend its function")
    low, high = torch.stack([found.min(), found.max()]).tolist()  # NaN where there is one
    if not (low >= least and -torch.inf < low and high < torch.inf):
        of = "NaN" if low != low else f"{high if high == torch.inf else low:g}"
        wanted = "finite numbers" if least < 0 else f"finite numbers from {least:g} on"
        raise InputError(f"{what}: gives {of} to a channel, where {wanted} are due; mend its function")
    return found


def check_rounded(found: object, shape: torch.Size, grid: Grid, what: str) -> Rounded:
    """Codes of a shape [out, n_groups, g], each a value of the grid; what: `rounding: NAME`."""
    if not isinstance(found, Rounded) or found.codes.shape != shape:
        gives = f"codes {list(found.codes.shape)}" if isinstance(found, Rounded) else f"a {type(found).__name__}"
        due = f"Rounded(codes) of {list(shape)} is due"
        raise InputError(f"{what}: gives {gives} where {due}; mend its function")
    for codes in found.codes.split(max(1, AT_ONCE // max(1, found.codes[0].nbytes))):
        off = codes != grid.points.nearest_(codes.clone())
        if off.any():
            low, high = grid.points.lowest, grid.points.highest
            raise InputError(
                f"{what}: gives the code {codes[off][0].item():g}, which is no value of its grid ({low:g} to {high:g}"
                f"{', whole numbers' if grid.uniform else ''}); mend its function (grid.points.nearest_ rounds to them)"
            )
    return found
