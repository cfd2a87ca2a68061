"""A GPU against the CPU: kernels to the bit, searches by their α, statistics and evaluation by their numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant import evaluation, grids, hidden, search, tensorfile
from quant.blocks import Run
from quant.grids import Grid
from quant.rounding import Context, feed_back, gptq
from quant.search import Target, search_scale
from quant.second_moments import from_triangle, half, layer_error, row_errors, tf32
from quant.statistics import collect
from quant.tokens import Tokens, fingerprint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GRIDS = [(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (-1, 7, 64, 128) for symmetric in (True, False)]


def case(n_out: int, n_in: int, seed: int = 0, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """w [out, in] and the second moment of correlated inputs with loud channels and a mean, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n_in, generator=generator) @ (
        torch.eye(n_in) + 0.5 * torch.randn(n_in, n_in, generator=generator) / n_in**0.5
    )
    x = x * torch.exp(torch.randn(n_in, generator=generator)) + torch.randn(n_in, generator=generator)
    return torch.randn(n_out, n_in, generator=generator) / n_in**0.5, x.T @ x / rows


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_fused_rounding_is_that_of_a_cpu_to_the_bit(bits: int, group_size: int, symmetric: bool, clip: bool) -> None:
    w, moment = case(37, 200, bits)
    scales = torch.rand(5, 200, generator=torch.Generator().manual_seed(1)) + 0.2
    importance = moment.diagonal() / scales**2 if clip else None
    grid = Grid(bits, group_size, symmetric)
    expected = grids.nearest_scaled(w, scales, grid, importance)
    found = grids.nearest_scaled(w.cuda(), scales.cuda(), grid, None if importance is None else importance.cuda()).cpu()
    # errors of two factors may tie to the last bit, and their sum's order decides
    assert (found != expected).float().mean() <= (0.002 if clip else 0), (found - expected).abs().max()


@pytest.mark.parametrize("width", [128, 37])
def test_fused_feedback_is_that_of_a_cpu(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    w, factor = torch.randn(300, 400, generator=generator), torch.randn(400, 400, generator=generator).triu_() / 20
    factor.diagonal().uniform_(0.5, 1.5, generator=generator)
    steps = 0.1 + torch.rand(300, 400, generator=generator)
    zeros, grid, now = torch.full_like(steps, 7.0), Grid(4, -1, False), slice(100, 100 + width)
    kept = [torch.empty_like(w), torch.empty_like(w).cuda()]
    left = [
        feed_back(*(t.to(codes.device) for t in (w[:, now], factor[now, now], steps[:, now], zeros[:, now])), grid,
                  codes[:, now])
        for codes in kept
    ]  # fmt: skip
    assert (kept[0][:, now] != kept[1][:, now].cpu()).float().mean() < 1e-3
    assert torch.allclose(left[0], left[1].cpu(), atol=1e-3)


@pytest.mark.parametrize(("n_out", "n_in", "group_size"), [(576, 1536, 64), (500, 577, -1), (256, 2304, 128)])
def test_gptq_leaves_the_error_that_a_cpu_leaves(n_out: int, n_in: int, group_size: int) -> None:
    w, moment = case(n_out, n_in)
    grid = Grid(4, group_size, False)
    errors, codes = [], []
    for where in ("cpu", "cuda"):
        groups, context = grids.to_groups(w.to(where), group_size), Context(moment.to(where), None, 0.0, 0.01)
        step, zero = grids.fit(groups, grid)
        found = gptq(groups, step, zero, grid, context)
        rounded = grids.from_groups(grids.decode(found.codes, step, zero), n_in).cpu()
        errors.append(layer_error(w - rounded, moment))
        codes.append(found.codes.cpu())
    assert errors[1] == pytest.approx(errors[0], rel=1e-2)
    print(f"gptq {n_out}x{n_in}: {(codes[0] == codes[1]).float().mean():.4f} of codes equal, errors {errors}")


def test_tf32_products_move_errors_by_little() -> None:
    w, moment = case(512, 2304)
    difference, upper = (w - grids.nearest(w, Grid(4, 128, False))).cuda(), half(moment).cuda()
    with tf32(False):
        exact = row_errors(difference.double(), upper.double())
        single = row_errors(difference, upper).double()
    with tf32():
        rounded = row_errors(difference, upper).double()
    worst = ((rounded - exact).abs() / exact).max().item()
    print(f"row errors: float32 off by {((single - exact).abs() / exact).max().item():.1e}, TF32 by {worst:.1e}, "
          f"their sum by {abs(rounded.sum() / exact.sum() - 1).item():.1e}")  # fmt: skip
    assert worst < 2e-3 and abs(rounded.sum() / exact.sum() - 1) < 1e-4


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("grid", [Grid(4, 128, False), Grid(4, -1, True), Grid(3, 64, False)])
def test_searches_agree(grid: Grid, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same α but where two are as good to 1e-4; in whatever portions the candidates come."""
    for seed in range(6):
        w, moment = case(192, 512, seed)
        salience = moment.diagonal().clone()
        expected = search_scale([Target(w, moment)], salience, grid, 20, clip)
        for at_once in (2**28, 3 * w.nbytes, 1):
            monkeypatch.setattr(search, "AT_ONCE", at_once)
            found = search_scale([Target(w.cuda(), moment.cuda())], salience.cuda(), grid, 20, clip)
            assert found.objective == pytest.approx(expected.objective, rel=1e-4)


@pytest.fixture(scope="module")
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (length,), generator=generator) for length in (64, 50, 64, 33, 64, 64, 20)]


def moments_of(checkpoint: Path, sequences: list[Tensor], folder: Path, where: str, dtype: torch.dtype) -> dict:
    found = folder / "channels", folder / "moments"
    tokens = Tokens(sequences, fingerprint(sequences), {})
    collect(checkpoint, tokens, *found, where, dtype, 130, {"model_fingerprint": "m"})
    with tensorfile.opened(found[0]) as small, tensorfile.opened(found[1]) as large:
        return {name: small.get(name) for name in small.names} | {
            f"{name}.H": from_triangle(large.get(name)) for name in large.names
        }


@pytest.mark.parametrize("resident", [0, 2**30])
def test_statistics_agree(
    tiny_checkpoint: Path, sequences: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: int
) -> None:
    """With hidden states on the GPU, and on their way to and from the host."""
    expected = moments_of(tiny_checkpoint, sequences, tmp_path / "cpu", "cpu", torch.float32)
    monkeypatch.setattr(hidden, "RESIDENT", resident)
    found = moments_of(tiny_checkpoint, sequences, tmp_path / "gpu", "cuda", torch.float32)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_spilling_changes_nothing(
    tiny_checkpoint: Path, sequences: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, list[Tensor]] = {}
    for resident in (0, 2**30):
        monkeypatch.setattr(hidden, "RESIDENT", resident)
        for _, _, _, advance in Run(tiny_checkpoint, sequences, "cuda", torch.float32, 130).each():
            kept[resident] = []
            advance(lambda batch: None, lambda out, into=kept[resident]: into.append(out.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*kept.values(), strict=True))


def test_half_precision_inputs_have_exact_products() -> None:
    """Of bfloat16 values a TF32 product is that of float32; sums are in float32 either way."""
    x = torch.randn(4096, 768, generator=torch.Generator().manual_seed(0)).bfloat16().float().cuda()
    with tf32():
        found = x.T @ x
    exact = x.double().T @ x.double()
    with tf32(False):
        single = (x.T @ x - exact).abs().max()
    worst = (found - exact).abs().max().item()
    print(f"XᵀX of 4,096 rows: float32 off by {single.item():.1e}, TF32 of bfloat16 values by {worst:.1e}")
    assert worst < 2e-6 * 4096


def test_evaluations_agree(tiny_checkpoint: Path, sequences: list[Tensor]) -> None:
    tokens = Tokens(sequences, fingerprint(sequences), {})
    rows = {}
    for where in ("cpu", "cuda"):
        model = evaluation.load_model(tiny_checkpoint, where, torch.float32)
        rows[where], _ = evaluation.evaluate(model, tokens, where, 130, evaluation.Reference(100, None))
    for a, b in zip(rows["cpu"], rows["cuda"], strict=True):
        assert b["nll"] == pytest.approx(a["nll"], rel=1e-3)
