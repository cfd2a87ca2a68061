"""What make makes of words, as the workflow takes it."""

import json
from typing import Any

from snakemake.utils import update_config

from quant.workflow import configuration, make_study, paths
from tests.unit.workflow.configurations import DEFAULT, SCHEMA

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXPERTS: dict[str, dict[str, Any]] = {  # of which transformers reads no zero points
    "mixture": {"num_local_experts": 8},
    "qwen": {"text_config": {"num_experts": 128, "num_experts_per_tok": 8}},
    "dense": {"num_experts": 1, "n_routed_experts": None, "experts_implementation": "eager"},
}


def study(**given: str) -> dict[str, Any]:
    return make_study.study_of(given, DEFAULT, {})


def loaded(changes: dict[str, Any]) -> dict[str, Any]:
    """What the workflow makes of an experiment: tables merged by name."""
    config = json.loads(json.dumps(DEFAULT))
    update_config(config, changes)
    return configuration.load(paths.named_texts(config), SCHEMA)
