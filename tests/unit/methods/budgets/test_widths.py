"""One recipe with a width for each linear: each as it is where all have that width, and through a run of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quant.calibration.reader import Statistics
from quant.checkpoints import stored
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.files import tensorfile
from quant.files.artifacts import write_json
from quant.methods.budgets.widths import GivenWidths
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute
from tests.unit.methods.with_model.given import CALIBRATION, TUNE
from tests.unit.recipe.cases import LINEARS, MADE, PATTERNS, PLAIN, run
from tests.unit.recipe.folded import Case

GRIDS = [(4, 16), (3, 8), (8, 16)]
SHARED = {"salience": "l2", "scope": "shared", "n_grid": 4, "rounding": "gptq", "refine": 1}
SHARED |= {"search_bits": 4, "search_group_size": 16, "group_size": 16}


def test_each_linear_is_as_it_is_where_all_have_its_width(
    tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path
) -> None:
    """Of scales that are searched for one grid, whatever the linear's own."""
    widths = {name: GRIDS[i % 3] for i, name in enumerate(LINEARS)}
    mix, recipe = tmp_path / "mix", Recipe.of(PLAIN | SHARED, widths)
    given = (
        Source(tiny_checkpoint, LINEARS),
        Output(mix, tmp_path / "folds"),
        Statistics(statistics, "tiny", PATTERNS),
        recipe,
    )
    record = quantize_checkpoint(*given, "cpu", MADE)
    found = load_file(mix / "model.safetensors")
    for bits, group_size in GRIDS:
        alone = tmp_path / f"{bits}"
        run(tiny_checkpoint, alone, statistics, **SHARED | {"bits": bits, "group_size": group_size})
        own = load_file(alone / "model.safetensors")
        for name in LINEARS:
            if widths[name] != (bits, group_size):
                continue
            parts = [key for key in found if key.startswith(f"{name}.weight")]
            assert parts and all(torch.equal(found[key], own[key]) for key in parts), name
    assert record["summary"]["storage"] == "packed"


def test_a_run_of_the_model_takes_each_width(models: Callable[[str], Case], tmp_path: Path) -> None:
    """Sequential, reconstructed and tuned, as plain transformers reads it."""
    case = models("llama")
    widths = {name: GRIDS[i % 3] for i, name in enumerate(case.linears)}
    recipe = PLAIN | SHARED | {"inputs": "sequential", "correction": 0.5, "tune": TUNE | {"epochs": 1}}
    recipe |= {"reconstruct": {"iterations": 4, "batch": 2, "code_rate": 0.25, "step_rate": 0.005}}
    target, made = tmp_path / "target", {"by": "test", "model_fingerprint": "m"}
    given = (
        Source(case.path, case.linears),
        Output(target, tmp_path / "folds"),
        Statistics(case.paths, "m", PATTERNS),
        recipe,
    )
    record = quantize_with_model(*given, CALIBRATION, Compute("cpu", torch.float32, 64), made, widths=widths)
    assert record["tuning"]["kl_tuned"] <= record["tuning"]["kl_start"] and record["reconstruction"]
    assert record["summary"]["storage"] == "packed"
    model = load_model(target, "cpu", torch.float32)
    with stored.opened(target, "m") as file:
        for name, grid in widths.items():
            assert (file.packed[name].bits, file.packed[name].group_size) == grid
            assert torch.equal(model.get_submodule(name).weight, file.weight(name)), name
    with tensorfile.opened(tmp_path / "folds") as folds:
        assert any(name.endswith(".input") for name in folds.names)


def test_what_was_chosen_is_told_after_it(tmp_path: Path) -> None:
    """All that the choice says of a linear but its prediction, which is of another rounding; of another recipe none."""
    path, recipe = tmp_path / "widths.json", {"bits": 4}
    row = {"linear": "a", "bits": 3, "group_size": 16, "predicted_nats": 1.0, "corrected_nats": 2.0}
    write_json(
        path, {"linears": [row], "predicted_nats": 1.0, "bits_per_weight": 3.0, "provenance": {"recipe": recipe}}
    )
    widths = GivenWidths.read(str(path), recipe=recipe)
    assert widths.grids == {"a": (3, 16)}
    record: Any = {"linears": [{"linear": "a", "bits": 3, "predicted_nats": 5.0}], "summary": {}, "provenance": {}}
    told: Any = widths.told(record)
    assert told["linears"] == [record["linears"][0] | {"group_size": 16, "corrected_nats": 2.0}]
    assert told["predicted_nats"] == 1.0 and told.keys() == record.keys() | {"predicted_nats"}
    nothing = GivenWidths.read(None)
    assert nothing.grids == {} and nothing.told(record) == record
    with pytest.raises(InputError, match="recipe"):
        GivenWidths.read(str(path), recipe={"bits": 2})
