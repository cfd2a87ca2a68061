"""Weights by what an error does after the activation, against finite differences and a whole-model float64 loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from quant.calibration.jacobian import collect_jacobian, derivative, sensitivities
from quant.calibration.material import Material
from quant.calibration.reader import LinearStatistics, Statistics
from quant.calibration.second_moments import from_triangle
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.files import tensorfile
from quant.recipe.linear import find_scale
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests.unit import reference
from tests.unit.calibration.architectures import COMMON, FEWER, saved
from tests.unit.recipe.cases import PATTERNS, PLAIN, case, statistics_of

ACTIVATIONS = {
    "silu": reference.silu,
    "gelu": reference.gelu,
    "gelu_pytorch_tanh": reference.gelu_tanh,
    "relu": reference.relu,
}


def read(file: tensorfile.TensorFile, key: str) -> np.ndarray:
    """One tensor, a second moment whole again."""
    value = file.get(key)
    return (from_triangle(value) if key.endswith("moment") else value).numpy()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_sensitivities_equal_finite_differences(name: str, gated: bool) -> None:
    rng = np.random.default_rng(0)
    z, u, down = 2 * rng.normal(size=(5, 12)), rng.normal(size=(5, 12)), rng.normal(size=(7, 12))
    given = torch.from_numpy(u) if gated else None
    found = sensitivities(torch.from_numpy(z), given, ACT2FN[name])
    assert set(found) == ({"gate", "up"} if gated else {"up"})
    column = (down**2).sum(0)
    for token in range(5):
        expected = reference.jacobian(z[token], u[token] if gated else None, down, ACTIVATIONS[name])
        for key, value in expected.items():
            np.testing.assert_allclose(found[key][token].numpy() * column, value, rtol=1e-6, atol=1e-9)


def test_derivative_leaves_its_argument_alone_within_inference() -> None:
    with torch.no_grad():
        z = torch.linspace(-3, 3, 9)
        before = z.clone()
        found = derivative(nn.SiLU(), z)
    assert torch.equal(z, before) and not z.requires_grad and not found.requires_grad


class Family(NamedTuple):
    """config class, its values; names of gate (None in a plain MLP), up, down and the attention's output."""

    config: str
    changes: dict[str, Any]
    activation: str
    gate: str | None
    up: str
    down: str
    attention: str = "self_attn.o_proj"


SMALL = {"num_hidden_layers": 2, "intermediate_size": 24}
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
OUT = "self_attn.out_proj"
OPT = FEWER | SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 32, "init_std": 0.2}
FAMILIES = {
    "llama": Family("LlamaConfig", COMMON | SMALL | {"mlp_bias": True}, "silu", *GATED),
    "gemma": Family("GemmaConfig", COMMON | SMALL | {"head_dim": 8}, "gelu_pytorch_tanh", *GATED),
    "phi3": Family("Phi3Config", COMMON | SMALL, "silu", "mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "opt": Family("OPTConfig", OPT, "relu", None, "fc1", "fc2", OUT),
    "opt_gelu": Family("OPTConfig", OPT | {"activation_function": "gelu"}, "gelu", None, "fc1", "fc2", OUT),
}  # fmt: skip
LENGTHS = (9, 5, 1, 7)


class Case(NamedTuple):
    """A family's checkpoint, sequences, and, of every linear and block, by name, in float64: x, z, what leaves it."""

    family: Family
    path: Path
    sequences: list[Tensor]
    model: nn.Module
    x: dict[str, np.ndarray]
    z: dict[str, np.ndarray]


def captured(family: Family, path: Path) -> Case:
    """From the whole model, one unpadded sequence at a time."""
    from transformers import AutoModelForCausalLM

    saved(family.config, family.changes, path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    x: dict[str, list[Tensor]] = {}
    z: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            x.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))
            z.setdefault(name, []).append(out.reshape(-1, out.shape[-1]))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or name.rpartition(".")[2].isdigit():
            module.register_forward_hook(keep(name))
    with torch.inference_mode():
        for sequence in sequences:
            model(sequence[None], use_cache=False)
    whole_x, whole_z = ({name: torch.cat(parts).numpy() for name, parts in found.items()} for found in (x, z))
    return Case(family, path, sequences, model, whole_x, whole_z)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case_of(name: str) -> Case:
        if name not in made:
            made[name] = captured(FAMILIES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return case_of


def expected_of(case: Case, block: str, residual: bool) -> dict[str, np.ndarray]:
    """{linear}.moment, .x_abs, .x_sq, .x_mean and .row_weight of one block, token by token."""
    family = case.family
    down = case.model.get_submodule(f"{block}.{family.down}").weight.detach().numpy()
    z, u = (None if name is None else case.z[f"{block}.{name}"] for name in (family.gate, family.up))
    if family.gate is None:
        z, u = u, None
    elif family.gate == family.up:
        z, u = np.split(z, 2, axis=1)
    inverse = [1 / float((h**2).mean()) if residual else 1.0 for h in case.z[block]]
    squares: dict[str, list[np.ndarray]] = {}
    for t in range(len(z)):
        found = reference.jacobian(z[t], None if u is None else u[t], down, ACTIVATIONS[family.activation])
        if family.gate == family.up:
            found = {"up": np.concatenate([found["gate"], found["up"]])}
        for key, value in found.items():
            squares.setdefault(key, []).append(value)
    expected: dict[str, np.ndarray] = {}
    for key, values in squares.items():
        name = f"{block}.{family.gate if key == 'gate' else family.up}"
        omega = [float(value.mean()) * factor for value, factor in zip(values, inverse, strict=True)]
        expected |= weighted_means(name, case.x[name], omega)
        expected[f"{name}.row_weight"] = np.mean(values, axis=0)
    for writer in (family.attention, family.down) if residual else ():
        name = f"{block}.{writer}"
        expected |= weighted_means(name, case.x[name], inverse)
    return expected


def weighted_means(name: str, x: np.ndarray, omega: list[float]) -> dict[str, np.ndarray]:
    channels = {"x_abs": np.abs(x), "x_sq": x**2, "x_mean": x}
    means = {f"{name}.{key}": np.average(values, axis=0, weights=omega) for key, values in channels.items()}
    return means | {f"{name}.moment": reference.weighted_moment(x, omega)}


def collected(case: Case, out: Path, residual: bool, batch_tokens: int) -> Path:
    tokens = Tokens(case.sequences, fingerprint(case.sequences), {})
    made = {"model_fingerprint": "m"}
    collect_jacobian(Material(case.path, tokens, made), str(out), residual, Compute("cpu", torch.float32, batch_tokens))
    return out


@pytest.mark.parametrize("batch_tokens", [1, 18])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_collected_equals_whole(
    cases: Callable[[str], Case], name: str, residual: bool, batch_tokens: int, tmp_path: Path
) -> None:
    """Alone, and in ragged batches: were padding counted, every mean would be off."""
    case = cases(name)
    path = collected(case, tmp_path / "jacobian.safetensors", residual, batch_tokens)
    blocks = [block for block in case.z if block.rpartition(".")[2].isdigit()]
    assert len(blocks) == 2
    expected = {key: value for block in blocks for key, value in expected_of(case, block, residual).items()}
    with tensorfile.opened(path) as file:
        assert file.names == set(expected)
        for key, value in expected.items():
            found = read(file, key)
            np.testing.assert_allclose(found, value, rtol=2e-4, atol=1e-5 * np.abs(value).max(), err_msg=key)
            assert found.dtype == np.float32
            assert not key.endswith("moment") or np.array_equal(found, found.T)
        plain = reference.second_moment(case.x[f"{blocks[1]}.{case.family.up}"])
        weighted = read(file, f"{blocks[1]}.{case.family.up}.moment")
        assert np.linalg.norm(weighted - plain) > 0.01 * np.linalg.norm(plain), "the weights must matter"
        assert file.info("provenance")["residual"] is residual


def test_recipes_read_weighted_moments_where_there_are_some(cases: Callable[[str], Case], tmp_path: Path) -> None:
    from quant.calibration.statistics import collect

    case, paths = cases("llama"), {key: str(tmp_path / f"{key}.safetensors") for key in ("channels", "moments")}
    tokens = Tokens(case.sequences, fingerprint(case.sequences), {})
    made = {"model_fingerprint": "m"}
    collect(Material(case.path, tokens, made), *paths.values(), Compute("cpu", torch.float32, 18))
    jacobian_path = str(collected(case, tmp_path / "jacobian.safetensors", False, 18))
    gate, down = "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj"
    both = paths | {"weighted": jacobian_path, "row_weight": jacobian_path}
    with Statistics(both, "m", PATTERNS) as statistics, tensorfile.opened(jacobian_path) as jacobian:
        found, plain = statistics.of(gate, "cpu"), statistics.of(down, "cpu")
        assert np.array_equal(found.moment.numpy(), read(jacobian, f"{gate}.moment"))
        assert torch.equal(found.row_weight, jacobian.get(f"{gate}.row_weight"))
        for key in ("x_abs", "x_sq", "x_mean"):
            assert torch.equal(getattr(found.channels, key), jacobian.get(f"{gate}.{key}"))
    with Statistics(both, "m", PATTERNS, plain_share=0.25) as statistics:
        mixed = statistics.of(gate, "cpu")
        moment = 0.75 * found.moment.double() + 0.25 * torch.from_numpy(reference.second_moment(case.x[gate]))
        np.testing.assert_allclose(mixed.moment.numpy(), moment.numpy(), rtol=1e-4, atol=1e-5)
        x_sq = 0.75 * found.channels.x_sq.double() + 0.25 * torch.tensor(
            reference.input_statistics(case.x[gate])["x_sq"]
        )
        np.testing.assert_allclose(mixed.channels.x_sq.numpy(), x_sq.numpy(), rtol=1e-4, atol=1e-5)
        assert torch.equal(statistics.of(down, "cpu").moment, plain.moment), "down has no weighted moment"
    with Statistics(paths | {"row_weight": jacobian_path}, "m", PATTERNS) as statistics:
        rows_only = statistics.of(gate, "cpu")
        assert torch.equal(rows_only.row_weight, found.row_weight), "objective: jacobian alone"
        moment = reference.second_moment(case.x[gate])
        np.testing.assert_allclose(rows_only.moment.numpy(), moment, rtol=1e-4, atol=1e-5)
        assert not torch.equal(rows_only.channels.x_sq, found.channels.x_sq)
    np.testing.assert_allclose(plain.moment.numpy(), reference.second_moment(case.x[down]), rtol=1e-4, atol=1e-5)
    assert plain.row_weight is None


@pytest.mark.parametrize("objective", ["jacobian", "uniform"])
def test_objective_weighs_rows(objective: str) -> None:
    w, x = case()
    known = statistics_of(w, x, True)
    weight = np.array([0.0, 10.0, 0.1, 0.0, 3.0, 1.0])
    known = LinearStatistics(known.channels, known.moment, torch.from_numpy(weight))
    recipe = Recipe.of(PLAIN | {"salience": "l1", "objective": objective, "bits": 3})
    found = find_scale([torch.from_numpy(w)], [known], recipe)
    salience = np.array(reference.input_statistics(x)["x_abs"])
    expected = reference.search(w, x, salience, 3, -1, False, 20, weight if objective == "jacobian" else None)
    assert (found.alpha, found.objective) == (expected[0], pytest.approx(expected[1], rel=1e-6))


def test_objective_praq_weighs_mlp_rows_alone() -> None:
    w, x = case()
    salience, act = (x**2).mean(0), np.array(reference.output_statistics(x @ w.T)["act_abs"])
    for is_mlp, weight in ((True, act / act.mean()), (False, None)):
        recipe = Recipe.of(PLAIN | {"salience": "l2", "objective": "praq", "bits": 3})
        found = find_scale([torch.from_numpy(w)], [statistics_of(w, x, is_mlp)], recipe)
        expected = reference.search(w, x, salience, 3, -1, False, 20, weight)
        assert (found.alpha, found.objective) == (expected[0], pytest.approx(expected[1], rel=1e-6))


def test_two_runs_are_bit_identical(cases: Callable[[str], Case], tmp_path: Path) -> None:
    first, second = (collected(cases("phi3"), tmp_path / name, True, 18).read_bytes() for name in "ab")
    assert first == second


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    saved("FalconConfig", FEWER, tmp_path)
    tokens = Tokens([torch.arange(9)], "f", {})
    with pytest.raises(InputError, match=r"moment: jacobian is not known for model_type 'falcon'") as caught:
        collect_jacobian(
            Material(tmp_path, tokens, {}), str(tmp_path / "out"), False, Compute("cpu", torch.float32, 18)
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
