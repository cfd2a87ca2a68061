"""What a rounding is given besides the weight on its grid, and what it returns."""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
AT_ONCE = 2**27  # bytes of rows of a matrix that are worked on at once


@dataclass(frozen=True)
class Context:
    """Of the linear's inputs x: second_moment [in, in] and x_mean [in], where the recipe reads them; inverse [in] is
    1/s of the scale s in the weight, and generator what to draw from, on the CPU."""

    second_moment: Tensor | None = None
    x_mean: Tensor | None = None
    inverse: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def moment(self) -> Tensor:
        """H of the scaled inputs x/s [in, in]."""
        h = asked(self.second_moment, "moment")
        return h if self.inverse is None else self.inverse[:, None] * h * self.inverse

    @property
    def diagonal(self) -> Tensor:
        """Of H of the scaled inputs x/s [in]."""
        h = asked(self.second_moment, "moment").diagonal()
        return h if self.inverse is None else self.inverse * h * self.inverse

    def copied(self, order: Tensor | None = None) -> Tensor:
        """`moment`, its rows and columns in an order: the caller's own. Made by rows, so that nothing as large lies
        beside it."""
        h, inverse = asked(self.second_moment, "moment"), self.inverse
        if order is None and inverse is None:
            return h.clone()
        size = max(1, AT_ONCE // (h.element_size() * len(h)))
        found = torch.empty_like(h[:0] if size >= len(h) else h)
        for first in range(0, len(h), size):
            rows = slice(first, first + size) if order is None else order[first : first + size]
            part = h[rows] if inverse is None else inverse[rows, None] * h[rows] * inverse
            part = part if order is None else part[:, order]
            if size >= len(h):
                return part
            found[first : first + size] = part
        return found

    def importance(self, square: Tensor) -> Tensor:
        """E[(x/s)²] of E[x²] [in]."""
        return square if self.inverse is None else square * self.inverse**2

    @property
    def mean(self) -> Tensor:
        """E[x/s] [in]."""
        mean = asked(self.x_mean, "channels")
        return mean if self.inverse is None else mean * self.inverse


def row_chunks(groups: Tensor, multiple: int = 1) -> list[slice]:
    """Of rows [out, n_groups, g] that are worked on at once: on a GPU so many, a multiple, that what is made of them
    leaves room."""
    size = len(groups)
    if groups.is_cuda:
        size = -(-size // max(1, -(-groups.nbytes // AT_ONCE)))  # as equal as can be
        size += -size % multiple
    return [slice(first, first + size) for first in range(0, len(groups), size)]


def asked(value: Value | None, name: str) -> Value:
    """The value, where the recipe's files held it."""
    if value is None:
        raise ValueError(f"it reads {name}, which its entry of quant/recipe/choices.py does not name")
    return value


class Rounded(NamedTuple):
    """codes [out, n_groups, g], whole numbers in the weight's dtype; damp: what it took, where H was damped."""

    codes: Tensor
    damp: float | None = None


class Candidates(NamedTuple):
    """Nearest codes and second-nearest ones [out, n_groups, g]; of each weight [out, n_groups·g] its rounding distance,
    in steps, and the change m_j·step·sign of its row's error if it is moved: -1 and 0 where it may not be; and the
    rows' errors [out]."""

    codes: Tensor
    moved: Tensor
    distance: Tensor
    change: Tensor
    error: Tensor
