"""The weight that does best, on a quantised model's inputs, what the original's did on its own.

GPTAQ (Li et al. 2025, arXiv 2504.02692) and Qronos (Zhang et al. 2025, arXiv 2505.11695): rounding an early linear
moves the inputs of the later ones, and those can take part of that back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.calibration.parts import row_parts
from quant.recipe.inverse import inverse_factor
from quant.runtime import products

DAMP = 0.01  # of the mean diagonal


def corrected(weights: Sequence[Tensor], cross: Tensor, moment: Tensor, share: float) -> list[Tensor]:
    """W* = W + a·D of each weight [out, in] that reads the same inputs, with D = W·(C - H̃)·(H̃ + λI)⁻¹.

    D minimises E‖Wx - (W + D)x̃‖² + λ‖D‖², λ = DAMP·mean(diag): where x̃ is x, or says nothing, W stays. cross: C =
    XᵀX̃/N [in, in], X the original's inputs, X̃ the quantised model's, or W·C [out, in] of one weight with fewer outputs
    than inputs, which is overwritten; moment: H̃ = X̃ᵀX̃/N; both [parts, …] where parts of the rows have their own; share:
    a, 0 to 1.
    """
    if moment.ndim == 3:
        parts = [list(zip(row_parts(len(w), len(moment)), cross, moment, strict=True)) for w in weights]
        return [
            torch.cat([corrected([w[rows]], c if len(c) == len(h) else c[rows], h, share)[0] for rows, c, h in own])
            for w, own in zip(weights, parts, strict=True)
        ]
    of_outputs = len(cross) < len(moment)
    cross -= products.linear(weights[0], moment) if of_outputs else moment
    if of_outputs or (cross.is_cuda and sum(map(len, weights)) < len(moment)):  # fewer products
        gaps = [cross] if of_outputs else [products.linear(w, cross.T) for w in weights]
        del cross  # before H̃ is factored
        factor, _ = inverse_factor(moment.clone(), DAMP)
        changes = [products.linear(products.linear(gap, factor), factor.T) for gap in gaps]
    else:
        factor, _ = inverse_factor(moment.clone(), DAMP)
        change = products.linear(products.linear(cross, factor), factor.T)
        changes = [products.linear(w, change.T) for w in weights]
    return [torch.add(w, change, alpha=share) for w, change in zip(weights, changes, strict=True)]
