"""The decoder of benchmarks/int4_speed.py against transformers, and its INT4 products against the weights they hold."""

import csv
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import int4_decoder
import int4_products
import int4_speed
from quant.checkpoints import stored
from quant.files.artifacts import read_json
from tests.tiny import ROOT
from tests.unit.checkpoints.test_exports import IDS, packed_logits

SCRIPT = ROOT / "benchmarks/int4_speed.py"


@pytest.fixture(params=["llama", "granite"])
def packed_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A packed checkpoint, symmetric, one group a row, with grouped-query attention."""
    from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

    from quant.calibration.reader import Statistics
    from quant.methods.quantize import quantize_checkpoint
    from quant.models.linears import all_linears, skeleton
    from quant.recipe.recipe import Recipe
    from tests.unit.recipe.test_recipe import PATTERNS, PLAIN

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    more = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}
    torch.manual_seed(0)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=0.2))
    else:
        model = GraniteForCausalLM(GraniteConfig(**shape, **heads, **more, initializer_range=0.2))
    model.bfloat16().save_pretrained(tmp_path / "model")
    recipe = Recipe.of(PLAIN | {"symmetric": True})
    linears = all_linears(skeleton(tmp_path / "model"))
    statistics, target = Statistics({}, "m", PATTERNS), tmp_path / "out"
    made = {"model_fingerprint": "m"}
    quantize_checkpoint(tmp_path / "model", target, tmp_path / "folds", linears, statistics, recipe, "cpu", made)
    return target


def test_decoder_equals_transformers(packed_model: Path) -> None:
    """A prompt at once, and the same tokens one at a time through the cache."""
    expected = packed_logits(packed_model)
    with stored.opened(packed_model) as held:
        weights = int4_decoder.Checkpoint(held, read_json(packed_model / "config.json"), "cpu")
        assert weights.group == 32, "the largest that divides every row's one group"
        model = int4_decoder.Decoder(weights, partial(int4_products.Dense, dtype=torch.float32), torch.float32)
    torch.testing.assert_close(int4_speed.prompt_logits(model, IDS), expected[:, -1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(int4_speed.decoded_logits(model, IDS), expected[:, -1], rtol=1e-3, atol=1e-3)


def test_int4_product_on_a_cpu_is_of_the_same_weights() -> None:
    shape = int4_decoder.Shape(64, 128, 1, 4, 4, 16, 64, 1e-5, 1e4, 1.0, 1.0, 1.0, 0.25)
    _, _, (linear, *_) = next(int4_decoder.Random(shape, 32, "cpu").layers())
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    try:
        found = int4_products.CpuInt4(linear)(x).float()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this CPU's torch has no int4 product: {error}")
    expected = x.float() @ linear.dequantize().T
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_rows_come_out_even_where_a_kernel_is_missing() -> None:
    options = (
        "--random --device cpu --hidden 64 --mlp 128 --heads 4 --layers 2 --vocabulary 128 --group 32 --context 12 "
        "--prompt 16 --modes eager --batch 1 2 --kernels bf16 tinygemm cpu"
    )
    done = subprocess.run([sys.executable, str(SCRIPT), *options.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    dense = [row for row in rows if row["kernel"] == "bf16"]
    assert [(row["phase"], row["batch"]) for row in dense] == [(p, b) for b in "12" for p in ("prompt", "decode")]
    assert all(float(row["tokens_per_s"]) > 0 and float(row["speedup"]) == 1 for row in dense)
    assert [row for row in rows if row["kernel"] == "tinygemm" and row["error"]], "tinygemm needs a GPU, and says so"
