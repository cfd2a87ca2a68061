"""benchmarks/int4_speed.py: PyTorch's INT4 product holds the checkpoint's weights, and each row says what it is of."""

import csv
from pathlib import Path

import pytest
import torch

import int4_speed
from quant.recipe.grids import Grid
from tests.tiny import save_model
from tests.unit.checkpoints.codes import codes_of
from tests.unit.recipe.cases import run


@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(4, 32, False), Grid(4, -1, False)])
def test_product_is_of_the_checkpoints_weights(grid: Grid) -> None:
    linear = codes_of(grid, 64, 96)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = torch.arange(64.0)
    try:
        found = int4_speed.Int4Pack(linear, 32, bias, "cpu")(x).float()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this CPU's torch has no INT4 product: {error}")
    expected = x.float() @ linear.dequantize().T + bias
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a vLLM that is none, whose rows say so; the rest goes on."""
    save_model(tmp_path / "model", hidden_size=64, intermediate_size=96)
    run(tmp_path / "model", tmp_path / "packed", {}, group_size=32)
    capsys.readouterr()
    options = ["--device", "cpu", "--batch", "1", "2", "--new", "8", "--vllm", str(tmp_path / "none")]
    int4_speed.main([str(tmp_path / "packed"), *options])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    dense, ours = ([row for row in rows if row["product"] == product] for product in ("bf16", "int4pack"))
    assert [(row["batch"], row["speedup"]) for row in dense] == [("1", "1.00"), ("2", "1.00")]
    if not ours[0]["error"]:
        assert [row["batch"] for row in ours] == ["1", "2"] and all(float(row["tokens_per_s"]) > 0 for row in ours)
        assert float(ours[0]["linears_mb"]) < 0.4 * float(dense[0]["linears_mb"])
        assert float(ours[0]["logits_error"]) < 0.05
    assert [row["product"] for row in rows if "none" in row["error"]] == ["vllm bf16", "vllm"]


def test_a_simulated_checkpoint_is_refused_in_one_line(tiny_checkpoint: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        int4_speed.main([str(tiny_checkpoint), "--device", "cpu"])
    assert refused.value.code == f"ERROR {tiny_checkpoint}: is not packed in 4 bits; give such a method's checkpoint"
