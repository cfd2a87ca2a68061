"""Second moments H = XᵀX/N [in, in]: summed, and what they say of a changed weight.

E‖Dx‖² = tr(D H Dᵀ) for any D [out, in]. H is symmetric, so products and sums touch only the blocks on and above its
diagonal, and files hold one of its triangles.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quant.runtime import products

COPIED = 2**27  # bytes of a matrix that a GPU has a copy of beside it, since launches take longer than what they do
NARROW_ROWS = 4096  # 16-bit rows summed in a matrix unit: an error of 3e-5 of the diagonal, seen on an H100


def dots(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Σ a·b along dim of two matrices."""
    if a.is_cuda:  # vecdot there is a batch of tiny matrix products
        return (a * b).sum(dim)
    return torch.linalg.vecdot(a, b, dim=dim)


def column_blocks(n: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the column blocks of a symmetric [n, n]: eight, none under 192 wide.

    A product with a symmetric matrix needs no block below the diagonal, which saves up to 44 % of it.
    """
    width = max(192, -(-n // 8))
    for start in range(0, n, width):
        yield start, min(start + width, n)


def add_outer(total: Tensor, x: Tensor) -> None:
    """total += xᵀx for x [n, in], in blocks on and above the diagonal of total [in, in], float32.

    A GPU's matrix units take 16-bit factors as they are: their products are exact in float32, but sums of them are cut,
    so few rows are summed there at once.
    """
    narrow = x.is_cuda and x.dtype.itemsize == 2
    if products.takes(x.T, x.T):
        x = x.T.contiguous().T  # once for all blocks
    for rows in x.split(NARROW_ROWS) if narrow else (x.float(),):
        for start, stop in column_blocks(len(total)):
            block, left, right = total[:stop, start:stop], rows[:, :stop], rows[:, start:stop]
            if narrow:
                torch.addmm(block, left.T, right, torch.float32, out=block)
            else:
                products.add_product(block, left, right)


def mirror(total: Tensor) -> Tensor:
    """Fills the blocks below the diagonal from those above."""
    for start, stop in column_blocks(len(total)):
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def to_triangle(moment: Tensor) -> Tensor:
    """One triangle of a symmetric [n, n] as a rectangle [⌈n/2⌉, n + 1], as files hold it: row r has H[n-1-r, n-1-r:]
    backwards, then H[r, r:]."""
    n = len(moment)
    rows = (n + 1) // 2
    folded = torch.nn.functional.pad(moment[n - rows :].flip(0, 1).tril_(), (0, 1))
    folded[:, 1:] += moment[:rows].triu()
    return folded


def from_triangle(folded: Tensor) -> Tensor:
    """The symmetric [n, n] of a `to_triangle` [⌈n/2⌉, n + 1]."""
    rows, n = folded.shape[0], folded.shape[1] - 1
    moment = folded.new_empty(n, n)
    moment[n - rows :] = folded[:, :n].tril().flip(0, 1)
    torch.triu(folded[:, 1:], out=moment[:rows])
    if moment.is_cuda and moment.nbytes <= COPIED:
        return moment.add_(moment.triu(1).T)
    for start, stop in column_blocks(n):
        own = moment[start:stop, start:stop]
        own.add_(own.triu(1).T)
    return mirror(moment)


def halves(moment: Tensor) -> list[Tensor]:
    """L with L + Lᵀ = H: of each column block the rows of H [width, stop] up to the diagonal, half of those on it."""
    blocks = [moment[start:stop, :stop].clone() for start, stop in column_blocks(len(moment))]
    for block in blocks:
        block[:, -len(block) :] *= 0.5
    return blocks


def row_errors(difference: Tensor, lower: Sequence[Tensor]) -> Tensor:
    """Each output's error d_k H d_kᵀ [out], from D = W-Ŵ [out, in] and halves(H)."""
    total = difference.new_zeros(difference.shape[0])
    for block in lower:
        width, stop = block.shape
        product = products.linear(difference[:, :stop], block)
        total += dots(product, difference[:, stop - width : stop], 1)
    return total.mul_(2)


def layer_error(difference: Tensor, moment: Tensor) -> float:
    """tr(D H Dᵀ) = E‖Dx‖², summed in float64."""
    return row_errors(difference, halves(moment)).sum(dtype=torch.float64).item()
