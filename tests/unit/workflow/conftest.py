"""The default study."""

import copy
from typing import Any

import pytest

from quant.workflow import configuration, paths
from tests.unit.workflow.configurations import DEFAULT, SCHEMA


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return configuration.load(paths.named_texts(copy.deepcopy(DEFAULT)), SCHEMA)
