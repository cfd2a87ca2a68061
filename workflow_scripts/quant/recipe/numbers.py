"""Number formats: the values that codes have, and the steps that a file can hold.

A code is a value in units of its step: a whole number, or one of those that a small float or a table has. So every
rounding asks the same two things of a format, the nearest value and the one beside it (docs/methods.md, Number
formats).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quant.recipe.formats import INT


class Points(Protocol):
    """The values of a code, ascending from lowest to highest."""

    @property
    def lowest(self) -> float: ...

    @property
    def highest(self) -> float: ...

    @property
    def gap(self) -> float:
        """Between a value and the next, on average."""
        ...

    def nearest_(self, x: Tensor, zero: Tensor | None = None) -> Tensor:
        """x in steps, rounded in place to its nearest code, which is `zero` further where there is one."""

    def beside(self, codes: Tensor, direction: Tensor) -> Tensor:
        """The next code above (1) or below (-1); the same at the end."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers; ties go to even."""

    lowest: int
    highest: int

    @property
    def gap(self) -> float:
        return 1.0

    def nearest_(self, x: Tensor, zero: Tensor | None = None) -> Tensor:
        x.round_()
        if zero is not None:
            x += zero
        return x.clamp_(self.lowest, self.highest)

    def beside(self, codes: Tensor, direction: Tensor) -> Tensor:
        return (codes + direction).clamp_(self.lowest, self.highest)


@dataclass(frozen=True)
class Listed:
    """Listed values about 0, the zero point; ties go to the value whose place from the one nearest to 0 is even, which
    of a float's is the one with an even last digit."""

    values: tuple[float, ...]

    @property
    def lowest(self) -> float:
        return self.values[0]

    @property
    def highest(self) -> float:
        return self.values[-1]

    @property
    def gap(self) -> float:
        return (self.highest - self.lowest) / (len(self.values) - 1)

    def nearest_(self, x: Tensor, zero: Tensor | None = None) -> Tensor:
        values, borders = tables(self.values, x.dtype, x.device)
        return x.copy_(values[torch.bucketize(x, borders)])

    def beside(self, codes: Tensor, direction: Tensor) -> Tensor:
        values, _ = tables(self.values, codes.dtype, codes.device)
        place = torch.bucketize(codes.contiguous(), values) + direction.long()
        return values[place.clamp_(0, len(values) - 1)]


@functools.cache
def tables(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The values, and the largest number that goes to each but the last."""
    points = torch.tensor(values, dtype=dtype, device=device)
    borders = (points[:-1] + points[1:]) / 2
    from_zero = torch.arange(len(values), device=device) - values.index(min(values, key=abs))
    upwards = from_zero[1:] % 2 == 0  # a tie goes to the upper one
    below = torch.nextafter(borders, torch.full_like(borders, -torch.inf))
    return points, torch.where(upwards, below, borders)


def small_float(exponents: int, mantissa: int, bias: int, highest: float) -> tuple[float, ...]:
    """The finite values of a float with so many bits of each, ascending, one zero among them."""
    units = 2**mantissa
    found = {
        (units * (e > 0) + m) / units * 2.0 ** (max(e, 1) - bias) for e in range(2**exponents) for m in range(units)
    }
    magnitudes = sorted(value for value in found if value <= highest)
    return tuple([-value for value in magnitudes[:0:-1]] + magnitudes)


E2M1 = small_float(2, 1, 1, 6.0)  # 0, 0.5, 1, 1.5, 2, 3, 4, 6
E4M3 = small_float(4, 3, 7, 448.0)  # torch.float8_e4m3fn's
# quantiles of the normal distribution, a 0 among them (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# IQ4_NL's of llama.cpp, ggml-common.h
IQ4_NL = tuple(map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)))


@dataclass(frozen=True)
class Steps:
    """What a file holds of a step: digits(step), as many as it keeps, None where they are too many to choose among, or
    depend on others' steps; held(step, dtype, unit), the step that is read back of a model stored in dtype; together:
    whether they do depend on others'."""

    digits: Callable[[Tensor], Tensor] | None
    held: Callable[[Tensor, torch.dtype, float], Tensor]
    together: bool = False


def in_dtype(step: Tensor, dtype: torch.dtype, unit: float) -> Tensor:
    """In the model's own type: one too small becomes its smallest number, one too large its largest."""
    kind = torch.finfo(dtype)
    least = max(kind.smallest_normal * kind.eps, torch.finfo(torch.float32).smallest_normal)
    return step.to(dtype).clamp_(min=least, max=kind.max).to(step.dtype)


def e4m3_digits(step: Tensor) -> Tensor:
    """To four binary digits."""
    digits, exponent = torch.frexp(step)
    return torch.ldexp((digits * 16).round_(), exponent - 4)


def in_e4m3(step: Tensor, dtype: torch.dtype, unit: float) -> Tensor:
    """step·unit in E4M3, over unit, a power of two."""
    kept = (step * unit).clamp_(min=2.0**-9, max=448.0).to(torch.float8_e4m3fn)
    return kept.to(step.dtype) / unit


def power_of_two(step: Tensor) -> Tensor:
    """The least power of two of which the largest weight, 6 of these steps, is at most 7, which is rounded to 6: what
    compressed-tensors takes, and twice or once what the standard (OCP MX 1.0) does."""
    digits, exponent = torch.frexp(step * (6 / 7))
    return torch.ldexp(torch.ones_like(step), torch.where(digits > 0.5, exponent, exponent - 1))


def in_e8m0(step: Tensor, dtype: torch.dtype, unit: float) -> Tensor:
    """Of a byte of exponent, what bfloat16 multiplies by 6."""
    return power_of_two(step).clamp_(min=2.0**-126, max=2.0**125)


def in_dtype_signed(step: Tensor, dtype: torch.dtype, unit: float) -> Tensor:
    return torch.copysign(in_dtype(step.abs(), dtype, unit), step)


MANY, MOST = 16, 31  # steps of Q3_K that are multiples of one number, and the largest of them
LEAST = 2.0**-19  # whose six digits float16 holds


def rounded_to(x: Tensor, digits: int) -> Tensor:
    """Positive numbers to so many binary digits."""
    part, exponent = torch.frexp(x)
    return torch.ldexp((part * 2**digits).round_(), exponent - digits)


def times_one(step: Tensor, digits: int) -> tuple[Tensor, Tensor]:
    """Of steps [out, n_groups, 1], signs aside, one number for each MANY neighbours [out, n_blocks, 1], of so many
    digits, and how many times it each is, 1 to MOST [out, n_blocks, MANY]. Steps that are so already stay."""
    n_out, n_groups = step.shape[:2]
    padded = torch.nn.functional.pad(step[:, :, 0].abs(), (0, -n_groups % MANY)).view(n_out, -1, MANY)
    top = padded.amax(2, keepdim=True).clamp_(min=MOST * LEAST)
    one, settled = rounded_to(top / MOST, digits), torch.zeros_like(top, dtype=torch.bool)
    for largest in range(MOST, MOST // 2, -1):
        own = top / largest
        exact = (rounded_to(own, digits) == own) & ((padded / own).round() * own == padded).all(2, keepdim=True)
        one, settled = torch.where(exact & ~settled, own, one), settled | exact
    return one, (padded / one).round_().clamp_(1, MOST)


def in_six_bits(step: Tensor, dtype: torch.dtype, unit: float) -> Tensor:
    """Steps [out, n_groups, 1] as Q3_K has them: 6 bits, with a sign, times one number, which has five digits fewer
    than dtype, so that dtype holds their products; float16's at most, since it is stored in that."""
    one, times = times_one(step, {torch.bfloat16: 8}.get(dtype, 11) - 5)
    return torch.copysign((times * one).flatten(1)[:, : step.shape[1], None], step)


OF_MODEL = Steps(None, in_dtype)
STEPS: dict[str, Steps] = {
    INT: OF_MODEL,
    "nvfp4": Steps(e4m3_digits, in_e4m3),
    "mxfp4": Steps(power_of_two, in_e8m0),
    "fp8": OF_MODEL,
    "int8": OF_MODEL,
    "nf4": OF_MODEL,
    "iq4_nl": Steps(None, in_dtype_signed),
    "q3_k": Steps(None, in_six_bits, together=True),
}
VALUES: dict[str, tuple[float, ...]] = {"nvfp4": E2M1, "mxfp4": E2M1, "fp8": E4M3, "nf4": NF4, "iq4_nl": IQ4_NL}


@functools.cache
def points_of(name: str, bits: int, symmetric: bool) -> Points:
    """The values of a format's codes."""
    if name in VALUES:
        return Listed(VALUES[name])
    return Whole(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else Whole(0, 2**bits - 1)


def unit_of(largest: float) -> float:
    """By what steps are multiplied before they are rounded to E4M3: the power of two that takes the largest of them to
    64 … 128, between the ends 2⁻⁶ and 448 of its normal numbers. A power of two rounds nothing, and its products are
    exact in bfloat16."""
    if not largest > 0:
        return 1.0
    _, exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))
    return float(2.0 ** min(max(7 - int(exponent), -126), 126))
