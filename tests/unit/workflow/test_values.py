"""What stands in --config is taken by the schema's types."""

import copy
from typing import Any

import pytest
from snakemake.cli import parse_config
from snakemake.utils import update_config

from quant.errors import InputError
from quant.workflow import configuration, values
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


def given(*arguments: str) -> dict[str, Any]:
    """The default configuration with --config, as Snakemake merges it, after its values have got their types."""
    config, line = copy.deepcopy(DEFAULT), parse_config(arguments)
    update_config(config, line)
    return values.typed(config, line, SCHEMA)


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
        ("calibration={n_calib: 0}", "calibration.n_calib"),
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
