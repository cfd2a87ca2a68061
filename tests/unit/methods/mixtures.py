"""Checkpoints put together from others."""

from pathlib import Path
from typing import Any

from quant.methods.choice import Candidate, Given
from quant.methods.mixed import mix_checkpoint
from tests.unit.recipe.cases import LINEARS, MADE

# as statistics have it: q/k/v and gate/up read one tensor each
READS = {
    name: name.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
    for name in LINEARS
}


def mixed(source: Path, target: Path, candidates: list[Candidate], untouched: bool = True, **limits: float) -> Any:
    none = {"bits_per_weight": 0.0, "size_mb": 0.0}
    return mix_checkpoint(
        source,
        target / "checkpoint",
        target / "folds.safetensors",
        LINEARS,
        Given(candidates, untouched, READS, MADE),
        none | limits,
        {"lm_head": "output head"},
    )
