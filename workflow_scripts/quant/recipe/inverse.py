"""The factor of a second moment's inverse."""

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe.context import AT_ONCE
from quant.recipe.triangles import inverse_upper

LARGEST_DAMP = 1.0


def inverse_factor(moment: Tensor, damp: float, flipped: bool = False) -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + damp·mean(diag)·I)⁻¹, and the damp it took. Overwrites H [in, in];
    flipped: its rows and columns are given from the last to the first.

    The flip of H is factored and flipped back, so that one Cholesky factorisation and one triangular inverse do. A
    matrix that is not positive definite is damped ten times more and tried again, up to 1; then it is refused.
    """
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device), damp
    # near 1 by a power of four, which changes no digit: H of a tiny input has no inverse in float32
    root = torch.exp2(torch.floor(torch.log2(mean) / 2))
    moment.div_(root).div_(root)
    if not flipped:
        flip_(moment)
    own, mean = moment.diagonal().clone(), mean / root / root
    while damp <= LARGEST_DAMP:
        moment.diagonal().copy_(own + damp * mean)
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            inverse = inverse_flipped(lower)
            if torch.isfinite(torch.stack([inverse.amin(), inverse.amax()])).all():
                return inverse.div_(root), damp
        damp *= 10
    raise InputError(
        f"a second moment is not positive definite even with damp {damp / 10:g}; use more calibration text"
    )


def flip_(matrix: Tensor) -> Tensor:
    """Rows and columns of [n, n] from the last to the first, in its place."""
    n, size = len(matrix), max(1, AT_ONCE // (4 * matrix.element_size() * len(matrix)))  # two, and the two before
    for first in range(0, (n + 1) // 2, size):
        end = min(first + size, (n + 1) // 2)
        above, below = matrix[first:end].flip(0, 1), matrix[n - end : n - first].flip(0, 1)
        matrix[first:end], matrix[n - end : n - first] = below, above
    return matrix


def inverse_flipped(lower: Tensor) -> Tensor:
    """Of a lower triangular L, as LAPACK leaves it by columns, the inverse of its flip; a GPU overwrites it."""
    if lower.is_cuda:  # L by columns is its transpose by rows
        return flip_(inverse_upper(lower.mT, overwrite=True)).mT
    return inverse_upper(lower.flip(0, 1))
