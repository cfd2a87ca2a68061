"""Checkpoints put together from others."""

from pathlib import Path
from typing import Any

from quant.methods.budgets.choice import Budget, Candidate, Given
from quant.methods.budgets.mixed import mix_checkpoint
from quant.methods.source import Output, Source
from tests.unit.recipe.cases import LINEARS, MADE

# as statistics have it: q/k/v and gate/up read one tensor each
READS = {
    name: name.replace("k_proj", "q_proj").replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
    for name in LINEARS
}


def mixed(source: Path, target: Path, candidates: list[Candidate], untouched: bool = True, **limits: float) -> Any:
    none = {"bits_per_weight": 0.0, "size_mb": 0.0}
    return mix_checkpoint(
        Source(source, LINEARS, {"lm_head": "output head"}),
        Output(target / "checkpoint", target / "folds.safetensors"),
        Given(candidates, untouched, READS, MADE),
        Budget(none | limits),
    )
