"""The default configuration and its schema, the one with other values, and a large model's shape."""

import copy
import json
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from quant.errors import InputError
from quant.workflow import configuration
from quant.workflow.demands import LIMITS
from tests.tiny import ROOT

SCHEMA = json.loads((ROOT / "rules/schemas/config.schema.json").read_text())
DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text())
DEFAULT_LIMITS = {key: DEFAULT["choose"][key] for key in LIMITS}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default configuration with one value set, by dotted path."""
    config = copy.deepcopy(DEFAULT)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return config


def configured(text: str) -> dict[str, Any]:
    """The default configuration with an experiment's YAML over it."""
    config = copy.deepcopy(DEFAULT)
    update_config(config, yaml.safe_load(text))
    return configuration.load(config, SCHEMA)


def loaded(methods: dict[str, Any], study: Any = "all", **changes: Any) -> dict[str, Any]:
    """The default configuration with these methods alone."""
    config = copy.deepcopy(DEFAULT) | {"sensitivity": {"methods": []}} | changes
    config["methods"] = methods
    config["study"] |= {"methods": study, "task_methods": "all"}
    return configuration.load(config, SCHEMA)


def refusal(methods: dict[str, Any], study: Any = "all") -> str:
    with pytest.raises(InputError) as caught:
        loaded(methods, study)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


LLAMA3 = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip
LLAMA3_70B = LLAMA3 | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
