"""Number formats against slow lists of their values in float64, and every rounding on them."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from quant.calibration.reader import LinearStatistics
from quant.methods.quantize import in_host_memory
from quant.methods.with_model.tune import TunedLinear
from quant.recipe import grids
from quant.recipe.context import Context
from quant.recipe.functions import function_of
from quant.recipe.grids import CLIP_FACTORS, Codes, Grid
from quant.recipe.linear import round_linear
from quant.recipe.numbers import E2M1, E4M3, IQ4_NL, NF4, unit_of
from quant.recipe.ranges import held
from quant.recipe.recipe import Recipe
from quant.recipe.refine import refine
from quant.recipe.search import Target, nearest, scale_for, search_scale
from tests.unit.recipe.cases import PLAIN

GRIDS = {
    "nvfp4": Grid(4, 16, True, "nvfp4"),
    "mxfp4": Grid(4, 32, True, "mxfp4"),
    "fp8": Grid(8, -1, True, "fp8"),
    "fp8_blocks": Grid(8, 128, True, "fp8"),
    "nf4": Grid(4, 24, True, "nf4"),
    "nf4_rows": Grid(4, -1, True, "nf4"),
    "int8": Grid(8, -1, True, "int8"),
    "iq4_nl": Grid(4, 32, True, "iq4_nl"),
}
SHAPES = [(5, 64), (3, 41), (131, 150)]  # the last has two blocks of rows and of inputs, neither of them whole


def slow_e4m3() -> list[float]:
    """By each byte: sign, 4 bits of exponent, 3 of mantissa; 0x7f and 0xff are no numbers."""
    found = set()
    for byte in set(range(256)) - {0x7F, 0xFF}:
        sign, exponent, mantissa = byte >> 7, (byte >> 3) & 15, byte & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        found.add(-size if sign and size else size)
    return sorted(found)


def slow_nf4() -> list[float]:
    """QLoRA's quantiles: 8 of the upper half, 7 of the lower, and 0, over the largest."""
    offset = 0.9677083
    upper, lower = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    found = np.array(sorted([*upper, 0.0, *lower]))
    return list(found / found.max())


def slow_nearest(x: float, values: list[float]) -> float:
    return min(values, key=lambda value: abs(value - x))


def slow_step(largest: float, name: str, unit: float) -> float:
    """As a file has it: of a model in float32, of E4M3, of powers of two."""
    step = largest / {"nvfp4": 6.0, "mxfp4": 6.0, "fp8": 448.0, "int8": 127.0, "nf4": 1.0, "iq4_nl": 127.0}[name]
    step = step or (2.0**-24 if name == "iq4_nl" else 1.0)
    if name == "nvfp4":
        return slow_nearest(min(max(step * unit, 2.0**-9), 448.0), slow_e4m3()) / unit
    if name == "mxfp4":
        return min(2.0**e for e in range(-126, 126) if 6 * step < 7 * 2.0**e)
    return step


def slow_blocks(n_out: int, n_in: int, grid: Grid) -> list[tuple[range, range]]:
    """Rows and inputs that share a step."""
    size = n_in if grid.group_size == -1 else grid.group_size
    rows = 128 if grid.format == "fp8" and grid.group_size > 0 else 1
    starts = itertools.product(range(0, n_out, rows), range(0, n_in, size))
    return [(range(i, min(i + rows, n_out)), range(j, min(j + size, n_in))) for i, j in starts]


def slow_rounded(w: np.ndarray, grid: Grid, unit: float, square: np.ndarray | None = None) -> np.ndarray:
    """Nearest points of the full range, or of the one that leaves least Σ square·(w - ŵ)²."""
    values, out = sorted(set(values_of(grid))), np.zeros(w.shape)
    for rows, inputs in slow_blocks(*w.shape, grid):
        block = w[np.ix_(rows, inputs)]
        least = np.inf
        for factor in [1.0] if square is None else CLIP_FACTORS:
            step = slow_step(float(np.abs(block).max()) * factor, grid.format, unit)
            step *= -1 if grid.format == "iq4_nl" and block.max() > -block.min() else 1  # the longer side is below 0
            found = np.array([[slow_nearest(x / step, values) * step for x in row] for row in block.tolist()])
            error = 0.0 if square is None else float(((block - found) ** 2 * square[list(inputs)]).sum())
            if error < least:
                least, out[np.ix_(rows, inputs)] = error, found
    return out


def values_of(grid: Grid) -> list[float]:
    known = {"nvfp4": list(E2M1), "mxfp4": list(E2M1), "fp8": slow_e4m3(), "nf4": list(NF4), "iq4_nl": list(IQ4_NL)}
    return [float(code) for code in range(-128, 128)] if grid.format == "int8" else known[grid.format]


def case(n_out: int, n_in: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight with rows of several sizes, one of them zeros, and a second moment."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n_out, n_in)) * 10.0 ** rng.integers(-2, 2, size=(n_out, 1))
    w[1] = 0.0
    x = rng.normal(size=(2 * n_in, n_in)) * rng.uniform(0.1, 3, size=n_in) + 0.3
    return w, x


def stored_of(grid: Grid, w: np.ndarray) -> tuple[grids.Stored, float]:
    unit = unit_of(float(np.abs(w).max()) / 6) if grid.format == "nvfp4" else 1.0
    return partial(grids.stored_step, dtype=torch.float32, steps=grid.steps, unit=unit), unit


def on_grid(w: np.ndarray, grid: Grid, x: np.ndarray | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Groups, step and zero; clipped by the inputs where they are given."""
    groups = grids.to_groups(torch.from_numpy(w), grid.group_size)
    stored, _ = stored_of(grid, w)
    square = None if x is None else torch.from_numpy((x**2).mean(0))
    step, zero = grids.fit_range(groups, grid, square, stored)
    return groups, stored(step), zero


def error_of(w: np.ndarray, codes: Tensor, step: Tensor, moment: np.ndarray) -> float:
    found = grids.from_groups(codes * step, w.shape[1]).numpy()
    return float(np.trace((w - found) @ moment @ (w - found).T))


def test_values_are_those_of_the_standards() -> None:
    assert [value for value in E2M1 if value >= 0] == [0, 0.5, 1, 1.5, 2, 3, 4, 6] and len(E2M1) == 15
    assert list(E4M3) == slow_e4m3()
    np.testing.assert_allclose(NF4, slow_nf4(), atol=2e-7)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert sorted(set(every[every.isfinite()].tolist())) == list(E4M3)


@pytest.mark.parametrize("values", [E2M1, E4M3, NF4], ids=["e2m1", "e4m3", "nf4"])
def test_nearest_and_beside(values: tuple[float, ...]) -> None:
    grid = {E2M1: GRIDS["nvfp4"], E4M3: GRIDS["fp8"], NF4: GRIDS["nf4"]}[values]
    points, inside = grid.points, torch.tensor(values)
    x = torch.linspace(1.1 * values[0], 1.1 * values[-1], 4001)
    found = points.nearest_(x.clone())
    assert found.tolist() == [
        pytest.approx(slow_nearest(v, sorted(inside.tolist()))) for v in x.tolist() if v is not None
    ]
    assert torch.equal(points.nearest_(inside.clone()), inside)
    up, down = (points.beside(inside, torch.full_like(inside, sign)) for sign in (1.0, -1.0))
    assert torch.equal(up[:-1], inside[1:]) and torch.equal(down[1:], inside[:-1])
    assert up[-1] == inside[-1] and down[0] == inside[0]
    assert (grid.lowest, grid.highest) == (values[0], values[-1])


def test_ties_are_those_of_the_floats() -> None:
    e4m3, e2m1 = torch.tensor(E4M3), torch.tensor(E2M1)
    for values, grid in ((e4m3, GRIDS["fp8"]), (e2m1, GRIDS["nvfp4"])):
        middles = (values[:-1] + values[1:]) / 2
        near = torch.cat([middles, *(torch.nextafter(middles, torch.full_like(middles, end)) for end in (-1e9, 1e9))])
        found = grid.points.nearest_(near.clone())
        if values is e4m3:
            assert torch.equal(found, near.to(torch.float8_e4m3fn).float())
        else:
            below = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]  # of 0.25, 0.75, 1.25, 1.75, 2.5, 3.5 and 5
            assert found[7:14].tolist() == below and found[:7].tolist() == [-value for value in below[::-1]]


def test_steps_have_the_digits_that_files_have() -> None:
    step = torch.logspace(-6, 3, 997)[:, None, None]
    for name in ("nvfp4", "mxfp4"):
        grid = GRIDS[name]
        digits = grid.steps.digits
        assert digits is not None
        kept = grids.stored_step(step, torch.float16, steps=grid.steps, unit=1.0)
        assert torch.equal(grids.stored_step(kept, torch.float16, steps=grid.steps), kept)
        normal = (step > 2.0**-6) & (step < 400)
        assert torch.equal(kept[normal], digits(step)[normal])
    rows = torch.rand(997) + 0.5
    kept = grids.stored_step(step, torch.float16, rows, GRIDS["nvfp4"].steps, 2.0**10)
    in_file = kept * rows[:, None, None] * 2.0**10
    torch.testing.assert_close(in_file.to(torch.float8_e4m3fn).float(), in_file, rtol=1e-6, atol=0)


def test_powers_of_two_are_the_librarys() -> None:
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    largest = torch.cat([torch.logspace(-9, 4, 1001), torch.tensor([1.0, 1.5, 1.74, 1.76, 2.0, 4.0, 6.0])])
    ours = grids.span(torch.zeros_like(largest), largest, GRIDS["mxfp4"])[0]
    assert torch.equal(ours, torch.exp2(generate_mx_scales(largest) - 127))


@pytest.mark.parametrize(("largest", "unit"), [(0.0, 1.0), (1.0, 64.0), (0.9, 128.0), (127.0, 1.0), (1e-45, 2.0**126)])
def test_units_are_powers_of_two(largest: float, unit: float) -> None:
    assert unit_of(largest) == unit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_nearest_points_equal_the_slow_ones(name: str, shape: tuple[int, int], clip: bool) -> None:
    if clip and shape[0] > 100:
        shape = (shape[0] // 12, shape[1])
    (w, x), grid = case(*shape), GRIDS[name]
    groups, step, zero = on_grid(w, grid, x if clip else None)
    found = grids.from_groups(grids.decode(grids.encode(groups, step, zero, grid), step, zero), shape[1])
    expected = slow_rounded(w, grid, stored_of(grid, w)[1], (x**2).mean(0) if clip else None)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6 if grid.steps.digits is None else 1e-12, atol=1e-30)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8", "nf4"])
def test_search_tries_the_format_itself(name: str) -> None:
    (w, x), grid = case(6, 48), GRIDS[name]
    salience, moment = torch.from_numpy((x**2).mean(0)), torch.from_numpy(x.T @ x / len(x))
    found = search_scale([Target(torch.from_numpy(w), moment)], salience, grid, 4)
    errors = []
    for place in range(5):
        scale = scale_for(salience, place / 4)
        difference = (nearest(torch.from_numpy(w) * scale, grid) / scale - torch.from_numpy(w)).numpy()
        errors.append(np.trace(difference @ moment.numpy() @ difference.T) / len(w))
    assert found.alpha == np.argmin(errors) / 4 and found.objective == pytest.approx(min(errors))


def slow_gptq(w: np.ndarray, moment: np.ndarray, steps: np.ndarray, values: list[float]) -> np.ndarray:
    """The textbook's column loop, by falling H_jj·mean step²; reference.gptq on any values."""
    n_in = w.shape[1]
    inverse = np.linalg.inv(moment + 0.01 * moment.diagonal().mean() * np.eye(n_in))
    work, codes = w.copy(), np.zeros(w.shape)
    left = sorted(range(n_in), key=lambda j: -moment[j, j] * (steps[:, j] ** 2).mean())
    while left:
        j = left.pop(0)
        codes[:, j] = [slow_nearest(x, values) for x in (work[:, j] / steps[:, j]).tolist()]
        error = (work[:, j] - codes[:, j] * steps[:, j]) / inverse[j, j]
        work[:, left] -= np.outer(error, inverse[j, left])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("shape", [(5, 64), (4, 41)])
@pytest.mark.parametrize("name", GRIDS)
def test_gptq_equals_the_textbook(name: str, shape: tuple[int, int]) -> None:
    (w, x), grid = case(*shape), GRIDS[name]
    moment = x.T @ x / len(x)
    groups, step, zero = on_grid(w, grid)
    rounding = function_of("roundings", "gptq", {"damp": 0.01})
    assert rounding is not None
    found = rounding(groups, step, zero, grid, Context(torch.from_numpy(moment)))
    steps = grids.from_groups(step.expand_as(groups), shape[1]).numpy()
    expected = slow_gptq(w, moment, steps, sorted(values_of(grid)))
    assert (grids.from_groups(found.codes, shape[1]).numpy() != expected).mean() < 0.005  # ties, by the last bit
    nearest_codes = grids.encode(groups, step, zero, grid)
    assert error_of(w, found.codes, step, moment) < error_of(w, nearest_codes, step, moment)


@pytest.mark.parametrize("name", GRIDS)
def test_flips_go_to_the_point_beside(name: str) -> None:
    (w, x), grid = case(5, 64), GRIDS[name]
    mean = x.mean(0)
    groups, step, zero = on_grid(w, grid)
    rounding = function_of("roundings", "greedy_flip", {"outlier_percent": 0.0})
    assert rounding is not None
    codes = grids.from_groups(rounding(groups, step, zero, grid, Context(x_mean=torch.from_numpy(mean))).codes, 64)
    plain = grids.from_groups(grids.encode(groups, step, zero, grid), 64)
    steps = grids.from_groups(step.expand_as(groups), 64).numpy()
    values = sorted(values_of(grid))
    before, after = (np.abs(((w - c.numpy() * steps) * mean).sum(1)) for c in (plain, codes))
    assert (after <= before).all() and (after[before > 0] < before[before > 0]).any()
    for k, j in zip(*np.nonzero((codes != plain).numpy()), strict=True):
        x_kj = w[k, j] / steps[k, j]
        others = [value for value in values if value != plain[k, j].item()]
        assert codes[k, j].item() == pytest.approx(slow_nearest(x_kj, others))


@pytest.mark.parametrize("name", GRIDS)
def test_refinement_lowers_the_error_and_keeps_to_the_format(name: str) -> None:
    (w, x), grid = case(140 if name == "fp8_blocks" else 6, 64), GRIDS[name]
    moment = x.T @ x / len(x)
    groups, step, zero = on_grid(w, grid)
    codes = grids.encode(groups, step, zero, grid)
    stored, _ = stored_of(grid, w)
    errors = [error_of(w, codes, step, moment)]
    for rounds in (1, 3):
        found, new, *_ = refine(groups, Codes(codes, step, zero, grid, 64), torch.tensor(moment), rounds, stored)
        assert set(found.unique().tolist()) <= set(torch.tensor(values_of(grid), dtype=torch.float64).tolist())
        assert torch.equal(stored(new), new) and (new.all() if grid.signed else (new > 0).all())
        if grid.rows > 1:
            assert all(len(block.unique()) == 1 for block in new[:, 0, 0].split(grid.rows))
        errors.append(error_of(w, found, new, moment))
    assert errors[2] <= errors[1] * (1 + 1e-9) and errors[1] < 0.9 * errors[0]


DAMAGES: dict[str, Callable[[Tensor], object]] = {
    "zeros": lambda w: w.zero_(),
    "a constant": lambda w: w.fill_(0.03),
    "tiny rows": lambda w: w[::2].mul_(1e-7),
    "tinier than any step": lambda w: w.mul_(1e-38),
    "the ends of float16": lambda w: w[0, :3].copy_(torch.tensor([65504.0, -65504.0, 60000.0])),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", GRIDS)
def test_odd_weights_are_finite_and_no_worse_than_nearest(name: str, damage: str) -> None:
    (w, x), grid = case(5, 64), GRIDS[name]
    weight, moment = torch.from_numpy(w).float(), x.T @ x / len(x)
    DAMAGES[damage](weight)
    w = weight.double().numpy()
    errors = []
    for changes in ({}, {"rounding": "gptq"}, {"rounding": "gptq", "clip": True, "refine": 2}):
        entry = {"format": grid.format, "bits": grid.bits, "group_size": grid.group_size, "symmetric": True}
        known = LinearStatistics(None, torch.from_numpy(moment).float(), None, 0.0)
        stored, _ = stored_of(grid, w)
        found = round_linear(weight, None, known, Recipe.of(PLAIN | entry | changes), torch.Generator(), stored)
        assert (
            found.dequantize().isfinite().all()
            and (found.step.all() if grid.signed else (found.step > 0).all())
            and torch.equal(stored(found.step), found.step)
        )
        errors.append(error_of(w, found.codes.double(), found.step.double(), moment))
    signal = float(np.trace(w @ moment @ w.T))
    assert np.isfinite(errors).all() and max(errors[1:]) <= 1.05 * errors[0] + 1e-7 * signal


@pytest.mark.parametrize("name", GRIDS)
def test_tuned_steps_are_the_formats(name: str) -> None:
    (w, _), grid = case(131, 150), GRIDS[name]
    groups, step, zero = (t.float() for t in on_grid(w, grid))
    _, unit = stored_of(grid, w)
    given = Codes(grids.encode(groups, step, zero, grid), step, zero, grid, 150, unit)
    linear = TunedLinear(in_host_memory(given, torch.float32), None, "cpu")
    assert torch.equal(linear.weight, given.dequantize())
    linear.weight.square().sum().backward()
    with torch.no_grad():
        linear.change += 0.1 * torch.randn(linear.change.shape, generator=torch.Generator().manual_seed(0))
        linear.as_stored = True
        tuned = linear.tuned()
        assert torch.equal(linear.weight, tuned.dequantize()) and torch.equal(tuned.codes, given.codes)
    stored, _ = stored_of(grid, w)
    assert torch.equal(stored(tuned.step), tuned.step) and (tuned.unit, tuned.grid) == (unit, grid)
    assert all(len(block.unique()) == 1 for block in tuned.step[:, 0, 0].split(grid.rows))
    assert linear.change.grad is not None and linear.change.grad.isfinite().all()


def slow_six_bits(steps: np.ndarray, digits: int) -> np.ndarray:
    """Of one row, blocks of 16: the number that 31 times is the largest, to so many digits, 1 to 31 times each."""
    out = []
    for start in range(0, len(steps), 16):
        block = np.abs(steps[start : start + 16])
        one = block.max() / 31
        power = 2.0 ** (digits - 1 - np.floor(np.log2(one)))
        one = np.round(one * power) / power
        out += [np.sign(s) * one * min(max(round(abs(s) / one), 1), 31) for s in steps[start : start + 16]]
    return np.array(out)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 6), (torch.bfloat16, 3), (torch.float32, 6)])
def test_q3_k_has_steps_of_six_bits(dtype: torch.dtype, digits: int) -> None:
    """Which the model's type holds to the bit, and which stay when they are stored again."""
    grid = Grid(3, 16, True, "q3_k")
    w, moment = case(6, 512)[0], torch.eye(512, dtype=torch.float64)
    stored = partial(grids.stored_step, dtype=dtype, steps=grid.steps)
    groups = grids.to_groups(torch.from_numpy(w), 16)
    step, zero = grids.fit(groups, grid)
    kept = stored(step)
    for row, own in zip(kept[:, :, 0].numpy(), step[:, :, 0].numpy(), strict=True):
        if np.abs(own).max() > 1e-3:
            np.testing.assert_allclose(row, slow_six_bits(own, digits), rtol=1e-12)
    assert torch.equal(stored(kept), kept) and torch.equal(kept.to(dtype).double(), kept)
    codes = grids.encode(groups, kept, zero, grid)
    assert codes.min() == -4 and codes.max() <= 3 and (kept < 0).any() and (kept > 0).any()
    found, new, *_ = refine(groups, Codes(codes, kept, zero, grid, 512), moment, 1, stored)
    assert torch.equal(stored(new), new) and error_of(w, found, new, np.eye(512)) < error_of(
        w, codes, kept, np.eye(512)
    )


def test_codes_that_leave_a_type_go_to_the_point_before() -> None:
    grid = GRIDS["nvfp4"]
    codes, one = torch.tensor([[[6.0, -6.0, 4.0, 0.5]]]), torch.ones(1, 1, 1)
    found = held(codes, one, torch.zeros(1, 1, 1), grid, one, limit=3.5)
    assert found.flatten().tolist() == [3.0, -3.0, 3.0, 0.5]


def test_bits_are_those_of_the_parts() -> None:
    sizes = {name: grids.storage_bits(256, 768, grid) / (256 * 768) for name, grid in GRIDS.items()}
    per_row = 16 / 768
    assert sizes["nvfp4"] == 4.5 and sizes["mxfp4"] == 4.25 and sizes["fp8"] == 8 + per_row
    assert sizes["fp8_blocks"] == 8 + 16 / 128**2 and sizes["nf4"] == 4 + 16 / 24 and sizes["nf4_rows"] == 4 + per_row
