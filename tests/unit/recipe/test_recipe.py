"""A recipe on one linear and on a whole checkpoint, against the reference."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.calibration.channels import Channels
from quant.calibration.reader import LinearStatistics, Statistics
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files import tensorfile
from quant.methods.quantize import Output, Source, quantize_checkpoint
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from quant.recipe.search import Search, scale_for
from tests.conftest import Captured
from tests.unit import reference
from tests.unit.group import quantize_group

PATTERNS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "out_proj", "attention"],
    "mlp": ["mlp", "fc", "gate", "up_proj", "down_proj", "ffn"],
}
PLAIN: dict[str, Any] = {
    "salience": "none",
    "format": "int",
    "activations": "none",
    "bits": 4,
    "group_size": -1,
    "symmetric": False,
    "clip": False,
    "n_grid": 20,
    "search_bits": 0,
    "search_group_size": 0,
    "objective": "uniform",
    "plain_share": 0.0,
    "scope": "linear",
    "rounding": "nearest",
    "outlier_percent": 0.05,
    "damp": 0.01,
    "row_feedback": 0.0,
    "refine": 0,
    "inputs": "parallel",
    "correction": 0.0,
    "reconstruct": None,
    "keep": "none",
    "keep_ratio": 0.5,
    "beta": 3.0,
    "tau": -3.0,
    "noise_factor": 0.2,
    "noise_injection": 0.0,
    "noise_std": 0.0,
    "seed": 42,
}
LINEARS = {
    f"model.layers.{layer}.{name}": layer
    for layer in (0, 1)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
}


def salience_of(name: str, w: np.ndarray, x: np.ndarray, z: np.ndarray, is_mlp: bool) -> np.ndarray:
    found = reference.input_statistics(x)
    if name == "praq":
        return np.array(
            reference.praq_salience(w, reference.output_statistics(z)["act_abs"], found["x_abs"], is_mlp=is_mlp)
        )
    return np.array(found[{"l1": "x_abs", "l2": "x_sq"}[name]])


def slow_dequantized(
    w: np.ndarray, x: np.ndarray, z: np.ndarray, is_mlp: bool, entry: dict[str, Any]
) -> tuple[float | None, np.ndarray]:
    """α and Ŵ of a recipe by reference.py; z = Wx + b."""
    grid = (entry["bits"], entry["group_size"], entry["symmetric"])
    if entry["salience"] == "none":
        return None, reference.rounded(w, *grid)
    salience = salience_of(entry["salience"], w, x, z, is_mlp)
    alpha, _, _ = reference.search(w, x, salience, *grid, entry["n_grid"])
    return alpha, reference.scaled_rounded(w, salience, alpha, *grid)


def case() -> tuple[np.ndarray, np.ndarray]:
    """w [6, 24] and x [30, 24] with loud channels."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(6, 24)), rng.normal(size=(30, 24)) * np.exp(rng.normal(size=24)) + 0.2


def statistics_of(w: np.ndarray, x: np.ndarray, is_mlp: bool) -> LinearStatistics:
    means = reference.input_statistics(x) | reference.output_statistics(x @ w.T)
    channels = {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
    return LinearStatistics(Channels(**channels, is_mlp=is_mlp), torch.from_numpy(reference.second_moment(x)))


def quantized(w: np.ndarray, statistics: LinearStatistics, **changes: Any) -> QuantizedLinear:
    """PLAIN with changes, on one linear."""
    (found,) = quantize_group([torch.from_numpy(w)], [statistics], Recipe.of(PLAIN | changes), torch.Generator())
    return found


@pytest.mark.parametrize("is_mlp", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, -1, True), (3, 7, False), (4, 8, True)])
@pytest.mark.parametrize("salience", ["none", "l1", "l2", "praq"])
def test_linear_equals_reference(salience: str, bits: int, group_size: int, symmetric: bool, is_mlp: bool) -> None:
    w, x = case()
    changes = {"salience": salience, "bits": bits, "group_size": group_size, "symmetric": symmetric}
    alpha, expected = slow_dequantized(w, x, x @ w.T, is_mlp, PLAIN | changes)
    found = quantized(w, statistics_of(w, x, is_mlp), **changes)
    assert found.alpha == alpha
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.codes, found.codes.round())
    groups = {-1: 1, 7: 4, 8: 3}[group_size]
    zeros = 0 if symmetric else bits
    scale = 24 * 16 if alpha else 0
    assert found.storage_bits(False) == 6 * (24 * bits + groups * (16 + zeros)) + scale
    if alpha is None:
        assert found.objective is None
    else:
        error = reference.row_errors(w - expected, x).sum() / 6
        assert found.objective == pytest.approx(error, rel=1e-6)


def test_plain_rounding_needs_no_statistics() -> None:
    w, _ = case()
    found = quantized(w, LinearStatistics(None, None), group_size=8)
    np.testing.assert_allclose(found.dequantize().numpy(), reference.rounded(w, 4, 8, False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("step", range(21))
def test_inverse_scale_is_never_forgotten(monkeypatch: pytest.MonkeyPatch, step: int, symmetric: bool) -> None:
    """On a grid so fine that rounding costs nothing, every α must give the weight back."""
    w, x = case()
    salience = torch.from_numpy((x**2).mean(0))
    assert salience.max() / salience.min() > 50
    forced = Search(step / 20, scale_for(salience, step / 20), 0.0)
    monkeypatch.setattr("quant.recipe.linear.search_scale", lambda *_, **__: forced)
    found = quantized(w, statistics_of(w, x, True), salience="l2", bits=8, group_size=1, symmetric=symmetric)
    assert found.alpha == step / 20
    np.testing.assert_allclose(found.dequantize().numpy(), w, rtol=1e-10)


MADE = {"by": "test", "model_fingerprint": "tiny"}


def run(source: Path, target: Path, paths: dict[str, str], model: str = "tiny", **changes: Any) -> dict[str, Any]:
    """quantize_checkpoint by PLAIN with changes."""
    statistics = Statistics(paths, model, PATTERNS)
    folds = target.with_name(f"{target.name}.folds.safetensors")
    return quantize_checkpoint(
        Source(source, LINEARS),
        Output(target, folds),
        statistics,
        Recipe.of(PLAIN | changes),
        "cpu",
        {"by": "test", "model_fingerprint": "tiny"},
    )


RECIPES: dict[str, dict[str, Any]] = {
    "rtn_g": {"group_size": 16},
    "l2_ragged": {"salience": "l2", "group_size": 7, "bits": 3, "n_grid": 5},
    "praq": {"salience": "praq", "symmetric": True, "n_grid": 5},
}


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_checkpoint_equals_reference(
    tiny_checkpoint: Path, captured: Captured, statistics: dict[str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    result = run(tiny_checkpoint, tmp_path / "out", statistics if "salience" in changes else {}, **changes)
    original, found = (
        dict(load_model(path, "cpu", torch.float32).named_parameters()) for path in (tiny_checkpoint, tmp_path / "out")
    )
    packs = "salience" not in changes
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == 256
    assert found.keys() >= original.keys() and (packs or found.keys() == original.keys())
    alphas = {row["linear"]: row["alpha"] for row in result["linears"]}
    assert list(alphas) == list(LINEARS) and [row["layer"] for row in result["linears"]] == list(LINEARS.values())
    wrong = total = bits = 0
    for name, before in original.items():
        linear = name.removesuffix(".weight")
        if linear not in LINEARS:
            assert torch.equal(found[name], before), f"{name} must stay as it was, bit for bit"
            continue
        w = before.detach().double().numpy()
        alpha, expected = slow_dequantized(w, captured.x[linear], captured.z[linear], "mlp" in linear, PLAIN | changes)
        assert alphas[linear] == alpha
        difference = np.abs(found[name].detach().double().numpy() - expected)
        wrong += int((difference > 1e-4).sum())
        total += w.size
        assert not torch.equal(found[name], before)
        groups = 1 if changes.get("group_size", -1) == -1 else -(-w.shape[1] // changes["group_size"])
        zeros = 0 if changes.get("symmetric") else changes.get("bits", 4)
        # a packed file has steps in the model's own float32, and the weight's shape
        bits += w.shape[0] * (w.shape[1] * changes.get("bits", 4) + groups * ((32 if packs else 16) + zeros))
        bits += 2 * 64 if packs else 0
        bits += 16 * w.shape[1] if alpha else 0
    assert wrong <= total / 2000, "but for weights between two points, where float32 may round either way"
    assert result["summary"]["bits_per_weight"] == pytest.approx(bits / total)
    assert result["summary"]["storage"] == ("packed" if packs else "simulated")
    assert bool(result["summary"]["storage_reason"]) != packs
    if "salience" in changes:
        assert any(alphas.values()), "the case must be one where scaling helps"


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_two_runs_are_bit_identical(
    tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    for name in ("a", "b"):
        run(tiny_checkpoint, tmp_path / name, statistics, **changes)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in first}
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("salience", ["l1", "l2", "praq"])
def test_logits_do_not_move_on_a_fine_grid(
    tiny_checkpoint: Path,
    statistics: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    salience: str,
) -> None:
    """The research's Real-AWQ left the inverse scale out; here each linear is scaled with α = 1."""
    from transformers import AutoModelForCausalLM

    def full_scale(targets: object, found: Tensor, *_: object) -> Search:
        return Search(1.0, scale_for(found, 1.0), 0.0)

    monkeypatch.setattr("quant.recipe.linear.search_scale", full_scale)
    fine = {"bits": 8, "group_size": 1, "symmetric": True}
    run(tiny_checkpoint, tmp_path / "out", statistics, salience=salience, **fine)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        before, after = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (tiny_checkpoint, tmp_path / "out")
        )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def recast(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_dtype_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.bfloat16()

    source = recast(tiny_checkpoint, tmp_path / "half", halve)
    run(source, tmp_path / "out", {}, bits=3, noise_injection=1e-9)  # stored dense
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "out"))
    name = "model.layers.1.mlp.down_proj.weight"
    assert all(value.dtype == torch.bfloat16 for value in after.values())
    expected = torch.from_numpy(reference.rounded(before[name].double().numpy(), 3, -1, False))

    assert ((after[name].double() - expected).abs() > 2**-7 * expected.abs().max()).double().mean() < 0.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_are_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, bad: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad

    source = recast(tiny_checkpoint, tmp_path / "broken", spoil)
    with pytest.raises(InputError, match=r"broken/.*: model\.layers\.1\.mlp\.up_proj\.weight holds") as caught:
        run(source, tmp_path / "out", {})
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.glob("out*/**/*") if path.is_file()]


def test_statistics_of_another_model_are_refused(
    tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"channels\.safetensors.*tiny.*other") as caught:
        run(tiny_checkpoint, tmp_path / "out", statistics, model="other", salience="l1")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*/*"))


def test_provenance_is_written(tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path) -> None:
    result = run(tiny_checkpoint, tmp_path / "out", statistics, salience="l1", n_grid=1)
    with tensorfile.opened(tmp_path / "out" / "model.safetensors") as file:
        assert file.metadata["format"] == "pt"
        assert file.info("provenance") == result["provenance"]
    assert result["provenance"]["by"] == "test" and len(result["provenance"]["token_fingerprint"]) == 16
