"""The frontier's own recipes, as config.yaml has them: less divergence than nearest rounding on models that are no
Llama and on odd shapes, finite on damaged weights, and refused by name where they cannot be."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.row_moments import collect_row_moments
from quant.errors import InputError
from quant.evaluation.divergence import compare
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from quant.workflow import configuration
from tests.unit.calibration.architectures import COMMON, saved
from tests.unit.methods.damages import DAMAGES, damaged, statistics_of
from tests.unit.methods.with_model.given import CALIBRATION, SEQUENCES, loaded
from tests.unit.recipe.cases import PATTERNS
from tests.unit.recipe.folded import MADE, Case
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

CONFIG = configuration.load(DEFAULT | {"study": {"methods": "all"}}, SCHEMA)["methods"]
# of `frontier` and `frontier_rows`, which is that and row feedback, the latter
FRONTIER = {name: recipe for name, recipe in CONFIG.items() if name.startswith("frontier") and name != "frontier"}
SMALL = {"group_size": 16, "n_grid": 5}


def run(
    source: Path, target: Path, recipe: dict[str, Any], paths: dict[str, str], mark: str = "tiny"
) -> dict[str, Any]:
    """mark: of the model that the statistics in paths are of. With small groups, few iterations where it is tuned."""
    few = {"tune": {"epochs": 2, "batch": 2}, "reconstruct": {"iterations": 8, "batch": 2}}
    recipe = recipe | SMALL | {key: recipe[key] | fewer for key, fewer in few.items() if recipe[key]}
    if recipe["row_feedback"] and paths:
        paths = paths | {"rows": str(target.parent / "rows.safetensors")}
        if not Path(paths["rows"]).exists():
            material = Material(source, CALIBRATION, {"model_fingerprint": mark})
            collect_row_moments(material, paths["rows"], 0, Compute("cpu", torch.float32, 64))
    names, statistics = all_linears(skeleton(source)), Statistics(paths, mark, PATTERNS)
    given = (Source(source, names), Output(target, target.with_suffix(".folds")), statistics)
    if recipe["inputs"] == "sequential":
        return dict(quantize_with_model(*given, recipe, CALIBRATION, Compute("cpu", torch.float32, 64), MADE))
    return dict(quantize_checkpoint(*given, Recipe.of(recipe), "cpu", MADE))


@torch.inference_mode()
def divergence(original: Any, target: Path) -> float:
    """Mean KL over the calibration's tokens."""
    after = loaded(target)
    found = [
        compare(*(each(ids[None], use_cache=False).logits[0] for each in (original, after)))[0] for ids in SEQUENCES
    ]
    return float(torch.cat(found).mean())


def against_nearest(
    source: Path, original: Any, paths: dict[str, str], folder: Path, name: str, mark: str = "tiny"
) -> tuple[float, float]:
    """A recipe's divergence, and that of nearest rounding to as many bits."""
    nearest = CONFIG["rtn_g"] | {"bits": FRONTIER[name]["bits"]}
    run(source, folder / name, FRONTIER[name], paths, mark)
    run(source, folder / "nearest", nearest, {})
    return divergence(original, folder / name), divergence(original, folder / "nearest")


def test_there_are_four() -> None:
    assert set(FRONTIER) == {"frontier_rows", "frontier_fast", "frontier_3bit", "frontier_2bit"}
    assert CONFIG["frontier"] == FRONTIER["frontier_rows"] | {"row_feedback": 0.0}
    assert all(recipe["inputs"] == "sequential" for recipe in FRONTIER.values())


@pytest.mark.parametrize("name", ["frontier_fast", pytest.param("frontier_2bit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "phi3"])
def test_a_model_that_is_no_llama_gains(models: Callable[[str], Case], kind: str, name: str, tmp_path: Path) -> None:
    """Gemma's norms are 1 + weight and its MLP has GELU; Phi-3 has fused projections."""
    case = models(kind)
    own, nearest = against_nearest(case.path, case.model, case.paths, tmp_path, name, "m")
    assert own < 0.6 * nearest


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "frontier_fast")) for name in FRONTIER]
)
def test_groups_that_do_not_divide_the_inputs_gain(tmp_path: Path, name: str) -> None:
    """Inputs of 40 and 52 in groups of 16: the last group is shorter, and nothing is packed."""
    shape = {"hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2, "initializer_range": 0.2}
    source = tmp_path / "source"
    original = saved("LlamaConfig", COMMON | shape, source)
    own, nearest = against_nearest(source, original, plain(statistics_of(source, tmp_path)), tmp_path, name)
    assert own < 0.6 * nearest


def plain(paths: dict[str, str]) -> dict[str, str]:
    return {key: path for key, path in paths.items() if key != "weighted"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_weights_stay_finite(
    tiny_checkpoint: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], None]
) -> None:
    """Every weight, number of the record, and logit, of each recipe."""
    source = damaged(tiny_checkpoint, tmp_path / "source", damage)
    paths = plain(statistics_of(source, tmp_path))
    for name, recipe in FRONTIER.items():
        record = run(source, tmp_path / name, recipe, paths)
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point()), name
        for row in record["linears"]:
            assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), (name, row)
        with torch.inference_mode():
            assert torch.isfinite(loaded(tmp_path / name)(SEQUENCES[0][None]).logits).all(), name


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GPTNeoXConfig", "scope: shared is not known for model_type 'gpt_neox', but for llama, granite, "),
        ("Starcoder2Config", "scope: shared is not known for model_type 'starcoder2', but for llama, granite, "),
    ],
)
def test_what_has_no_known_folds_is_refused_by_name(kind: str, words: str, tmp_path: Path) -> None:
    saved(kind, COMMON | {"num_hidden_layers": 1}, tmp_path)
    for name, recipe in FRONTIER.items():
        with pytest.raises(InputError, match="scope: shared") as caught:
            run(tmp_path, tmp_path / name, recipe, {})
        assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
