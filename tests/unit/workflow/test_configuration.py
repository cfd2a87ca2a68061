"""Every mistake in config.yaml ends in one line that says where, what, and what to write instead."""

import copy
import math
from typing import Any

import pytest

from quant.errors import InputError
from quant.recipe import keys
from quant.workflow import configuration
from quant.workflow.defaults import default_counts
from tests.tiny import ROOT
from tests.unit.workflow.configurations import DEFAULT, SCHEMA, changed


def refusal(config: Any) -> str:
    with pytest.raises(InputError) as caught:
        configuration.load(config, SCHEMA)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_default_is_valid_and_recipes_are_complete_and_sorted() -> None:
    config = configuration.load(DEFAULT, SCHEMA)
    recipe = config["methods"]["gw_awq"]
    assert list(recipe) == sorted(recipe)
    assert recipe["group_size"] == 64 and recipe["n_calib"] == DEFAULT["calibration"]["n_calib"]
    assert config["calibration"]["text"] == {"pydoc_topics": "calibration"}


def test_loading_leaves_its_argument_alone() -> None:
    before = copy.deepcopy(DEFAULT)
    configuration.load(DEFAULT, SCHEMA)
    assert before == DEFAULT


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("methods.gw_awq.salienc", "l1", ["methods.gw_awq", "salienc", "did you mean salience"]),
        ("methods.gw_awq.salience", "l3", ["methods.gw_awq.salience", "'l3'", "l1"]),
        ("methods.gw_awq.bits", 5, ["methods.gw_awq.bits", "5", "2, 3, 4, 8"]),
        (
            "methods.gw_awq.bits",
            [3],
            ["methods.gw_awq.bits: [3] is a list of one value; write it without the brackets"],
        ),
        ("study.models", [], ["study.models: [] must be all or a list of different names"]),
        ("texts.mine.files", [], ["texts.mine.files: [] is an empty list; name something, or leave it out"]),
        ("methods.gw_awq.group_size", 0, ["methods.gw_awq.group_size", "0", "-1 or at least 1"]),
        ("methods.gw_awq.rounding", "nearst", ["methods.gw_awq.rounding", "did you mean nearest"]),
        ("methods.gw_awq.n_grid", 0, ["methods.gw_awq.n_grid", "at least 1"]),
        ("methods.gw_awq.symmetric", "yes", ["methods.gw_awq.symmetric", "'yes'", "boolean"]),
        ("methods.gptq.damp", "1e-5", ["methods.gptq.damp", "'1e-5'", "YAML takes it for text; write 1.0e-05"]),
        ("methods.gptq.damp", ["2E-1", 0.1], ["methods.gptq.damp.0", "write 0.2"]),
        ("methods.gptq.damp", math.nan, ["methods.gptq.damp: nan is no number"]),
        ("methods.m", {"budget": [{"size_mb": math.inf}]}, ["methods.m.budget.0.size_mb: inf is no number"]),
        ("methods.bad name", {}, ["bad name"]),
        ("methods.<b>", {}, ["<b>"]),
        ("methods.../up", {}, [""]),
        ("methods.original", {}, ["methods.original", "taken"]),
        ("methods.RTN_G", {}, ["RTN_G", "only in case"]),
        ("study.methods", ["gw_awk"], ["study.methods", "gw_awk", "did you mean gw_awq"]),
        ("study.models", [], ["study.models", "all or"]),
        ("study.method", "all", ["study", "'method'", "did you mean methods"]),
        ("calibration.text", "python_referenc", ["calibration.text", "did you mean python_reference"]),
        ("calibration.n_calib", 0, ["calibration.n_calib", "at least 1"]),
        ("calibration.protocol", "window", ["calibration.protocol", "did you mean windows"]),
        ("datasets.python_reference.n_samples", 1, ["n_samples", "at least 2"]),
        ("texts.empty", {}, ["texts.empty", "exactly one of"]),
        ("texts.two", {"files": ["a"], "pydoc_topics": "heldout"}, ["texts.two", "exactly one of"]),
        ("texts.hub", {"hub": {"path": "a", "split": "b"}}, ["texts.hub.hub", "revision"]),
        ("models.m", {"source": {"gguf": {"package": "p"}}}, ["models.m.source.gguf", "either path, or package"]),
        ("models.m", {}, ["models.m", "source"]),
        ("check_mse.keep_ratio", 1.0, ["check_mse.keep_ratio", "less than 1"]),
        ("check_mse.layer", -1, ["check_mse.layer", "auto or at least 0"]),
        ("deep_dive.layers", ["last"], ["deep_dive.layers.0", "'last'", "auto or at least 0"]),
        ("compute.device", "gpu", ["compute.device", "'gpu'", "did you mean cpu"]),
        ("comparison.resamples", 10, ["comparison.resamples", "at least 999"]),
        ("comparison.resamples", 100_000_000, ["comparison.resamples", "at most 1000000"]),
        ("sensitivity.methods", ["rtn_h"], ["sensitivity.methods", "did you mean rtn_g"]),
        ("sensitivity.methods", ["autoawq"], ["autoawq is the AutoAWQ library", "scope: linear"]),
        ("sensitivity.by", ["kinds"], ["sensitivity.by", "did you mean kind"]),
        ("sensitivity.dataset", "python_referense", ["sensitivity.dataset", "did you mean python_reference"]),
        ("texts.doc", {"docstrings": []}, ["texts.doc.docstrings"]),
        ("kalibration", {}, ["kalibration", "did you mean calibration"]),
        ("methods", [], ["methods", "object"]),
        ("models", {}, ["models"]),
    ],
)
def test_mistakes_are_named_in_one_line(path: str, value: Any, expected: list[str]) -> None:
    text = refusal(changed(path, value))
    for part in expected:
        assert part in text


def test_one_sequence_is_too_few_to_tune_on_where_the_study_does() -> None:
    one = changed("calibration.n_calib", 1)
    assert "n_calib: 1" in refusal({**one, "study": one["study"] | {"methods": ["frontier"]}})
    configuration.load(one, SCHEMA)


def test_a_configuration_that_is_no_table_is_refused() -> None:
    assert "object" in refusal([])


def test_parts_of_a_method_with_folded_scales_are_refused() -> None:
    config = changed("methods.shared", {"salience": "l2", "scope": "shared"})
    config["sensitivity"]["methods"] = ["shared"]
    assert "shared is scope: shared, which moves scales into other weights" in refusal(config)


def answering(**study: Any) -> list[str]:
    return configuration.load(DEFAULT | {"study": DEFAULT["study"] | study}, SCHEMA)["study"]["task_methods"]


def test_those_answer_tasks_that_are_named_and_run() -> None:
    assert answering() == ["simple_int4", "gw_awq", "gw_praq", "gw_awq_asym_l2", "awq_clip_gptq_shared"]
    assert answering(methods=["gw_praq", "rtn_g", "gw_awq"]) == ["gw_praq", "gw_awq"]
    assert answering(methods=["rtn_g", "gptq"]) == ["rtn_g", "gptq"]
    assert answering(task_methods="all") == DEFAULT["study"]["methods"]
    with pytest.raises(InputError, match=r"study.task_methods: no entry 'gw_awk' in methods; did you mean gw_awq"):
        answering(task_methods=["gw_awk"])


GGUF: dict[str, dict[str, Any]] = {
    "swept": {"bits": [4, 8], "symmetric": True, "group_size": 32},
    "small": {"format": "iq4_nl", "tensor_types": [{"linears": "down_proj", "format": "q3_k"}]},
    "mixed": {"budget": {"bits_per_weight": 5}, "candidates": [{"bits": 4}, {"bits": 8}, {"bits": 16}]},
    "odd": {"group_size": 48},
    "three": {"bits": 3, "symmetric": True},
    "part": {"format": "iq4_nl", "tensor_types": [{"linears": "down_proj", "format": "nf4"}]},
    "by_size": {"budget": {"size_mb": 90}, "candidates": [{"bits": 4}], "symmetric": True},
    "scaled": {"salience": "l2"},
}
GGUF["mixed"]["symmetric"] = True


def of_gguf(*names: str) -> dict[str, Any]:
    config = copy.deepcopy(DEFAULT)
    config["methods"] |= copy.deepcopy(GGUF)
    config["study"] |= {"methods": [*GGUF, "autoawq"], "gguf": list(names)}
    return config


def test_methods_whose_gguf_file_is_measured() -> None:
    """A sweep's name stands for its methods, a budget's for its candidates too."""
    found = configuration.load(of_gguf("swept", "small", "mixed"), SCHEMA)["study"]["gguf"]
    assert found == ["swept-bits4", "swept-bits8", "small", "rtn_g_sym", "mixed-bits8", "mixed"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("odd", "study.gguf: odd: GGUF has no blocks for 4 bits with zero points, format: int, in groups of 48"),
        ("three", "study.gguf: three: GGUF has no blocks for 3 bits, format: int"),
        ("part", "study.gguf: part: GGUF has no blocks for 4 bits, format: nf4"),
        ("by_size", "study.gguf: by_size: its budget counts the bytes of the checkpoint"),
        ("scaled", "methods.scaled: study.gguf needs weights that are codes and steps alone, not scope: linear"),
        ("autoawq", "study.gguf: autoawq: a checkpoint of AutoAWQ is stored dense here"),
        ("smal", "study.gguf: the study runs no 'smal'; did you mean small"),
    ],
)
def test_what_no_gguf_file_can_be_is_refused(name: str, words: str) -> None:
    assert words in refusal(of_gguf(name))


def test_parts_of_a_sweep_are_those_of_its_methods() -> None:
    config = changed("methods.swept", {"bits": [3, 4]})
    config["sensitivity"]["methods"] = ["swept"]
    assert configuration.load(config, SCHEMA)["sensitivity"]["methods"] == ["swept-bits3", "swept-bits4"]


def test_methods_that_only_round_read_no_statistics() -> None:
    methods = configuration.load(DEFAULT, SCHEMA)["methods"]
    assert keys.statistics_files(methods["rtn_g"]) == {}
    assert keys.statistics_files(methods["gw_awq"]) == {
        "channels": "calibration/n64-s42/channels.safetensors",
        "moments": "calibration/n64-s42/second_moments.safetensors",
    }


def test_defaults_of_counts_are_the_schemas_and_the_embedded_studys() -> None:
    counts = default_counts(SCHEMA, ROOT / "config.yaml")
    assert counts["n_calib"] >= {128, DEFAULT["calibration"]["n_calib"]} and 2000 in counts["n_samples"]
    assert all(entry["n_samples"] in counts["n_samples"] for entry in DEFAULT["datasets"].values())
