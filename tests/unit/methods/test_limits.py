"""Limits, budgets and choices that nothing of a study can meet, or nothing packed."""

import re
from pathlib import Path
from typing import Any

import pytest

from quant.files.tensorfile import opened
from quant.methods.dense import best_mistakes
from quant.methods.packing import why_dense
from quant.methods.refusals import limit_mistakes
from quant.recipe.recipe import Recipe
from quant.workflow.demands import demands
from tests.unit.methods.studies import completed, found, record_of
from tests.unit.recipe.cases import PLAIN
from tests.unit.workflow.configurations import DEFAULT_LIMITS, loaded


def recipes(**methods: Any) -> dict[str, Any]:
    choose = {"max_bits_per_weight": 1}
    return demands(loaded(methods, defaults={"group_size": 16}, choose=choose), DEFAULT_LIMITS)["recipes"]


def limited(checkpoint: Path, linears: dict[str, int], limits: dict[str, float], **methods: Any) -> list[str]:
    with opened(checkpoint / "model.safetensors") as file:
        return list(limit_mistakes(limits, recipes(**methods), record_of(linears), file.layout()))


def test_a_limit_that_no_packed_method_can_meet(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """4 bits in groups of 16 with a float32 step and a zero point of 4 bits: 4 + 36/16 = 6.25, and a shape of 128."""
    methods: dict[str, Any] = {
        "low": {},
        "high": {"bits": 8},
        "dense": {"salience": "l1"},
        "two": {"bits": 2, "keep": "awq"},
    }
    (line,) = limited(tiny_checkpoint, linears, {"max_bits_per_weight": 6.2}, **methods)
    assert line.startswith("choose.max_bits_per_weight: no packed method of the study has at most 6.2 bits per weight")
    assert "the smallest, low, has 6.30" in line
    assert limited(tiny_checkpoint, linears, {"max_bits_per_weight": 6.5}, **methods) == []
    (line,) = limited(tiny_checkpoint, linears, {"max_size_mb": 0.001}, **methods)
    assert (
        line.startswith("choose.max_size_mb: no packed method of the study has at most 0.001 MB") and "0 MB" not in line
    )
    assert limited(tiny_checkpoint, linears, {"max_size_mb": 1, "max_bits_per_weight": 8}, **methods) == []


def test_a_study_without_packed_methods_has_nothing_to_limit(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    assert limited(tiny_checkpoint, linears, {"max_bits_per_weight": 1}, dense={"salience": "l1"}) == []


def test_a_budget_that_no_candidates_meet(tiny_checkpoint: Path, linears: dict[str, int]) -> None:
    """2 bits in groups of 16 with a float32 step and a zero point: 2 + 32/16, padded to whole words; 3 as 3.2."""
    budgets = {"low": {"bits_per_weight": 4}, "small": {"size_mb": 0.05}, "well": {"bits_per_weight": 5, "size_mb": 1}}
    methods = {name: {"budget": limits, "group_size": 16} for name, limits in budgets.items()}
    wanted = demands(loaded(methods), DEFAULT_LIMITS)["budgets"]
    low, small = found(tiny_checkpoint, linears, budgets=wanted)
    assert low.startswith("methods.low.budget: bits_per_weight: 4: the smallest choice of its candidates takes 4.")
    assert small.startswith("methods.small.budget: size_mb: 0.05: the smallest choice of its candidates takes 0.1")


@pytest.mark.parametrize(
    ("unpacked", "methods", "expected"),
    [
        ({}, {"a": {}, "b": {"salience": "l1"}}, []),
        ({}, {"b": {"salience": "l1"}}, ["choose: no method of the study is stored packed .*b: scope: linear"]),
        ({"any": "a Conv1D"}, {"a": {}}, [r"choose: no method .* \(a: a Conv1D\), so that there is none to take"]),
        (
            {"asymmetric": "no zeros; symmetric: true packs them"},
            {"a": {"symmetric": True}, "m": {"budget": {"size_mb": 9}}},
            ["methods.m.budget: size_mb: counts a packed file's bytes, .*: no zeros; symmetric: true packs them"],
        ),
        ({"asymmetric": "no"}, {"a": {"symmetric": True}, "m": {"budget": {"size_mb": 9}, "symmetric": True}}, []),
        ({"asymmetric": "no"}, {"a": {"symmetric": True}, "m": {"budget": {"bits_per_weight": 9}}}, []),
    ],
)  # fmt: skip
def test_a_choice_of_nothing_is_refused(
    tiny_checkpoint: Path, linears: dict[str, int], unpacked: dict[str, str], methods: Any, expected: list[str]
) -> None:
    with opened(tiny_checkpoint / "model.safetensors") as file:
        wanted = {"storage": None, "gguf": [], "recipes": completed(**methods)}
        record, layout = record_of(linears, **unpacked), file.layout()
        lines = list(best_mistakes(wanted, record, layout))
        assert len(lines) == len(expected) and all(map(re.match, expected, lines))
        with_files = list(best_mistakes(wanted | {"gguf": ["a"]}, record, layout))
        assert [line for line in with_files if line.startswith("choose")] == []
        (line,) = best_mistakes(wanted | {"storage": "gguf"}, record, layout)
        assert line.startswith("choose.storage: gguf: study.gguf names no method")
        assert list(best_mistakes(wanted | {"storage": "gguf", "gguf": ["a"]}, record, layout)) == []


def test_experts_on_several_grids_are_dense(linears: dict[str, int]) -> None:
    """transformers reads all of them on one; another grid beside them is no matter."""
    shapes = {f"model.layers.0.mlp.experts.{i}.{part}_proj": (32, 32) for i in (0, 1) for part in ("up", "down")}
    shapes["model.layers.0.self_attn.q_proj"] = (32, 32)
    unpacked = {"asymmetric": "no zero points"}

    def why(linears: str, **changes: Any) -> str | None:
        grid = {"linears": linears, "bits": 8, "group_size": 32, "symmetric": True, "format": "int"}
        return why_dense(Recipe.of(PLAIN | {"symmetric": True, "tensor_types": [grid]} | changes), shapes, unpacked)

    assert why("q_proj") is None
    assert why("down_proj") == "transformers reads all experts on one grid, and tensor_types gives them several"
    assert why("q_proj", symmetric=False) == "no zero points"
    assert why_dense(Recipe.of(PLAIN), shapes, {}) is None
