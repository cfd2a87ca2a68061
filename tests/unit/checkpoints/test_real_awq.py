"""The research's "Real-AWQ" catastrophe: scaled weights without the inverse scale, beside the right ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quant.recipe import grids
from quant.recipe.quantized import QuantizedLinear
from tests.unit.recipe.cases import run

SALIENCES = ("l1", "l2", "praq")


def real_awq(self: QuantizedLinear) -> Tensor:
    """QuantizedLinear.dequantize as the research had it."""
    return grids.from_groups(grids.decode(self.codes, self.step, self.zero), self.n_in)


def moved(source: Path, target: Path) -> float:
    """Relative change of the logits."""
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (source, target))
    with torch.inference_mode():
        first, second = (model(torch.arange(60)[None], use_cache=False).logits for model in (before, after))
    return ((second - first).norm() / first.norm()).item()


@pytest.mark.parametrize("salience", SALIENCES)
def test_without_the_inverse_scale_the_logits_are_wrecked(
    tiny_checkpoint: Path,
    statistics: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    salience: str,
) -> None:
    changes: dict[str, Any] = {"salience": salience, "bits": 8, "group_size": 8}
    record = run(tiny_checkpoint, tmp_path / "right", statistics, **changes)
    assert any(row["alpha"] for row in record["linears"]), "the case must be one with scales"
    monkeypatch.setattr(QuantizedLinear, "dequantize", real_awq)
    assert run(tiny_checkpoint, tmp_path / "wrong", statistics, **changes)["linears"][0]["alpha"] is not None
    right, wrong = (moved(tiny_checkpoint, tmp_path / name) for name in ("right", "wrong"))
    assert right < 0.02 and wrong > 0.5, (right, wrong)


@pytest.mark.parametrize("changes", [{}, {"clip": True}, {"rounding": "gptq"}, {"rounding": "greedy_flip"}])
@pytest.mark.parametrize("scope", ["linear", "shared"])
@pytest.mark.parametrize("salience", SALIENCES)
def test_on_a_fine_grid_the_logits_do_not_move(
    tiny_checkpoint: Path,
    statistics: dict[str, str],
    tmp_path: Path,
    salience: str,
    scope: str,
    changes: dict[str, Any],
) -> None:
    """Whatever α the search finds; flips leave the finest grid, so it is given two weights a step."""
    size = 2 if "rounding" in changes else 1
    fine = {"bits": 8, "group_size": size, "n_grid": 5, "salience": salience, "scope": scope}
    run(tiny_checkpoint, tmp_path / "out", statistics, **fine | changes)
    assert moved(tiny_checkpoint, tmp_path / "out") < (0.02 if "rounding" in changes else 1e-4)
