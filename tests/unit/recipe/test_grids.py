"""Grids against the loops in reference.py, over bits × ranges × groups × shapes × dtypes."""

import numpy as np
import pytest
import torch

from quant.recipe import grids
from quant.recipe.grids import Grid
from tests.unit.reference import round_group, rounded

BITS = (2, 3, 4, 8)
GROUPS = (-1, 1, 7, 16, 100)
SHAPES = ((1, 1), (3, 5), (5, 33), (2, 17), (8, 48))


def weight(n_out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    """Rows about different means, so that some ranges lie on one side of 0."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.linspace(-3, 3, n_out, dtype=torch.float64)[:, None]
    return torch.randn(n_out, n_in, generator=generator, dtype=torch.float64) + shift


def parts(w: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = grids.to_groups(w, grid.group_size)
    step, zero = grids.fit(groups, grid)
    return grids.encode(groups, step, zero, grid), step, zero


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_nearest_equals_reference(bits: int, symmetric: bool, group_size: int, shape: tuple[int, int]) -> None:
    w, grid = weight(*shape), Grid(bits, group_size, symmetric)
    expected = torch.from_numpy(rounded(w.numpy(), bits, group_size, symmetric))
    found = grids.nearest(w, grid)
    assert found.shape == w.shape and found.dtype == w.dtype
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    single = grids.nearest(w.float(), grid)
    assert single.dtype == torch.float32
    expected = torch.from_numpy(rounded(w.float().double().numpy(), bits, group_size, symmetric))
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_codes_range_error_and_round_trip(bits: int, symmetric: bool, group_size: int, dtype: torch.dtype) -> None:
    w, grid = weight(5, 33).to(dtype), Grid(bits, group_size, symmetric)
    codes, step, zero = parts(w, grid)
    assert (grid.lowest, grid.highest) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1))
    assert codes.min() >= grid.lowest and codes.max() <= grid.highest
    assert torch.equal(codes, codes.round()) and torch.equal(zero, zero.round())
    assert zero.min() >= grid.lowest and zero.max() <= grid.highest, "0 must be a point of the grid"
    decoded = grids.decode(codes, step, zero)
    assert torch.equal(grids.from_groups(decoded, 33), grids.nearest(w, grid))
    groups = grids.to_groups(w, group_size)
    assert ((decoded - groups).abs() <= step * (0.5 + 1e-5)).all()
    # a point of the grid is its own nearest point
    assert torch.equal(grids.encode(decoded, step, zero, grid), codes)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_idempotent(bits: int, group_size: int) -> None:
    symmetric = Grid(bits, group_size, True)
    once = grids.nearest(weight(5, 33), symmetric)
    torch.testing.assert_close(grids.nearest(once, symmetric), once, rtol=1e-12, atol=1e-12)
    # an asymmetric range may shrink when both its ends round inwards; one that uses all its codes cannot
    grid = Grid(bits, group_size, False)
    codes, _, zero = parts(weight(5, 33), grid)
    spread = torch.cat([codes, zero], -1).amax(-1) - torch.cat([codes, zero], -1).amin(-1) == grid.highest
    full = spread.repeat_interleave(33 if group_size == -1 else group_size, 1)[:, :33]
    once = grids.nearest(weight(5, 33), grid)
    assert full.float().mean() > 0.3
    torch.testing.assert_close(grids.nearest(once, grid)[full], once[full], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_one_sided_rows_keep_zero_in_range(bits: int, symmetric: bool) -> None:
    w = weight(4, 16).abs() + 5
    w[2:] *= -1
    grid = Grid(bits, -1, symmetric)
    found = grids.nearest(w, grid)
    expected = torch.from_numpy(rounded(w.numpy(), bits, -1, symmetric))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    _, step, zero = parts(w, grid)
    if not symmetric:
        assert zero.flatten().tolist() == [0, 0, grid.highest, grid.highest]
        torch.testing.assert_close(step.flatten(), w.abs().amax(1) / grid.highest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_and_constant_rows_are_kept(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    w = torch.tensor([0.0, 1.7, -0.3, 1e-30], dtype=dtype)[:, None].repeat(1, 10)
    for group_size in (-1, 4, 1):
        found = grids.nearest(w, Grid(bits, group_size, symmetric))
        assert torch.equal(found[0], torch.zeros(10, dtype=dtype))
        torch.testing.assert_close(found, w, rtol=1e-6, atol=0)


def test_int4_divides_by_seven() -> None:
    codes, step, _ = parts(torch.tensor([[-14.0, 7.0, 1.0, 3.0]]), Grid(4, -1, True))
    assert step.item() == 2.0  # max|w|/7
    assert codes.flatten().tolist() == [-7, 4, 0, 2], "0.5 and 1.5 and 3.5 go to the even neighbour"


def test_asymmetric_by_hand() -> None:
    codes, step, zero = parts(torch.tensor([[-1.0, 2.0, 0.4, 1.5]]), Grid(2, -1, False))
    assert (step.item(), zero.item()) == (1.0, 1.0)
    assert codes.flatten().tolist() == [0, 3, 1, 3]


def test_ragged_group_has_its_own_range() -> None:
    w = torch.tensor([[7.0, -7.0, 0.6, 0.07, 0.02]])
    codes, step, zero = parts(w, Grid(4, 3, True))
    torch.testing.assert_close(step.flatten(), torch.tensor([1.0, 0.01]))
    assert codes[0, 1].tolist() == [7, 2, 0]
    assert grids.from_groups(grids.decode(codes, step, zero), 5).shape == (1, 5)


def test_reference_rounds_by_hand() -> None:
    assert round_group([-3.0, 0.0, 4.5], 4, False) == ([0, 6, 15], 0.5, 6)
    assert round_group([-14.0, 1.0], 4, True) == ([-7, 0], 2.0, 0)
    assert np.array_equal(rounded(np.zeros((2, 3)), 4, 2, False), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("shape", "grid", "bits"),
    [
        ((2, 8), Grid(4, -1, True), 2 * (8 * 4 + 16)),
        ((2, 8), Grid(4, -1, False), 2 * (8 * 4 + 16 + 4)),
        ((3, 10), Grid(3, 4, False), 3 * (10 * 3 + 3 * (16 + 3))),  # groups of 4, 4 and 2
        ((3, 10), Grid(8, 4, True), 3 * (10 * 8 + 3 * 16)),
        ((1, 5), Grid(2, 100, False), 5 * 2 + 16 + 2),
        ((1, 128), Grid(4, 128, False), 532),
    ],
)
def test_storage_bits_by_hand(shape: tuple[int, int], grid: Grid, bits: int) -> None:
    assert grids.storage_bits(*shape, grid) == bits
