"""The factor of a second moment's inverse."""

import torch
from torch import Tensor

from quant.errors import InputError
from quant.recipe.triangles import inverse_upper

LARGEST_DAMP = 1.0


def inverse_factor(moment: Tensor, damp: float) -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + damp·mean(diag)·I)⁻¹, and the damp it took.

    H is flipped, factored and flipped back, so that one Cholesky factorisation and one triangular inverse do. A matrix
    that is not positive definite is damped ten times more and tried again, up to 1; then it is refused.
    """
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device), damp
    # near 1 by a power of four, which changes no digit: H of a tiny input has no inverse in float32
    root = torch.exp2(torch.floor(torch.log2(mean) / 2))
    moment = moment / root / root
    diagonal = moment.diagonal().mean()
    while damp <= LARGEST_DAMP:
        damped = moment.clone()
        damped.diagonal().add_(damp * diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            inverse = inverse_upper(lower.flip(0, 1))
            if torch.isfinite(inverse).all():
                return inverse / root, damp
        damp *= 10
    raise InputError(
        f"a second moment is not positive definite even with damp {damp / 10:g}; use more calibration text"
    )
