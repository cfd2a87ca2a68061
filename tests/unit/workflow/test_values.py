"""What stands in --config is taken by the schema's types."""

import copy
from pathlib import Path
from typing import Any

import pytest
from snakemake.cli import parse_config
from snakemake.utils import update_config

from quant.errors import InputError
from quant.workflow import configuration, values
from tests import tiny
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


def given(*arguments: str) -> dict[str, Any]:
    """The default configuration with --config, as Snakemake merges it, after its values have got their types."""
    config, line = copy.deepcopy(DEFAULT), parse_config(arguments)
    update_config(config, line)
    return values.typed(config, line, SCHEMA)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("study: {}\nmethods: {}\nstudy: {}\n", "study stands there more than once (lines 1 and 3)"),
        ("methods:\n  m: {bits: 3}\n  'm': {bits: 4}\n", "m stands there more than once (lines 2 and 3)"),
        ("a: [{b: {c: 1, c: 1}}]\n", "c stands there more than once (lines 1 and 1)"),
        ('{"a": 1, "a": 1, "a": 1}', "a stands there more than once (lines 1 and 1 and 1)"),
    ],
)
def test_what_a_file_says_twice_is_refused(text: str, found: str, tmp_path: Path) -> None:
    """YAML would take the last."""
    (path := tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        values.check_repeated(path)
    assert found in str(caught.value) and str(path) in str(caught.value)


def test_no_experiment_says_a_thing_twice(tmp_path: Path) -> None:
    for path in [tiny.ROOT / "config.yaml", *(tiny.ROOT / "experiments").glob("*.yaml")]:
        values.check_repeated(path)
    for text in ("a: {b: 1}\nc: {b: 1}\n", "<<: {a: 1}\na: 2\n", "", "{"):
        (tmp_path / "x.yaml").write_text(text)
        values.check_repeated(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("argument", "path", "expected"),
    [
        ("calibration={n_calib: 8}", "calibration.n_calib", 8),
        ("calibration={shuffle: true}", "calibration.shuffle", True),
        ("calibration={text: python_reference_heldout}", "calibration.text", "python_reference_heldout"),
        ("study={methods: [rtn_g], allow_missing: True}", "study", {"methods": ["rtn_g"], "allow_missing": True}),
        ("choose={max_size_mb: 1e2, max_bits_per_weight: null}", "choose.max_size_mb", 100.0),
        ("choose={max_bits_per_weight: }", "choose.max_bits_per_weight", None),
        ("check_mse={layer: null}", "check_mse.layer", None),
        ("deep_dive={layers: [1, 2], top: [0.5]}", "deep_dive", {"layers": [1, 2], "top": [0.5]}),
        ("methods={mine: {bits: [3, 4], salience: l2}}", "methods.mine", {"bits": [3, 4], "salience": "l2"}),
        ("methods={mine: {bits: 3}}", "methods.mine.bits", 3),
        ("methods={'1e5': {clip: true}}", "methods.1e5", {"clip": True}),
        ("models={m: {source: {hub: {id: a/b, revision: 1234567}}}}", "models.m.source.hub.revision", "1234567"),
        ("defaults={group_size: -1}", "defaults.group_size", -1),
        ("compute={batch_tokens: 64}", "compute.batch_tokens", 64),
        ("compute={batch_tokens: auto, threads: 2}", "compute.batch_tokens", "auto"),
    ],
)
def test_types(argument: str, path: str, expected: Any) -> None:
    config = given(argument)
    found = values.at(config, path.split("."))
    if isinstance(expected, dict):
        found = {key: found[key] for key in expected}
    assert found == expected and type(found) is type(expected)
    configuration.load(config, SCHEMA)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("calibration={n_calib: many}", "calibration.n_calib: 'many' is not of type integer"),
        ("calibration={n_calib: 0}", "calibration.n_calib: 0 "),
        ("methods={m: {tune: {epochs: 4000}}}", r"methods\.m\.tune\.epochs: 4000 "),
        ("choose={max_size_mb: -1}", "choose.max_size_mb: -1 "),
        ("defaults={group_size: 0}", r"defaults\.group_size: 0 must be -1 or at least 1"),
        ("methods={m: {group_size: -2}}", r"methods\.m\.group_size: -2 must be -1 or at least 1"),
        ("defaults={group_size: 0.5}", r"defaults\.group_size: '0\.5' is not of type integer"),
        ("check_mse={layer: -1}", r"check_mse\.layer: -1 must be auto or at least 0"),
        ("compute={batch_tokens: 0}", r"compute\.batch_tokens: 0 must be auto or at least 1"),
        ("calibration={n_kalib: 8}", "did you mean n_calib"),
        ("choose={max_size_mb: '[1, 2]'}", "choose.max_size_mb"),
        ("calibration=8", "calibration: 8 is not of type object"),
    ],
)
def test_what_has_no_such_type_is_refused(argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration.load(given(argument), SCHEMA)


def test_a_file_keeps_its_types() -> None:
    """ "8" in quotes in a file is a mistake; only the command line has no other way to say 8."""
    config = copy.deepcopy(DEFAULT)
    config["calibration"]["n_calib"] = "8"
    assert values.typed(config, parse_config(["calibration={seed: 7}"]), SCHEMA)["calibration"]["n_calib"] == "8"


def test_its_argument_stays() -> None:
    config, line = copy.deepcopy(DEFAULT), parse_config(["calibration={n_calib: 8}"])
    update_config(config, line)
    before = copy.deepcopy(config)
    values.typed(config, line, SCHEMA)
    assert config == before


def test_what_several_files_add_is_all_in_the_study() -> None:
    """As of a folder's own study and the file that its page tells to save; the merged lists are the last file's."""
    files = {
        "default": {"study": {"methods": ["rtn_g"]}},
        "own": {"study": {"add": {"methods": ["rtn_8bit"], "tasks": ["last_word"]}}},
        "more": {"study": {"add": {"methods": ["awq_l1", "rtn_8bit"]}}},
    }
    merged: dict[str, Any] = {}
    for each in files.values():
        update_config(merged, copy.deepcopy(each))
    found = values.added_up(merged, map(Path, files), lambda path: files[path.name])
    assert found["study"]["add"] == {"methods": ["rtn_8bit", "awq_l1"], "tasks": ["last_word"]}
    assert merged["study"]["add"]["methods"] == ["awq_l1", "rtn_8bit"]  # a copy is changed
    for other in ({}, {"study": None}, {"study": {"add": 3}}, {"study": {"add": {"methods": "rtn_g"}}}):
        assert values.added_up(other, map(Path, files), lambda path: files[path.name]) == other
