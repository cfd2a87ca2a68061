"""Budgets in a configuration: their candidates are methods like others, and what cannot be is refused in one line."""

import copy
from typing import Any

import pytest

from quant.errors import InputError
from quant.recipe import keys
from quant.workflow import configuration
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


def loaded(methods: dict[str, Any], study: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(DEFAULT) | changes
    config |= {"methods": methods, "sensitivity": {"methods": []}, "study": {"methods": study or list(methods)}}
    config["study"] |= {key: DEFAULT["study"][key] for key in ("models", "datasets")}
    return configuration.load(config, SCHEMA)


def test_candidates_are_the_recipe_at_each_width() -> None:
    config = loaded({"mixed": {"budget": {"bits_per_weight": 3.5}, "clip": True, "rounding": "gptq"}})
    names = [f"mixed-bits{bits}" for bits in (2, 3, 4, 8)]
    assert config["study"]["methods"] == [*names, "mixed"] == config["families"]["mixed"]
    assert config["candidates"] == {"mixed": names}
    methods = config["methods"]
    alone = loaded({"alone": {"clip": True, "rounding": "gptq", "bits": 3}})["methods"]["alone"]
    assert methods["mixed-bits3"] == alone and keys.way_of(alone) == "weights"
    assert keys.way_of(methods["mixed"]) == "candidates"
    assert [each["bits"] for each in methods["mixed"]["candidates"]] == [2, 3, 4, 8, 16]
    assert methods["mixed"]["budget"] == {"bits_per_weight": 3.5, "size_mb": 0.0}
    assert any("/end_loss-1" in file for file in keys.statistics_files(methods["mixed"]).values())


def test_several_budgets_share_their_candidates_and_what_is_there_is_one() -> None:
    grids = [{"bits": 4}, {"bits": 4, "group_size": 32}, {"bits": 16}]
    config = loaded(
        {
            "there": {"clip": True},
            "m": {"budget": [{"bits_per_weight": 5}, {"size_mb": 90}], "clip": True, "candidates": grids},
        }
    )
    budgets = ["m-bits_per_weight5", "m-size_mb90"]
    assert config["families"] == {"m": ["there", "m-bits4-group_size32", *budgets]}
    assert config["candidates"] == {name: ["there", "m-bits4-group_size32"] for name in budgets}
    assert config["methods"]["m-bits4-group_size32"]["group_size"] == 32
    assert "m-bits4-group_size32" not in loaded({"there": {"clip": True}})["methods"]


def test_candidates_of_shared_scales_share_what_these_are_searched_for() -> None:
    entry = {"budget": {"bits_per_weight": 5}, "salience": "l2", "scope": "shared"}
    methods = loaded({"m": entry})["methods"]
    assert {methods[f"m-bits{bits}"]["search_bits"] for bits in (2, 3, 4, 8)} == {4}
    assert {methods[f"m-bits{bits}"]["search_group_size"] for bits in (2, 3, 4, 8)} == {0}
    assert loaded({"m": entry | {"search_bits": 3}})["methods"]["m-bits8"]["search_bits"] == 3
    several = entry | {"candidates": [{"bits": 4}, {"bits": 3, "group_size": 32}]}
    methods = loaded({"m": several})["methods"]
    assert {methods[name]["search_group_size"] for name in ("m-bits4", "m-bits3-group_size32")} == {64}


def test_a_recipe_that_runs_the_model_takes_widths_from_candidates_that_do_not() -> None:
    entry = {"budget": [{"bits_per_weight": 3.5}, {"size_mb": 90}], "rounding": "gptq", "inputs": "sequential"}
    entry |= {"correction": 0.5, "reconstruct": {}, "tune": {}, "swaps": {}}
    config = loaded({"m": entry})
    methods, alone = config["methods"], [f"m-bits{bits}-alone" for bits in (2, 3, 4, 8)]
    budgets = ["m-bits_per_weight3.5", "m-size_mb90"]
    assert config["candidates"] == dict.fromkeys(budgets, alone)
    assert config["study"]["methods"] == ["m-bits2", "m-bits3", "m-bits4", "m-bits8", *budgets]
    plain = loaded({"plain": {"rounding": "gptq", "bits": 3}})["methods"]["plain"]
    assert methods["m-bits3-alone"] == plain and {keys.way_of(methods[name]) for name in budgets} == {"model"}
    assert methods["m-bits3"]["correction"] == 0.5 and methods["m-bits3"]["tune"] == methods[budgets[0]]["tune"]
    assert [each["bits"] for each in methods[budgets[0]]["candidates"]] == [2, 3, 4, 8]
    assert methods[budgets[0]]["swaps"] == {"sections": 4, "sequences": 8}
    within = loaded({"m": entry | {"budget": {"bits_per_weight": 3.5}}})
    assert within["study"]["methods"] == ["m-bits2", "m-bits3", "m"] and len(within["candidates"]["m"]) == 4


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"budget": {}}, r"methods\.m\.budget: limits nothing"),
        ({"budget": {"bits": 3}}, r"methods\.m\.budget: .*'bits'"),
        ({"bits": 3}, "bits and budget do not go together"),
        ({"inputs": "sequential", "candidates": [{"bits": 16}]}, "16 bits and inputs: sequential do not go together"),
        ({"tune": {}, "candidates": [{"bits": 4}, {"bits": 16}]}, "16 bits and tune do not go together"),
        ({"swaps": {"parts": 3}}, "'parts'"),
        ({"swaps": {"sequences": 65}}, r"methods\.m\.swaps: sequences: 65: calibration\.n_calib is 64; write no more"),
        ({"candidates": [{"bits": 4}, {"bits": 4, "group_size": 64}]}, "two of 4 bits in groups of 64"),
        ({"candidates": [{"bits": 16}]}, "none is quantised"),
        ({"candidates": [{"bits": 5}]}, "5; valid: 2, 3, 4, 8, 16"),
        ({"candidates": [{"group_size": 32}]}, "lacks 'bits'"),
        ({"rounding": "gptq", "n_calib": 7}, "n_calib: 7 and budget do not go together"),
    ],
)
def test_what_a_budget_cannot_be(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        loaded({"m": {"budget": {"bits_per_weight": 3.5}} | entry})
    assert "\n" not in str(caught.value)


def test_candidates_without_a_budget_are_refused() -> None:
    with pytest.raises(
        InputError, match="candidates has no effect with budget: null; set budget, or leave candidates out"
    ):
        loaded({"m": {"candidates": [{"bits": 4}]}})
    with pytest.raises(InputError, match="its candidate would be m-bits3, which is another method's name"):
        loaded({"m": {"budget": {"bits_per_weight": 3.5}}, "m-bits3": {"salience": "l1"}})
