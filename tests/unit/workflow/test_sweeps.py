"""Lists in place of values, and recipes whose parts do not go together."""

from itertools import combinations
from typing import Any

import pytest

from quant.recipe.keys import KEYS, OF_CHOICES, defaults, has_effect, statistics_files, whole
from tests.unit.workflow.configurations import SCHEMA, loaded, refusal

DEFAULTS = defaults()


@pytest.mark.parametrize(
    ("key", "values", "rest"),
    [
        ("group_size", [32, 64, 128], {}),
        ("group_size", [-1, 64], {}),
        ("n_calib", [16, 64, 128], {"salience": "l1"}),
        ("keep_ratio", [0.2, 0.3, 0.5, 0.7], {"keep": "awq"}),
        ("noise_std", [0.005, 0.01, 0.05], {"salience": "praq"}),
        ("bits", [2, 3, 4, 8], {}),
        ("seed", [0, 1, 2], {"salience": "l1", "noise_std": 0.01}),
        ("rounding", ["nearest", "gptq"], {}),
        ("symmetric", [True, False], {}),
    ],
)
def test_a_list_makes_a_family(key: str, values: list[Any], rest: dict[str, Any]) -> None:
    config = loaded({"swept": rest | {key: values}, "other": {}}, ["swept"])
    names = [f"swept-{key}{value}" for value in values]
    assert list(config["methods"]) == [*names, "other"]
    assert config["study"]["methods"] == names
    assert config["families"] == {"swept": names}
    for name, value in zip(names, values, strict=True):
        recipe = config["methods"][name]
        wanted = {each for each in DEFAULTS if each not in OF_CHOICES or has_effect(each, recipe)}
        assert recipe[key] == value and set(recipe) == {*wanted, "n_calib", "seed"}
        assert whole(recipe).keys() == {*DEFAULTS, "n_calib", "seed"}
        plain = loaded({"one": rest | {key: value}})["methods"]["one"]
        assert recipe == plain, "a sweep's method is what it would be alone"


def test_objects_in_a_list_are_told_apart_by_what_they_hold() -> None:
    tuned = {"tune": [None, {}, {"epochs": 2, "rate": 0.001}]}
    assert list(loaded({"m": tuned})["methods"]) == ["m-tuneNone", "m-tune", "m-epochs2-rate0.001"]
    ends = {"embeddings": [{"format": "iq4_nl"}, {"bits": 8, "needed": False}]}
    assert list(loaded({"m": ends})["methods"]) == ["m-formatiq4_nl", "m-bits8-neededFalse"]
    budget = {"budget": [{"size_mb": 12345678}, {"size_mb": 90.0}, {"size_mb": 90.00001}]}
    names = [name for name in loaded({"m": budget})["methods"] if "size" in name]
    assert names == ["m-size_mb12345678", "m-size_mb90", "m-size_mb90.00001"]


def test_several_lists_make_every_combination() -> None:
    config = loaded({"a": {"bits": [3, 4], "group_size": [32, 64, 128], "clip": True}})
    expected = [f"a-bits{bits}-group_size{size}" for bits in (3, 4) for size in (32, 64, 128)]
    assert config["study"]["methods"] == expected == config["families"]["a"]
    assert [(config["methods"][n]["bits"], config["methods"][n]["group_size"]) for n in expected[:2]] == [
        (3, 32),
        (3, 64),
    ]
    assert all(config["methods"][name]["clip"] for name in expected)


def test_study_takes_families_members_and_methods() -> None:
    methods = {"a": {"bits": [3, 4]}, "b": {}, "c": {"bits": [2, 8]}}
    assert loaded(methods, ["b", "a"])["study"]["methods"] == ["b", "a-bits3", "a-bits4"]
    assert loaded(methods, ["a-bits4", "c"])["study"]["methods"] == ["a-bits4", "c-bits2", "c-bits8"]
    assert loaded(methods)["study"]["methods"] == ["a-bits3", "a-bits4", "b", "c-bits2", "c-bits8"]
    assert loaded(methods)["families"] == {"a": ["a-bits3", "a-bits4"], "c": ["c-bits2", "c-bits8"]}
    assert "a-bits3" in refusal(methods, ["a-bits33"])


def test_a_method_chosen_twice_runs_once() -> None:
    assert loaded({"a": {"bits": [3, 4]}}, ["a", "a-bits3"])["study"]["methods"] == ["a-bits3", "a-bits4"]


@pytest.mark.parametrize(
    ("methods", "sweep"),
    [
        ({"a": {"bits": [3, 4]}, "a-bits3": {}}, "a"),
        ({"a-bits3": {}, "a": {"bits": [3, 4]}}, "a"),
        ({"a": {"bits": [3, 4], "seed": [1, 2]}, "a-bits3": {"seed": [2, 3]}}, "a-bits3"),
    ],
)
def test_two_methods_of_one_name_are_refused(methods: dict[str, Any], sweep: str) -> None:
    """In whichever order they stand, by the name of the one that is a sweep."""
    text = refusal(methods)
    assert text.startswith(f"methods.{sweep}: its sweep makes a second method named a-bits3") and "rename" in text


def test_names_that_differ_in_case_are_refused_within_sweeps_too() -> None:
    assert "only in case" in refusal({"a": {"bits": [3, 4]}, "A-Bits3": {}})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "swept.group_size"),
        ([64], "swept.group_size"),
        ([64, 64], "swept.group_size"),
        ([64, 0], "swept.group_size.1"),
        ([64, "32"], "swept.group_size.1"),
        ([[32, 64], 128], "swept.group_size.0"),
    ],
)
def test_bad_lists_are_refused(value: list[Any], expected: str) -> None:
    assert expected in refusal({"swept": {"group_size": value}})


@pytest.mark.parametrize(
    ("key", "values"),
    [("keep_ratio", [0, 1, 1.5, -0.2]), ("noise_std", [-0.1]), ("damp", [0, -1, 2]), ("outlier_percent", [-0.1, 1])],
)
def test_values_out_of_range_are_refused(key: str, values: list[float]) -> None:
    for value in values:
        for entry in (value, [0.5, value]):
            assert f"methods.m.{key}" in refusal({"m": {key: entry}})


def test_statistics_are_shared_unless_what_they_hold_differs() -> None:
    base = {"salience": "praq", "noise_std": 0.01, "rounding": "gptq"}
    differing = {
        "n_calib": [{"n_calib": 16}, {"n_calib": 128}],
        "seed": [{"seed": 1}, {"seed": 2}],
        "noise_std": [{"noise_std": 0.02}, {"noise_std": 0.005}],
        "n_noise_samples": [{"n_noise_samples": 5}],
    }
    plain = statistics_files(loaded({"m": base})["methods"]["m"])
    assert set(plain) == {"channels", "moments", "noisy"}
    for changes in differing.values():
        all_files = [plain] + [statistics_files(loaded({"m": base | change})["methods"]["m"]) for change in changes]
        for one, other in combinations(all_files, 2):
            same = {key for key in one if one[key] == other[key]}
            calibration = "n_calib" in changes[0] or "seed" in changes[0]
            assert same == (set() if calibration else {"channels", "moments"})
    others: dict[str, Any] = {
        "bits": 3,
        "group_size": 32,
        "clip": True,
        "n_grid": 5,
        "damp": 0.1,
        "noise_injection": 0.1,
    }
    for key, value in others.items():
        assert statistics_files(loaded({"m": base | {key: value}})["methods"]["m"]) == plain


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, set()),
        ({"noise_injection": 0.1}, set()),
        ({"clip": True}, {"channels"}),
        ({"keep": "awq"}, {"channels"}),
        ({"rounding": "greedy_flip"}, {"channels"}),
        ({"rounding": "gptq"}, {"moments"}),
        ({"salience": "l1"}, {"channels", "moments"}),
        ({"salience": "l1", "objective": "praq"}, {"channels", "moments"}),
        ({"salience": "l1", "objective": "jacobian"}, {"channels", "moments", "row_weight"}),
        ({"salience": "l1", "moment": "jacobian"}, {"channels", "moments", "weighted"}),
        ({"rounding": "gptq", "moment": "jacobian"}, {"moments", "weighted"}),
    ],
)
def test_statistics_that_a_recipe_reads(entry: dict[str, Any], expected: set[str]) -> None:
    assert set(statistics_files(loaded({"m": entry})["methods"]["m"])) == expected


def test_the_residual_variant_is_a_file_of_its_own() -> None:
    entry = {"salience": "l2", "moment": "jacobian", "objective": "jacobian"}
    plain, residual = (
        statistics_files(loaded({"m": entry | more})["methods"]["m"]) for more in ({}, {"residual": True})
    )
    assert {key for key in plain if plain[key] != residual[key]} == {"weighted", "row_weight"}


# key: a value other than its default, the key that it needs, and the values of that which give it an effect
SEARCHED = ("salience", {"l1", "l2", "praq"})
RULES: dict[str, tuple[Any, str, set[str]]] = {
    "search_bits": (3, *SEARCHED),
    "search_group_size": (32, *SEARCHED),
    "n_grid": (5, *SEARCHED),
    "noise_std": (0.1, *SEARCHED),
    "objective": ("praq", *SEARCHED),
    "scope": ("shared", *SEARCHED),
    "residual": (True, "moment", {"jacobian"}),
    "plain_share": (0.5, "moment", {"jacobian", "end_loss"}),
    "parts": (4, "moment", {"end_loss"}),
    "activations": ("dynamic", "format", {"int8", "fp8"}),
    "correction": (0.5, "inputs", {"sequential"}),
    "reconstruct": ({}, "inputs", {"sequential"}),
    "outlier_percent": (0.1, "rounding", {"greedy_flip"}),
    "damp": (0.1, "rounding", {"gptq"}),
    "row_feedback": (0.7, "rounding", {"gptq"}),
    "keep_ratio": (0.3, "keep", {"awq", "praq"}),
    "beta": (1.0, "keep", {"praq"}),
    "tau": (0.5, "keep", {"praq"}),
    "noise_factor": (0.5, "keep", {"praq"}),
}


def test_every_rule_is_here() -> None:
    conditional = {key for key, what in KEYS.items() if what.when is not None}
    apart = {
        "n_noise_samples",
        "row_moment",
        "row_linears",
        "bits",
        "candidates",
        "swaps",
        "tensor_types",
    }  # which need a number, below, or have to do with a budget (test_budgets.py, test_formats.py)
    assert set(RULES) == conditional - apart
    assert all(DEFAULTS[key] != value for key, (value, _, _) in RULES.items())


@pytest.mark.parametrize("key", RULES)
def test_keys_without_effect_are_refused(key: str) -> None:
    value, other, effective = RULES[key]
    valid = SCHEMA["$defs"]["recipe"]["properties"][other]["enum"]
    assert DEFAULTS[other] not in effective
    for choice in valid:
        entry = {key: value, other: choice}
        reader = {"salience": "l1"} if other == "moment" else {}  # a part that reads the moment
        if choice in effective:
            loaded({"m": ({} if other == "format" else {"salience": "l1"}) | entry})
            continue
        text = refusal({"m": reader | entry})
        assert f"methods.m: {key} has no effect with {other}: {choice}" in text
        assert all(good in text for good in effective)
    loaded({"m": {key: DEFAULTS[key]}})  # what is the default anyway does no harm
    assert f"methods.m-bits3: {key} has no effect" in refusal({"m": {key: value, "bits": [3, 4]}})


def test_the_common_defaults_may_set_what_some_methods_do_not_read() -> None:
    common = {"n_grid": 5, "damp": 0.1, "keep_ratio": 0.3}
    methods = loaded({"m": {}, "g": {"rounding": "gptq"}}, defaults=common)["methods"]
    assert methods["g"]["damp"] == 0.1
    assert methods["m"]["n_grid"] == DEFAULTS["n_grid"], "what a method does not read does not change it"
    assert "damp" not in methods["m"], "nor is it there, where another rounding's"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"n_noise_samples": 5}, ["n_noise_samples", "noise_std"]),
        ({"row_moment": "attention"}, ["row_moment has no effect", "row_feedback"]),
        ({"rounding": "gptq", "row_linears": "q_proj"}, ["row_linears has no effect", "row_feedback"]),
        ({"rounding": "gptq", "row_feedback": 0.7, "row_linears": "q_(proj"}, ["row_linears", "regular expression"]),
        ({"salience": "praq", "n_noise_samples": 1}, ["n_noise_samples", "noise_std"]),
        ({"moment": "jacobian"}, ["moment: jacobian", "salience", "gptq"]),
        ({"moment": "jacobian", "salience": "l1", "noise_std": 0.1}, ["noise_std", "moment: jacobian", "weighted"]),
        ({"moment": "jacobian", "rounding": "greedy_flip"}, ["moment: jacobian", "salience", "gptq"]),
        ({"moment": "jacobian", "salience": "l1", "inputs": "sequential"}, ["jacobian", "moment: end_loss"]),
        ({"inputs": "sequential", "reconstruct": {}, "keep": "awq"}, ["reconstruct needs", "keep: none"]),
        ({"inputs": "sequential", "reconstruct": {}, "noise_injection": 0.1}, ["reconstruct needs", "injection: 0"]),
    ],
)
def test_other_parts_that_do_not_go_together(entry: dict[str, Any], expected: list[str]) -> None:
    text = refusal({"m": entry})
    assert text.startswith("methods.m: ") and all(part in text for part in expected)
