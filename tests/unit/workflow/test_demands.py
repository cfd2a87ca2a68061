"""What a configuration demands of a model."""

from typing import Any

from quant.workflow import configuration
from quant.workflow.demands import demands
from tests.unit.workflow.configurations import DEFAULT, DEFAULT_LIMITS, SCHEMA


def wanted(**changes: Any) -> dict[str, Any]:
    return demands(configuration.load({**DEFAULT, **changes}, SCHEMA), DEFAULT_LIMITS)


def test_the_default_study_demands_what_it_says() -> None:
    plain = wanted()
    assert plain["layers"] == {"check_mse.layer": ["auto"], "deep_dive.layers": ["auto"]}
    assert plain["seq_len"] == {
        **{"calibration.seq_len": 512, "datasets.python_reference.seq_len": 256, "datasets.docstrings.seq_len": 128}
    }
    assert plain["limits"] == plain["recipes"] == {}, "nobody wrote a limit"
    assert wanted(choose={"max_size_mb": 1})["limits"] == {"max_size_mb": 1}
    assert wanted(choose={"max_size_mb": 1}, study=DEFAULT["study"] | {"gguf": ["simple_int4"]})["limits"] == {}
    assert wanted(check_mse={"layer": None}, deep_dive={"layers": []})["layers"] == {
        **{"check_mse.layer": [], "deep_dive.layers": []}
    }


def test_another_value_of_a_parameter_demands_nothing_new() -> None:
    methods = DEFAULT["methods"]
    assert wanted(methods={**methods, "gw_awq": {"salience": "l1", "n_grid": 7, "bits": 3}}) == wanted()


def test_methods_that_need_facts_of_the_model() -> None:
    names = ["praq_jacobian", "awq_clip_gptq_shared", "autoawq"]
    found = wanted(study={**DEFAULT["study"], "methods": names}, choose={"max_size_mb": 100})
    assert found["jacobian"] == ["praq_jacobian"] and found["shared"] == ["awq_clip_gptq_shared"]
    assert found["sequential"] == []
    assert found["library"] == {"autoawq": {"algorithm": "autoawq", "group_size": 64, "clip": True}}
    assert found["limits"] == {"max_size_mb": 100} and found["recipes"].keys() == set(names) - {"autoawq"}
