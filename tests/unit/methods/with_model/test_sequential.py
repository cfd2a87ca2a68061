"""Sequential inputs: every linear's codes are those of its own inputs in the finished model, towards the corrected
weight, by the slow reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.calibration.end_loss import collect_end_loss
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.checkpoints import stored
from quant.files import tensorfile
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.sequential import Sequential
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests.unit import reference
from tests.unit.calibration.architectures import inputs_of, saved
from tests.unit.methods.with_model.given import CALIBRATION, SEQUENCES, loaded
from tests.unit.recipe.cases import PATTERNS, PLAIN
from tests.unit.recipe.folded import MADE, MODELS, Case

SEQUENTIAL = PLAIN | {"inputs": "sequential", "rounding": "gptq"}


def run(source: Path, paths: dict[str, str], target: Path, **changes: Any) -> dict[str, Any]:
    recipe = SEQUENTIAL | changes
    linears = all_linears(skeleton(source))
    statistics = Statistics(paths, "m", PATTERNS, plain_share=recipe["plain_share"])
    way = Sequential(source, CALIBRATION, "cpu", torch.float32, 64)
    given = (Source(source, linears), Output(target, target.with_suffix(".folds")), statistics, Recipe.of(recipe))
    return quantize_checkpoint(*given, "cpu", MADE, quantize_block=way)


@pytest.mark.parametrize(("correction", "parts"), [(0.0, 0), (0.5, 0), (0.5, 1), (0.0, 4), (0.5, 4)])
def test_codes_are_those_of_the_finished_models_inputs(tmp_path: Path, correction: float, parts: int) -> None:
    """A few differ that lie half-way in float32. parts: of the rows, whose tokens count by the end loss; 0: alike."""
    wide = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    model = saved("LlamaConfig", {"vocab_size": 256, "num_hidden_layers": 2, "initializer_range": 0.2} | wide, tmp_path)
    target, path, changes = tmp_path / "target", str(tmp_path / "end_loss"), {}
    paths, omegas = {}, {}
    names = list(all_linears(model))
    if parts:
        material = Material(tmp_path, CALIBRATION, {"model_fingerprint": "m"})
        collect_end_loss(material, path, parts, 0, Compute("cpu", torch.float32, 64))
        paths, changes = {"weighted": path}, {"moment": "end_loss", "parts": parts, "plain_share": 0.25}
        with tensorfile.opened(path) as file:
            omegas = {name: file.get(f"{name}.omega").double().numpy() for name in names}
    run(tmp_path, paths, target, bits=4, correction=correction, **changes)
    x, quantised = (inputs_of(each, names, SEQUENCES) for each in (model, loaded(target)))
    moved = 0
    with stored.opened(target) as file:
        for name in names:
            w = model.get_submodule(name).weight.detach().double().numpy()
            after, codes = quantised[name], []
            for k, rows in enumerate(np.array_split(w, parts or 1)):
                root = np.sqrt(0.25 + 0.75 * omegas[name][k] / omegas[name][k].mean())[:, None] if parts else 1.0
                goal = reference.corrected(rows, x[name] * root, after * root, correction)
                codes.append(reference.gptq(goal, reference.second_moment(after * root), 4, -1, False, 0.01, True))
            codes = np.concatenate(codes)
            found = file.linear(name).codes[:, 0].double().numpy()
            assert (found != codes).mean() < 0.02, name
            plain = reference.gptq(w, reference.second_moment(x[name]), 4, -1, False, 0.01, True)
            moved += (found != plain).mean() > 0.05
    assert moved >= 8


@pytest.mark.parametrize("name", MODELS)
def test_folded_models_fit_together(models: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    """With a grid so fine that rounding is next to nothing, folds and corrections leave the logits as they were."""
    case = models(name)
    changes = {"bits": 8, "group_size": 1, "symmetric": True, "n_grid": 4, "correction": 0.5}
    run(case.path, case.paths, tmp_path, salience="l2", scope="shared", **changes)
    before, after = case.logits(tmp_path)
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05 * before.std().item())


def test_later_linears_make_up_for_earlier_ones(models: Callable[[str], Case], tmp_path: Path) -> None:
    case, errors = models("llama"), {}
    common = {"salience": "l2", "scope": "shared", "n_grid": 4, "bits": 4, "group_size": 16, "clip": True}
    for method, changes in {"sequential": {}, "corrected": {"correction": 0.5}, "refined": {"refine": 3}}.items():
        run(case.path, case.paths, tmp_path / method, **common | changes)
        errors[method] = self_error(*case.logits(tmp_path / method))
    case.run(tmp_path / "parallel", rounding="gptq", **common)
    errors["parallel"] = self_error(*case.logits(tmp_path / "parallel"))
    assert len(set(errors.values())) == 4 and all(0 < value < 1 for value in errors.values()), errors


def self_error(before: torch.Tensor, after: torch.Tensor) -> float:
    return ((after - before).square().mean() / before.square().mean()).item()


def test_the_same_to_the_bit(models: Callable[[str], Case], tmp_path: Path) -> None:
    case, kept = models("llama"), []
    for again in ("a", "b"):
        run(case.path, case.paths, tmp_path / again, group_size=16, correction=0.5, refine=2)
        with tensorfile.opened(tmp_path / again / "model.safetensors") as file:
            kept.append({name: file.get(name) for name in file.names})
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


def test_linears_and_blocks_that_are_left_stay_as_they_are(models: Callable[[str], Case], tmp_path: Path) -> None:
    """The rest is quantised for what they give."""
    case = models("llama")
    left = {"model.layers.1.self_attn.o_proj", *(name for name in case.linears if ".layers.0." in name)}
    linears = {name: layer for name, layer in case.linears.items() if name not in left}
    way, recipe = Sequential(case.path, CALIBRATION, "cpu", torch.float32, 64), Recipe.of(SEQUENTIAL | {"bits": 3})
    statistics = Statistics({}, "m", PATTERNS)
    given = (Source(case.path, linears), Output(tmp_path, tmp_path / "folds"), statistics, recipe, "cpu", MADE)
    record = quantize_checkpoint(*given, quantize_block=way)
    assert [row["linear"] for row in record["linears"]] == list(linears)
    x, after = (inputs_of(model, list(case.linears), SEQUENCES) for model in (case.model, loaded(tmp_path)))
    name = "model.layers.1.mlp.down_proj"
    w = case.model.get_submodule(name).weight.detach().double().numpy()
    codes = reference.gptq(w, reference.second_moment(after[name]), 3, -1, False, 0.01, True)
    _, steps, zeros = reference.by_column(w, 3, -1, False)
    with stored.opened(tmp_path) as file:
        found = file.weight(name).double().numpy()
    assert (np.abs(found - (codes - zeros) * steps) > 1e-4).mean() < 0.02
    assert np.allclose(x["model.layers.1.self_attn.q_proj"], after["model.layers.1.self_attn.q_proj"], atol=1e-5)
