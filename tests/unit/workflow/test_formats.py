"""What a number format says of a recipe by itself, and what it refuses."""

from typing import Any

import pytest

from quant.comparison.pairs import at_equal_bits, full_words
from quant.recipe import grids
from quant.recipe.formats import FORMATS, bits_per_weight
from quant.recipe.grids import Grid
from quant.recipe.recipe import Recipe
from tests.unit.workflow.configurations import loaded, refusal


@pytest.mark.parametrize(
    ("entry", "grid"),
    [
        ({}, (4, 64, False)),
        ({"format": "nvfp4"}, (4, 16, True)),
        ({"format": "mxfp4"}, (4, 32, True)),
        ({"format": "fp8"}, (8, -1, True)),
        ({"format": "fp8", "group_size": 128}, (8, 128, True)),
        ({"format": "nf4"}, (4, 64, True)),
        ({"format": "nf4", "group_size": 32, "symmetric": True}, (4, 32, True)),
        ({"format": "iq4_nl"}, (4, 32, True)),
        ({"format": "q3_k"}, (3, 16, True)),
    ],
)
def test_a_format_says_its_grid(entry: dict[str, Any], grid: tuple[int, int, bool]) -> None:
    common = {"group_size": 64, "bits": 4}
    recipe = loaded({"m": entry}, defaults=common)["methods"]["m"]
    assert tuple(recipe[key] for key in ("bits", "group_size", "symmetric")) == grid
    methods = loaded({"m": {}}, defaults=common | entry)["methods"]
    assert entry.get("group_size") or methods["m"]["group_size"] == grid[1], "a format may be every method's"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"format": "nvfp4", "group_size": 64}, "group_size: 64 and format: nvfp4 do not go together, since it has"),
        ({"format": "mxfp4", "bits": 3}, "bits: 3 and format: mxfp4 do not go together, since it has bits: 4"),
        ({"format": "fp8", "group_size": 64}, "since it has group_size: -1 or 128; leave group_size out"),
        ({"format": "nf4", "symmetric": False}, "symmetric: false and format: nf4"),
        ({"format": "nf4", "salience": "l2", "search_bits": 3}, "search_bits and format: nf4"),
        ({"format": "nvfp4", "budget": {"size_mb": 90}}, "budget and format: nvfp4"),
        (
            {"format": "nf4", "inputs": "sequential", "rounding": "gptq", "reconstruct": {}},
            "reconstruct and format: nf4 do not go together, since it tunes codes of int, iq4_nl, q3_k",
        ),
        ({"format": "fp8", "group_size": 128, "salience": "l2", "scope": "shared"}, "scope and format: fp8 in blocks"),
        ({"format": "fp8", "group_size": 128, "clip": True, "moment": "end_loss", "parts": 4}, "parts and format: fp8"),
        ({"format": "fp8", "group_size": 128, "rounding": "gptq", "row_feedback": 0.7}, "row_feedback and format: fp8"),
    ],
)
def test_what_a_format_does_not_have_is_refused(entry: dict[str, Any], words: str) -> None:
    text = refusal({"m": entry})
    assert words in text and text.startswith("methods.m: ") and "\n" not in text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"tensor_types": [{"linears": "("}]}, "tensor_types: (: is no regular expression ("),
        ({"tensor_types": [{"linears": ""}]}, "'' is every linear; write a part of their names"),
        (
            {"tensor_types": [{"linears": "down", "format": "q3_k", "bits": 4}]},
            "tensor_types: down: bits: 4 and format: q3_k do not go together, since it has bits: 3; leave bits out",
        ),
        ({"tensor_types": [{"linears": "down"}], "budget": {"size_mb": 9}}, "tensor_types has no effect with budget"),
        ({"embeddings": {"format": "iq4_nl", "bits": 8}}, "embeddings: bits: 8 and format: iq4_nl do not go together"),
        (
            {
                **{"inputs": "sequential", "rounding": "gptq", "reconstruct": {}},
                "tensor_types": [{"linears": "down", "format": "nvfp4"}],
            },
            "reconstruct and format: nvfp4",
        ),
    ],
)
def test_grids_of_some_that_cannot_be_are_refused(entry: dict[str, Any], words: str) -> None:
    text = refusal({"m": entry})
    assert words in text and text.startswith("methods.m") and "\n" not in text


def test_grids_of_some_are_whole() -> None:
    types = [{"linears": "down", "format": "q3_k"}, {"linears": "up", "format": "int", "bits": 8}]
    entry = {"format": "iq4_nl", "tensor_types": types, "embeddings": {"format": "iq4_nl"}}
    recipe = loaded({"m": entry}, defaults={})["methods"]["m"]
    four = {"format": "iq4_nl", "group_size": 32}
    assert recipe["embeddings"] == {"bits": 4, "needed": True} | four
    assert recipe["tensor_types"][0] == types[0] | {"bits": 3, "group_size": 16, "symmetric": True}
    of = Recipe.of(recipe).at
    assert of("a.up_proj").grid == Grid(8, 32, True)
    assert of("a.down_proj").grid == Grid(3, 16, True, "q3_k") and of("a.gate_proj").grid == Grid(4, 32, True, "iq4_nl")


def test_pairs_at_equal_bits() -> None:
    eight = {"bits": 8, "symmetric": True, "group_size": -1}
    entries: dict[str, dict[str, Any]] = {
        "nv": {"format": "nvfp4"},
        "mx": {"format": "mxfp4"},
        "f": {"format": "fp8"},
        "blocks": {"format": "fp8", "group_size": 128},
        "i8": {"format": "int8"},
        "int8": eight,
        "int32": {"symmetric": True, "group_size": 32},
        "int64": {"symmetric": True, "group_size": 64},
        "zeros": {"group_size": 64},
        "nv_gptq": {"format": "nvfp4", "rounding": "gptq"},
        "mixed": {"budget": {"size_mb": 90}, "group_size": 32},
        "autoround": {"algorithm": "autoround", "group_size": 32, "symmetric": True},
    }
    recipes = loaded(entries)["methods"]
    found = {name: at_equal_bits(name, "int", "int8")(recipes) for name in ("nvfp4", "mxfp4", "fp8", "nf4")}
    assert found["nvfp4"] == [("nv", "int32")] and found["mxfp4"] == [("mx", "int64"), ("mx", "zeros")]
    assert found["fp8"] == [("f", "i8"), ("f", "int8"), ("blocks", "i8"), ("blocks", "int8")] and found["nf4"] == []
    assert full_words(recipes["nv"]) == "NVFP4, groups of 16" and full_words(recipes["f"]) == "FP8, per channel"


@pytest.mark.parametrize("name", FORMATS)
def test_bits_of_a_recipe_are_those_of_its_grid(name: str) -> None:
    own = FORMATS[name]
    for size in own.sizes or (32, 64):
        recipe = {"format": name, "bits": own.bits or 4, "group_size": size, "symmetric": name != "int"}
        grid = Grid(recipe["bits"], size, recipe["symmetric"], name)
        stored = grids.storage_bits(256, 2**20, grid) / (256 * 2**20)
        assert bits_per_weight(recipe) == pytest.approx(stored, rel=1e-4)
