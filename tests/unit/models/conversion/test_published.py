"""Files have the names that a model was published under, which are those that vLLM reads."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from quant.calibration.reader import Statistics
from quant.errors import InputError
from quant.files import naming, tensorfile
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.models.conversion import published
from quant.models.conversion.convert import convert
from quant.models.conversion.native import empty_model
from quant.recipe.recipe import Recipe
from tests import matrix, tiny

# what vLLM 0.32.0 calls them in a file (its models' load_weights with hf_to_vllm_mapper, and ckpt_names of its fused
# experts); {} for each of the last, # for each number
GATED, NUMBERED = "{gate_proj,up_proj,down_proj}", "{w1,w2,w3}"
VLLM: dict[str, list[str]] = {
    "mixtral": [f"block_sparse_moe.experts.#.{NUMBERED}", "block_sparse_moe.gate"],
    "phimoe": [f"block_sparse_moe.experts.#.{NUMBERED}", "block_sparse_moe.gate"],
    "minimax_m2": [f"block_sparse_moe.experts.#.{NUMBERED}", "block_sparse_moe.{gate,e_score_correction_bias}"],
    "qwen2_moe": [f"mlp.experts.#.{GATED}", f"mlp.shared_expert.{GATED}", "mlp.{gate,shared_expert_gate}"],
    "qwen3_moe": [f"mlp.experts.#.{GATED}", "mlp.gate"],
    "qwen3_next": [f"mlp.experts.#.{GATED}", f"mlp.shared_expert.{GATED}", "mlp.{gate,shared_expert_gate}"],
    "olmoe": [f"mlp.experts.#.{GATED}", "mlp.gate"],
    "deepseek_v2": [f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}", "mlp.gate"],
    "deepseek_v3": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}",
        "mlp.gate.{weight,e_score_correction_bias}",
    ],
    "glm4_moe": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}",
        "mlp.gate.{weight,e_score_correction_bias}",
    ],
    "ernie4_5_moe": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}", "mlp.gate",
        "mlp.moe_statics.e_score_correction_bias",
    ],
    "exaone_moe": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}", "mlp.{gate,e_score_correction_bias}",
    ],
    "hy_v3": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_mlp.{GATED}", f"mlp.{GATED}", "mlp.router.gate", "mlp.expert_bias",
    ],
    "afmoe": [
        f"mlp.experts.#.{GATED}", f"mlp.shared_experts.{GATED}", f"mlp.{GATED}", "mlp.router.gate", "mlp.expert_bias",
    ],
    "lfm2_moe": [
        f"feed_forward.experts.#.{NUMBERED}", f"feed_forward.{NUMBERED}", "feed_forward.{gate,expert_bias}",
    ],
    "jamba": [f"feed_forward.experts.#.{GATED}", f"feed_forward.{GATED}", "feed_forward.router"],
    "granitemoe": ["block_sparse_moe.{input_linear,output_linear,router.layer}"],
    "gpt_oss": ["mlp.experts.{gate_up_proj,gate_up_proj_bias,down_proj,down_proj_bias}", "mlp.router.{weight,bias}"],
    "llama4_text": [
        "feed_forward.experts.{gate_up_proj,down_proj}", f"feed_forward.shared_expert.{GATED}", "feed_forward.router",
    ],
}  # fmt: skip
FAST = ["mixtral", "minimax_m2", "deepseek_v3", "granitemoe"]
PART = re.compile(r"(mlp|block_sparse_moe|feed_forward)\..*")


def spread(patterns: list[str]) -> set[str]:
    """a.{b,c} as a.b and a.c, without the `weight` at the end."""
    found = set()
    for pattern in patterns:
        stem, _, listed = pattern.partition("{")
        found |= {f"{stem}{leaf}" for leaf in listed.rstrip("}").split(",")} if listed else {pattern}
    return {name.removesuffix(".weight") for name in found}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in FAST else pytest.mark.slow) for k in VLLM])
def test_mixtures_are_written_under_the_names_that_vllm_reads(kind: str) -> None:
    model = empty_model(matrix.config(kind), 100, kind)
    names = published.names(model)
    outside = [naming.template(names.outside(name))[0] for name in published.stored(model)]
    found = {part[0].removesuffix(".weight") for part in map(PART.search, outside) if part is not None}
    assert found == spread(VLLM[kind])
    assert [names.inside(names.outside(name)) for name in published.stored(model)] == published.stored(model)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A packed one, and its model's record."""
    folder = tmp_path_factory.mktemp("mixtral")
    matrix.build("mixtral").save_pretrained(folder / "model")
    tiny.save_byte_tokenizer(folder / "model")
    original, target = folder / "original/checkpoint", folder / "rtn/checkpoint"
    convert({"directory": str(folder / "model")}, original, original.parent / "convert.json")
    record = tiny.read(original.parent / "convert.json")
    target.mkdir(parents=True)
    statistics, recipe = Statistics({}, record["fingerprint"], matrix.PATTERNS), Recipe.of(matrix.RECIPE)
    made = {"model_fingerprint": record["fingerprint"]}
    source, out = Source.of(original, record), Output(target, target.parent / "folds")
    quantize_checkpoint(source._replace(unpacked={}), out, statistics, recipe, "cpu", made)
    return target, record


def test_a_packed_file_has_them_and_is_read_by_the_models(mixtral: tuple[Path, dict[str, Any]]) -> None:
    target, record = mixtral
    with safe_open(str(target / "model.safetensors"), framework="pt") as handle:
        names = set(handle.keys())
    assert {
        f"model.layers.1.block_sparse_moe.experts.3.w2.weight_{part}" for part in ("packed", "scale", "shape")
    } <= names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names and not any(".mlp." in name for name in names)
    ignored = tiny.read(target / "config.json")["quantization_config"]["ignore"]
    assert {"model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate", "lm_head"} <= set(ignored)
    assert "model.layers.0.mlp.experts.0.w1" in record["linears"]
    with tensorfile.opened(target / "model.safetensors") as file:
        assert "model.layers.0.mlp.experts.0.w1.weight_packed" in file.names
        for name in file.names:  # each against its checksum
            assert file.layout()[name][1] == tuple(file.get(name).shape)


def test_names_are_changed_by_rules_that_hold_both_ways() -> None:
    rules = {"a.#.b.weight": "a.#.c.d.weight", "a.#.b.s": "a.#.t"}
    names = naming.Names(rules)
    pairs = {"a.10.b.weight": "a.10.c.d.weight", "a.1.b.weight_packed": "a.1.c.d.weight_packed", "a.1.b.s": "a.1.t",
             "a.1.b.bias": "a.1.c.d.bias", "x.y": "x.y", "a.1b.b.weight": "a.1b.b.weight"}  # fmt: skip
    assert all(names.outside(mine) == other and names.inside(other) == mine for mine, other in pairs.items())
    assert names.both(["a.2.b", "x"]) == {"a.2.b", "a.2.c.d", "x"}
    assert naming.read(names.metadata(), "f").rules == rules and naming.Names().metadata() == {}


@pytest.mark.parametrize(
    "samples",
    [{"a.0.b": "a.c"}, {"a.0.b": "x.0", "a.1.b": "y.1"}, {"a.0.b": "a.0.d", "a.0.c": "a.0.d"}, {"a.0.b": "a.0.c"}],
)
def test_names_that_are_not_one_to_one_stay(samples: dict[str, str]) -> None:
    assert naming.of(samples, ["a.0.b", "a.1.b", "a.0.c"]).rules == {}


@pytest.mark.parametrize("held", ["[]", "{", '{"a.#": "b"}', '{"a": 1}'])
def test_names_that_cannot_be_are_refused(held: str) -> None:
    with pytest.raises(InputError, match="its names are not those of its tensors"):
        naming.read({naming.KEY: held}, "f")


def test_a_written_file_may_have_other_names(tmp_path: Path) -> None:
    names = naming.Names({"a.#.weight": "b.#.weight"})
    tensors = {"a.0.weight": torch.ones(2), "a.1.weight": torch.zeros(3), "c": torch.ones(1)}
    tensorfile.save(tmp_path / "f", tensors, names.metadata())
    with safe_open(str(tmp_path / "f"), framework="pt") as handle:
        assert set(handle.keys()) == {"b.0.weight", "b.1.weight", "c"}
    with tensorfile.opened(tmp_path / "f") as file:
        assert file.names == set(tensors) and all(torch.equal(file.get(k), value) for k, value in tensors.items())
