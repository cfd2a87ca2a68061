"""What the benchmarks take from the study."""

import json
from pathlib import Path
from typing import Any

import yaml

from quant.workflow import configuration

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = {"attention": ["self_attn"], "mlp": []}  # of Llama's and Granite's linears


def methods() -> dict[str, dict[str, Any]]:
    """config.yaml's recipes by name, whole."""
    schema = json.loads((ROOT / "rules/schemas/config.schema.json").read_text())
    return configuration.load(yaml.safe_load((ROOT / "config.yaml").read_text()), schema)["methods"]
