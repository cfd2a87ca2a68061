"""benchmarks/several_gpus.py: its study is one that the workflow takes, and its methods share all their statistics."""

import json
from pathlib import Path

import several_gpus

from quant.recipe import keys
from tests.unit.workflow.configurations import configured


def test_its_study_is_known(tmp_path: Path) -> None:
    found = configured(json.dumps(several_gpus.study_of(tmp_path, 4)))
    assert list(found["study"]["methods"]) == several_gpus.METHODS
    files = {key for name in several_gpus.METHODS for key in keys.statistics_files(found["methods"][name])}
    assert files == {"channels", "moments"}
