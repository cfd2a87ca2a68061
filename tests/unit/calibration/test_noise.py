"""Robust-PRAQ's noise: its statistics and the search's closed form, against sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.material import Material
from quant.calibration.noisy import collect_noisy, input_std
from quant.calibration.reader import LinearStatistics, Statistics
from quant.calibration.second_moments import halves
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.files import tensorfile
from quant.recipe.grids import Grid, nearest
from quant.recipe.linear import find_scale
from quant.recipe.recipe import Recipe
from quant.recipe.search import Target, target_error
from quant.runtime.compute import Compute
from tests.conftest import Captured
from tests.unit import reference
from tests.unit.calibration.architectures import FIRST_READER
from tests.unit.recipe.cases import LINEARS, PATTERNS, PLAIN, case, statistics_of


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_closed_form_equals_sampling(sigma: float, weighted: bool) -> None:
    w, x = case()
    candidate = reference.rounded(w, 3, 8, False)
    weight = np.array([0.0, 10.0, 0.1, 0.0, 3.0, 1.0]) if weighted else None
    expected, standard_error = reference.noisy_error(w, candidate, x, sigma, 4000, weight)
    moment = torch.from_numpy(reference.second_moment(x))
    target = Target(torch.from_numpy(w), moment, None if weight is None else torch.from_numpy(weight), sigma)
    found = target_error(target, torch.from_numpy(candidate.copy()), halves(moment)).item()
    assert abs(found - expected) < 4 * standard_error
    plain = target_error(target._replace(noise=0.0), torch.from_numpy(candidate.copy()), halves(moment)).item()
    assert found - plain > 8 * standard_error, "the noise must matter"


def test_search_allows_for_half_the_noise() -> None:
    w, x = case()
    known = statistics_of(w, x, True)
    known = LinearStatistics(known.channels, known.moment, None, 2.0)
    recipe = Recipe.of(PLAIN | {"salience": "l1", "noise_std": 0.5, "n_grid": 1})
    found = find_scale([torch.from_numpy(w)], [known], recipe)
    salience = np.array(reference.input_statistics(x)["x_abs"])
    errors = []
    for alpha in (0.0, 1.0):
        candidate = reference.scaled_rounded(w, salience, alpha, 4, -1, False)
        noise = (0.5 / 2 * 2.0) ** 2 * (candidate**2).sum()
        errors.append((reference.row_errors(w - candidate, x).sum() + noise) / len(w))
    assert found.objective == pytest.approx(min(errors), rel=1e-6)


@pytest.fixture(scope="module")
def channels(tiny_checkpoint: Path, captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    paths = (folder / "channels.safetensors", folder / "moments.safetensors")
    material = Material(tiny_checkpoint, tokens, {"model_fingerprint": "tiny"})
    collect(material, *paths, Compute("cpu", torch.float32, 26))
    return paths[0]


def collected(
    checkpoint: Path, captured: Captured, channels: Path, out: Path, noise_std: float, draws: int = 3, seed: int = 0
) -> Path:
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    noise = {"noise_std": noise_std, "n_noise_samples": draws, "seed": seed}
    made = {"model_fingerprint": "tiny"}
    collect_noisy(Material(checkpoint, tokens, made), channels, str(out), noise, Compute("cpu", torch.float32, 26))
    return out


def test_hardly_any_noise_gives_the_plain_statistics(
    tiny_checkpoint: Path, captured: Captured, channels: Path, tmp_path: Path
) -> None:
    path = collected(tiny_checkpoint, captured, channels, tmp_path / "noisy.safetensors", 1e-7)
    with tensorfile.opened(path) as noisy, tensorfile.opened(channels) as plain:
        assert noisy.info("reads") == plain.info("reads")
        for name in LINEARS:
            keys = [f"{name}.act_abs"] + [f"{plain.info('reads')[name]}.{key}" for key in ("x_abs", "x_sq")]
            for key in keys:
                torch.testing.assert_close(noisy.get(key), plain.get(key), rtol=1e-4, atol=1e-6, msg=key)
            std = noisy.get(f"{plain.info('reads')[name]}.x_std").item()
            assert std == pytest.approx(captured.x[name].std(), rel=1e-4)
            assert input_std(plain, plain.info("reads")[name]) == pytest.approx(std, rel=1e-6)
        assert noisy.info("provenance")["noise_std"] == 1e-7


def test_much_noise_equals_direct_draws(
    tiny_checkpoint: Path, captured: Captured, channels: Path, tmp_path: Path
) -> None:
    """x+ε through the real linear, ε as large as x, in float64; both averages are within their sampling error."""
    from transformers import AutoModelForCausalLM

    draws, own = 150, 150
    path = collected(tiny_checkpoint, captured, channels, tmp_path / "noisy.safetensors", 1.0, draws)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)

    def compare(found: Tensor, samples: list[Tensor], plain: Tensor, label: str) -> None:
        each = torch.stack(samples)
        spread = each.std(0) * (1 / draws + 1 / own) ** 0.5
        off = (found.double() - each.mean(0)).abs() / spread
        assert off.max() < 6 and 0.6 < off.mean() < 1.1, f"{label}: {off.max():.1f}, {off.mean():.2f}"
        assert ((plain - each.mean(0)).abs() / spread).mean() > 3, f"{label}: the noise must matter"

    with tensorfile.opened(path) as noisy, torch.inference_mode():
        for name in LINEARS:
            layer, _, part = name.removeprefix("model.layers.").partition(".")
            x, linear = torch.from_numpy(captured.x[name]), model.get_submodule(name)
            drawn = [x + x.std(correction=0) * torch.randn(x.shape, generator=generator) for _ in range(own)]
            silu = torch.nn.functional.silu
            outputs = [silu(linear(one)).abs().mean(0) for one in drawn]
            compare(noisy.get(f"{name}.act_abs"), outputs, silu(linear(x)).abs().mean(0), name)
            if FIRST_READER[part] == part:
                source = f"model.layers.{layer}.{part}"
                compare(noisy.get(f"{source}.x_abs"), [one.abs().mean(0) for one in drawn], x.abs().mean(0), source)
                compare(noisy.get(f"{source}.x_sq"), [(one**2).mean(0) for one in drawn], (x**2).mean(0), source)


def test_seeded(tiny_checkpoint: Path, captured: Captured, channels: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        collected(tiny_checkpoint, captured, channels, path, 0.1, seed=seed)
    first, same, other = (path.read_bytes() for path in paths)
    assert first == same
    assert first != other
    with tensorfile.opened(paths[0]) as a, tensorfile.opened(paths[2]) as b:
        for name in ("model.layers.0.self_attn.q_proj.x_abs", "model.layers.1.mlp.down_proj.act_abs"):
            assert not torch.equal(a.get(name), b.get(name))


def test_recipes_read_the_noisy_means(
    tiny_checkpoint: Path, captured: Captured, channels: Path, tmp_path: Path
) -> None:
    noisy = collected(tiny_checkpoint, captured, channels, tmp_path / "noisy.safetensors", 1.0)
    name, source = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"
    with Statistics({"channels": str(channels), "noisy": str(noisy)}, "tiny", PATTERNS) as statistics:
        found = statistics.of(name, "cpu")
    with tensorfile.opened(noisy) as file, tensorfile.opened(channels) as plain:
        for key in ("x_abs", "x_sq"):
            assert torch.equal(getattr(found.channels, key), file.get(f"{source}.{key}"))
            assert not torch.equal(getattr(found.channels, key), plain.get(f"{source}.{key}"))
        assert torch.equal(found.channels.act_abs, file.get(f"{name}.act_abs"))
        assert torch.equal(found.channels.z_abs, plain.get(f"{name}.z_abs")), "noise is the salience's own"
    assert found.x_std == pytest.approx(captured.x[name].std(), rel=1e-4)


def test_noise_of_another_model_is_refused(
    tiny_checkpoint: Path, captured: Captured, channels: Path, tmp_path: Path
) -> None:
    noisy = collected(tiny_checkpoint, captured, channels, tmp_path / "noisy.safetensors", 0.1)
    with (
        pytest.raises(InputError, match=r"noisy\.safetensors.*tiny.*other") as caught,
        Statistics({"noisy": str(noisy)}, "other", PATTERNS),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_no_noise_is_the_plain_error() -> None:
    w, x = case()
    moment, candidate = torch.from_numpy(reference.second_moment(x)), torch.from_numpy(w).clone()
    candidate = nearest(candidate, Grid(4, 8, False))
    found = target_error(Target(torch.from_numpy(w), moment), candidate.clone(), halves(moment)).item()
    assert found == pytest.approx(reference.row_errors(w - candidate.numpy(), x).sum() / len(w), rel=1e-9)
