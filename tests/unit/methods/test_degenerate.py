"""Weights and inputs of nothing, constants, and numbers at the ends of their type: finite results, no worse than
nearest rounding."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.evaluation.exact_error import measure
from quant.evaluation.perplexity import load_model
from quant.methods import block
from quant.recipe import grids
from quant.recipe.ranges import foldable, held
from tests.unit.methods.damages import DAMAGES, Watched, damaged, statistics_of
from tests.unit.recipe.cases import PATTERNS, run

JACOBIAN = {"salience": "l2", "objective": "jacobian", "plain_share": 0.5}
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {},
    "rtn_sym": {"symmetric": True},
    "rtn_channel": {"group_size": -1, "symmetric": True},
    "rtn_clip": {"clip": True},
    "l1": {"salience": "l1"},
    "l2_clip": {"salience": "l2", "clip": True},
    "praq": {"salience": "praq", "objective": "praq"},
    "flip": {"salience": "l2", "rounding": "greedy_flip"},
    "gptq": {"rounding": "gptq"},
    "l2_gptq": {"salience": "l2", "rounding": "gptq", "clip": True},
    "refined": {"refine": 2},
    "gptq_refined": {"salience": "l2", "rounding": "gptq", "clip": True, "refine": 2},
    "kept": {"keep": "praq", "symmetric": True},
    "shared": {"salience": "l2", "scope": "shared"},
    "shared_gptq": {"salience": "l2", "scope": "shared", "rounding": "gptq", "clip": True},
    "jacobian": JACOBIAN,
    "jacobian_gptq": JACOBIAN | {"rounding": "gptq", "clip": True},
}
# those that minimise the error that is measured here
BY_ERROR = {
    "rtn", "rtn_sym", "rtn_channel", "rtn_clip", "l1", "l2_clip", "gptq", "l2_gptq", "refined", "gptq_refined",
    "shared", "shared_gptq", "kept",
}  # fmt: skip
NEAREST = {
    name: {key: value for key, value in changes.items() if key in ("symmetric", "group_size")}
    for name, changes in RECIPES.items()
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_recipe_is_finite_and_no_worse_than_nearest_rounding(
    tiny_checkpoint: Path,
    tmp_path: Path,
    damage: Callable[[dict[str, Tensor]], None],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = damaged(tiny_checkpoint, tmp_path / "source", damage, dtype)
    paths = statistics_of(source, tmp_path)
    plain = {key: paths[key] for key in ("channels", "moments")}
    nearest: dict[str, dict[str, float]] = {}
    for name, changes in RECIPES.items():
        used = plain | ({"weighted": paths["weighted"], "row_weight": paths["weighted"]} if "jacobian" in name else {})
        target = tmp_path / name
        target.mkdir()
        if name == "jacobian_gptq":  # by the weighted moment, which it minimises
            monkeypatch.setattr(block, "round_linear", Watched())
        record = run(source, target, used, **{"group_size": 16, "n_grid": 5} | changes)
        tensors = load_file(target / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point()), name
        for row in record["linears"]:
            assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), (name, row)
        with torch.inference_mode():
            logits = load_model(target, "cpu", torch.float32)(torch.arange(20)[None]).logits
        assert torch.isfinite(logits).all(), name
        rows = measure(
            source / "model.safetensors", target, tmp_path / f"{name}.folds.safetensors",
            Path(paths["moments"]), record, PATTERNS, "cpu",
        )  # fmt: skip
        found = {row["linear"]: row["mse"] for row in rows}
        kind = str(NEAREST[name])
        nearest.setdefault(kind, found)  # the first of each grid rounds to nearest
        if name in BY_ERROR:
            # of linears that share a scale, all together
            parts = [{linear} for linear in found] if "shared" not in name else [set(found)]
            for part in parts:
                mse, least = (sum(errors[linear] for linear in part) for errors in (found, nearest[kind]))
                scale = sum(row["mse"] / max(row["relative_error"], 1e-9) for row in rows if row["linear"] in part)
                assert mse <= 1.05 * least + 1e-7 * scale, (name, part, mse, least)


def test_a_scale_that_folds_well_stays_as_it_is() -> None:
    scale, values = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.1])
    assert foldable(scale, values, torch.ones(2), torch.float16) is scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_a_scale_is_folded_into_neither_overflows_nor_vanishes(dtype: torch.dtype) -> None:
    values, columns = torch.tensor([1.0, 2.0, 0.5, 0.0, 1e-3]), torch.tensor([1.0, 0.0, 1e-4, 3.0, 0.2])
    kind = torch.finfo(dtype)
    for scale in (torch.tensor([1e-30, 1e-5, 1.0, 1.0, 1e20]), torch.full((5,), 1e-6), torch.full((5,), 1e9)):
        found = foldable(scale, values, columns, dtype)
        folded, read = (values / found).to(dtype), (columns * found).to(dtype)
        assert torch.isfinite(folded).all() and (folded[values > 0].abs() >= kind.smallest_normal).all()
        assert torch.isfinite(read).all()


def test_one_power_of_two_is_enough_where_all_are_out_of_range_alike() -> None:
    for scale in (torch.tensor([1e-6, 3e-6]), torch.tensor([1e6, 3e6])):
        ratio = foldable(scale, torch.ones(2), torch.ones(2), torch.float16) / scale
        assert ratio[0] == ratio[1] and math.log2(ratio[0].item()).is_integer()


def test_codes_stay_within_the_type() -> None:
    grid = grids.Grid(4, -1, False)
    w = torch.tensor([[65504.0, -65504.0, 10.0], [1.0, 2.0, 3.0]])
    groups = grids.to_groups(w, -1)
    step, zero = grids.fit(groups, grid)
    codes = grids.encode(groups, step, zero, grid)
    kept = held(codes, step, zero, grid, torch.ones(2, 1, 1), 65504.0)
    assert grids.decode(codes, step, zero).abs().max() > 65504 >= grids.decode(kept, step, zero).abs().max()
    assert torch.equal(kept[1], codes[1]) and (kept - codes).abs().max() == 1
