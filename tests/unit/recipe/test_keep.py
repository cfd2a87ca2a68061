"""Mixed precision: which rows stay bit for bit, the hybrid's blocks, and injected noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.calibration.channels import Channels
from quant.calibration.material import Material
from quant.calibration.reader import LinearStatistics
from quant.calibration.statistics import collect
from quant.checkpoints.stored import opened
from quant.data.tokens import Tokens, fingerprint
from quant.recipe.linear import protect
from quant.recipe.quantized import QuantizedLinear, rounding_statistics
from quant.recipe.recipe import Recipe
from quant.recipe.scores.awq import awq
from quant.recipe.scores.praq import praq, praq_score
from quant.runtime.compute import Compute
from tests.conftest import Captured
from tests.unit.group import quantize_group
from tests.unit.recipe.cases import LINEARS, PLAIN, recast, run

PARAMETERS = {"beta": 3.0, "tau": -3.0, "noise_factor": 0.2}
KEEP = {"symmetric": True, "keep": "awq"}


@pytest.fixture(scope="module")
def halved(tiny_checkpoint: Path, captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The tiny model in bfloat16, and paths of its statistics."""
    folder = tmp_path_factory.mktemp("halved")

    def halve(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.bfloat16()

    source = recast(tiny_checkpoint, folder / "model", halve)
    paths = {name: str(folder / f"{name}.safetensors") for name in ("channels", "moments")}
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    material = Material(source, tokens, {"model_fingerprint": "tiny"})
    collect(material, *paths.values(), Compute("cpu", torch.float32, 26))
    return source, paths


@pytest.mark.parametrize("keep_ratio", [0.2, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    "changes",
    [{"keep": "awq"}, {"keep": "praq", "noise_injection": 0.1}, {"keep": "awq", "salience": "l2", "n_grid": 3}],
)
def test_that_share_stays_bit_for_bit(
    halved: tuple[Path, dict], tmp_path: Path, keep_ratio: float, changes: dict[str, Any]
) -> None:
    source, paths = halved
    result = run(source, tmp_path / "out", paths, symmetric=True, keep_ratio=keep_ratio, **changes)
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    channels = load_file(paths["channels"])
    total = bits = 0
    for name in LINEARS:
        w, found = before[f"{name}.weight"], after[f"{name}.weight"]
        same = (w.view(torch.int16) == found.view(torch.int16)).all(1)
        n_out, n_in = w.shape
        assert same.sum() == round(keep_ratio * n_out), name
        if changes["keep"] == "awq":
            assert channels[f"{name}.z_abs"][same].min() >= channels[f"{name}.z_abs"][~same].max()
        kept = int(same.sum())
        alpha = next(row["alpha"] for row in result["linears"] if row["linear"] == name)
        bits += (n_out - kept) * (4 * n_in + 16) + 16 * kept * n_in + n_out + (16 * n_in if alpha else 0)
        total += w.numel()
    assert result["summary"]["bits_per_weight"] == pytest.approx(bits / total)


def drawn(n_out: int, is_mlp: bool) -> tuple[Tensor, LinearStatistics]:
    """w [out, 40] and channels whose scores spread."""
    generator = torch.Generator().manual_seed(n_out)
    w = torch.randn(n_out, 40, generator=generator)
    z_mean = torch.linspace(-6, 2, n_out)[torch.randperm(n_out, generator=generator)]
    z_abs = z_mean.abs() + torch.rand(n_out, generator=generator)
    x = torch.rand(40, generator=generator) + 0.1
    std = torch.rand(n_out, generator=generator)
    return w, LinearStatistics(Channels(x, x**2, x, z_mean, std, z_abs, z_abs, is_mlp))


@pytest.mark.parametrize("n_out", [31, 48, 64, 96, 160])
@pytest.mark.parametrize("is_mlp", [True, False])
def test_hybrid_uses_blocks_on_mlp_linears_where_32_divides(n_out: int, is_mlp: bool) -> None:
    w, known = drawn(n_out, is_mlp)
    found = praq(w, known.channels, **PARAMETERS)
    if not is_mlp:
        assert torch.equal(found, awq(w, known.channels))
        return
    rows = praq_score(w, known.channels, **PARAMETERS)
    if n_out % 32:
        assert torch.equal(found, rows)
        return
    for start in range(0, n_out, 32):
        block = found[start : start + 32]
        assert (block == block[0]).all() and block[0].item() == pytest.approx(rows[start : start + 32].sum().item())
    ratio = 32 / n_out
    kept = protect(w, known.channels, Recipe.of(PLAIN | {"keep": "praq", "keep_ratio": ratio}))
    assert sorted(kept.view(-1, 32).sum(1).tolist()) == [0] * (n_out // 32 - 1) + [32]


def test_parameters_of_the_score_reach_it() -> None:
    w, known = drawn(50, True)
    masks = {
        protect(w, known.channels, Recipe.of(PLAIN | {"keep": "praq", "keep_ratio": 0.3} | changes)).numpy().tobytes()
        for changes in ({}, {"beta": 0.1}, {"tau": 6.0}, {"noise_factor": 30.0})
    }
    assert len(masks) == 4


def injected(f: float, seed: int = 0, **changes: Any) -> tuple[Tensor, QuantizedLinear]:
    w, known = drawn(300, True)
    recipe = Recipe.of(PLAIN | {"group_size": 16, "noise_injection": f} | changes)
    (found,) = quantize_group([w], [known], recipe, torch.Generator().manual_seed(seed))
    return w, found


@pytest.mark.parametrize("f", [0.1, 0.5])
def test_injected_noise_has_that_std_in_steps(f: float) -> None:
    _, plain = injected(0.0)
    _, found = injected(f)
    assert plain.noise is None and torch.equal(plain.codes, found.codes)
    steps = found.step.expand_as(found.codes).flatten(1)[:, :40]  # 16 + 16 + 8 inputs
    moved = (found.dequantize() - plain.dequantize()) / steps
    n = moved.numel()
    assert moved.std().item() == pytest.approx(f, rel=4 / (2 * n) ** 0.5)
    assert abs(moved.mean().item()) < 4 * f / n**0.5
    assert moved.abs().max() > 3 * f, "a normal distribution has tails"
    assert len(moved.unique()) > 0.9 * n
    by_step = steps.flatten() > steps.median()
    assert moved.flatten()[by_step].std().item() == pytest.approx(moved.flatten()[~by_step].std().item(), rel=0.1)


def test_injected_noise_is_seeded_and_spares_kept_rows() -> None:
    w, first = injected(0.1, 1, **KEEP)
    same, other = injected(0.1, 1, **KEEP)[1], injected(0.1, 2, **KEEP)[1]
    assert torch.equal(first.dequantize(), same.dequantize())
    assert first.kept.sum() == 150 and torch.equal(first.dequantize()[first.kept], w[first.kept])
    rest = ~first.kept
    assert ((first.dequantize() != other.dequantize())[rest]).float().mean() > 0.99


def test_a_checkpoints_noise_is_seeded_and_differs_by_linear(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tiny_checkpoint, tmp_path / name, {}, noise_injection=0.1, seed=seed)
    first, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == same != other
    run(tiny_checkpoint, tmp_path / "plain", {})
    drawn = []
    with opened(tmp_path / "plain") as plain, opened(tmp_path / "a") as noisy:
        for layer in (0, 1):
            name = f"model.layers.{layer}.self_attn.q_proj"
            difference = (noisy.weight(name) - plain.weight(name))[:24]
            drawn.append(difference / difference.std())
    q, k = drawn
    assert abs((q * k).mean()) < 0.2, "no linear repeats another's draws"


def test_rounding_statistics_leave_kept_rows_out() -> None:
    w, found = injected(0.0, 0, **KEEP)
    shares = rounding_statistics(w, found)
    rest = ~found.kept
    quantized = QuantizedLinear(found.codes[rest], found.step[rest], found.zero[rest], found.grid, 40)
    assert shares == rounding_statistics(w[rest], quantized)
    assert shares["rounded_up"] + shares["rounded_down"] + shares["unchanged"] == pytest.approx(1)
