"""A mixture's experts on each number format: packed where transformers reads the same weights back, else dense."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.checkpoints import stored
from quant.checkpoints.export import export
from quant.evaluation.perplexity import load_model
from quant.methods.packing import OF_EXPERTS, why_dense
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.conversion.convert import convert
from quant.recipe.formats import FORMATS, SIMULATED, fixed
from quant.recipe.recipe import Recipe
from tests import matrix, tiny
from tests.unit.recipe.cases import PATTERNS, PLAIN


def converted(model: Any, folder: Path) -> tuple[Source, str]:
    model.to(torch.bfloat16).save_pretrained(folder / "source")
    tiny.save_byte_tokenizer(folder / "source")
    convert({"directory": str(folder / "source")}, folder / "checkpoint", folder / "convert.json")
    record = tiny.read(folder / "convert.json")
    return Source.of(folder / "checkpoint", record), record["fingerprint"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, str]:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    widths = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16}
    counts = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 2}
    config = Qwen3MoeConfig(**widths, **counts, num_experts_per_tok=1, vocab_size=256, initializer_range=0.2)
    return converted(Qwen3MoeForCausalLM(config), tmp_path_factory.mktemp("mixture"))


def quantised(mixture: tuple[Source, str], recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """folder/checkpoint, and the summary of its record."""
    source, fingerprint = mixture
    target = folder / "checkpoint"
    target.mkdir()
    statistics, made = Statistics({}, fingerprint, PATTERNS), {"model_fingerprint": fingerprint}
    return dict(
        quantize_checkpoint(
            source, Output(target, folder / "folds"), statistics, Recipe.of(recipe), "cpu", made
        )["summary"]
    )  # fmt: skip


def entry(format: str, **more: Any) -> dict[str, Any]:
    own = {key: values[0] for key, values in fixed(format).items()}
    return PLAIN | {"group_size": 32, "symmetric": True, "format": format} | own | more


@pytest.mark.parametrize("format", sorted(FORMATS.keys() - SIMULATED - {"q3_k"}))  # which 64 inputs are too few for
def test_what_transformers_reads_of_experts(mixture: tuple[Source, str], tmp_path: Path, format: str) -> None:
    """As the dense export says it; of a format that it does not read, the checkpoint is dense itself."""
    from transformers import AutoModelForCausalLM

    made, target = quantised(mixture, entry(format), tmp_path), tmp_path / "checkpoint"
    assert made["storage"] == ("packed" if format in OF_EXPERTS else "simulated")
    if format not in OF_EXPERTS:
        assert made["storage_reason"] == f"transformers reads no experts in {format}"
        return
    export(target, tmp_path / "dense", "dense", mixture[1])
    read = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).state_dict()
    wanted = load_file(tmp_path / "dense/model.safetensors")
    for part, half in (("gate_proj", slice(0, 64)), ("up_proj", slice(64, 128)), ("down_proj", slice(0, 64))):
        for i in range(2):
            prefix = "model.layers.0.mlp.experts"
            found: Tensor = read[f"{prefix}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][i, half]
            assert torch.equal(found.float(), wanted[f"{prefix}.{i}.{part}.weight"].float()), part


def test_inputs_of_experts_are_not_rounded(mixture: tuple[Source, str]) -> None:
    """By transformers, so that a checkpoint which says they are would not be what is measured."""
    source, _ = mixture
    shapes = dict.fromkeys(source.linears, (64, 64))
    recipe = Recipe.of(entry("fp8", activations="dynamic"))
    assert why_dense(recipe, shapes, source.unpacked) == "transformers rounds no inputs of experts"
    attention = {name: shape for name, shape in shapes.items() if "self_attn" in name}
    assert why_dense(recipe, attention, source.unpacked) is None


def test_several_grids_under_published_names(tmp_path: Path) -> None:
    """Mixtral's file calls experts otherwise than transformers; config.json names them both ways, and is read back."""
    types = [{"linears": "self_attn", "bits": 8, "group_size": 16, "symmetric": True, "format": "int"}]
    ends = {"bits": 8, "group_size": -1, "format": "int", "needed": True}
    (tmp_path / "model").mkdir()
    model = converted(matrix.build("mixtral"), tmp_path / "model")
    recipe = entry("int", group_size=8, tensor_types=types, embeddings=ends)
    assert quantised(model, recipe, tmp_path)["storage"] == "packed"
    with stored.opened(tmp_path / "checkpoint") as weights:
        assert set(weights.packed) == {*model[0].linears, "lm_head"}
        assert set(weights.embedding) == {"model.embed_tokens"}
        sizes = {name: weights.packed[name].group_size for name in model[0].linears}
    assert {size for name, size in sizes.items() if "self_attn" in name} == {16} and set(sizes.values()) == {8, 16}
    assert sizes["model.layers.0.mlp.experts.0.w1"] == 8
    loaded = load_model(tmp_path / "checkpoint", "cpu", torch.float32)  # a CPU's type, of a file in bfloat16
    with torch.inference_mode():
        assert loaded(torch.tensor([[1, 2, 3]])).logits.dtype == torch.float32
