"""A recipe that reconstructs and tunes on a GPU: its steps recorded, the same file every time, no worse a model."""

from pathlib import Path

import pytest
import torch

from quant.calibration.reader import Statistics
from quant.data.tokens import Tokens, fingerprint
from quant.methods.quantize import in_host_memory
from quant.methods.source import Output, Source
from quant.methods.with_model.kl_loss import divergence
from quant.methods.with_model.quantize import quantize_with_model
from quant.methods.with_model.reconstruct import Aim, MovableLinear
from quant.methods.with_model.tune import TunedLinear
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe import grids
from quant.recipe.grids import Codes, Grid
from quant.recipe.quantized import QuantizedLinear
from quant.runtime.compute import Compute
from quant.runtime.replay import Replay
from tests.unit.calibration.architectures import COMMON, saved
from tests.unit.recipe.cases import PATTERNS, PLAIN
from tests.unit.recipe.folded import MADE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RECIPE = {"rounding": "gptq", "bits": 3, "group_size": 16, "inputs": "sequential", "correction": 0.5, "refine": 2}
WAYS = {
    "reconstruct": {"iterations": 80, "batch": 4, "code_rate": 0.1, "step_rate": 0.005},
    "tune": {"epochs": 4, "rate": 0.01, "batch": 4, "held_out": 0.25},
}


def test_twice_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, record = [], Replay._record

    def noted(self: Replay, *given: object) -> bool:
        recorded.append(record(self, *given))  # type: ignore[arg-type]
        return recorded[-1]

    monkeypatch.setattr(Replay, "_record", noted)
    saved("LlamaConfig", COMMON, tmp_path / "source")
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 256, (40,), generator=generator) for _ in range(16)]
    tokens, records = Tokens(sequences, fingerprint(sequences), {}), []
    for name in "ab":
        recipe, target = PLAIN | RECIPE | WAYS, tmp_path / name
        statistics = Statistics({}, "m", PATTERNS)
        source = Source(tmp_path / "source", all_linears(skeleton(tmp_path / "source")))
        given = (source, Output(target, tmp_path / f"{name}.folds"))
        records.append(
            quantize_with_model(*given, statistics, recipe, tokens, Compute("cuda", torch.float32, 160), MADE)
        )
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert recorded and all(recorded)
    errors = records[0]["reconstruction"]
    assert any(after < before for before, after in errors.values()), errors
    assert records[0]["tuning"]["kl_tuned"] <= records[0]["tuning"]["kl_start"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [33, 9000])
def test_the_divergence_is_that_of_a_cpu(vocabulary: int, dtype: torch.dtype) -> None:
    p, q = (3 * torch.randn(2, 7, vocabulary, generator=torch.Generator().manual_seed(0))).to(dtype)
    p[:, : vocabulary // 2] = -torch.inf
    found = []
    for where in ("cpu", "cuda"):
        own, other = (t.to(where, copy=True) for t in (p, q))
        other.requires_grad_()
        total = divergence(own, other) / 7
        total.backward()
        assert other.grad is not None and divergence(p.to(where), q.to(where)).item() / 7 == pytest.approx(total.item())
        found.append((total.item(), other.grad.cpu().float()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", [Grid(4, 64, False), Grid(3, 14, True), Grid(4, -1, False)])
def test_weights_that_move_are_those_of_a_cpu(grid: Grid) -> None:
    """And their gradients; a GPU makes them in one kernel."""
    generator = torch.Generator().manual_seed(0)
    w, goal = torch.randn(2, 24, 128, generator=generator)
    rows, columns = torch.rand(24, generator=generator) + 0.5, torch.rand(128, generator=generator) + 0.5
    groups = grids.to_groups(w, grid.group_size)
    step, zero = grids.fit(groups, grid)
    codes = grids.encode(groups, step, zero, grid)
    found = []
    for where in ("cpu", "cuda"):
        own = [t.to(where) for t in (codes, step, zero)]
        aim = Aim(QuantizedLinear(*own, grid, 128), 1.2 * w.to(where), rows.to(where), columns.to(where), lambda s: s)
        moving = MovableLinear(aim, None)
        moving.place.data += torch.rand(moving.place.shape, generator=torch.Generator().manual_seed(1)).to(where)
        tuned = TunedLinear(in_host_memory(Codes(*own, grid, 128), torch.float32), None, where)
        for each in (moving, tuned):
            (each.weight * goal.to(where)).sum().backward()
            found.append([each.weight, each.change.grad])
        found[-2].append(moving.place.grad)
        tuned.as_stored = True
        found[-1].append(tuned.weight)
    for own, other in zip(found[:2], found[2:], strict=True):
        for cpu, gpu in zip(own, other, strict=True):
            torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-4, atol=1e-4)
