"""Experts and matrices that files hold whole, in either orientation, are linears by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from quant.files import tensorfile
from quant.models.conversion.convert import convert
from tests import tiny


def by_hand(kind: str, model: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of expert 1 of layer 0 by name, as the equations of each type use its parameters."""
    layer = model.transformer.h[0] if kind == "gpt2" else model.model.layers[0]
    if kind == "gpt_oss":
        experts, path = layer.mlp.experts, "mlp.experts"
        first, bias = experts.gate_up_proj[1].T, experts.gate_up_proj_bias[1]
        gate, up, down = first[::2], first[1::2], experts.down_proj[1].T
        biases = {"gate_proj": bias[::2], "up_proj": bias[1::2], "down_proj": experts.down_proj_bias[1]}
    elif kind == "llama4_text":
        experts, path, biases = layer.feed_forward.experts, "feed_forward.experts", {}
        (gate, up), down = experts.gate_up_proj[1].T.chunk(2), experts.down_proj[1].T
    elif kind == "granitemoe":
        experts, path, biases = layer.block_sparse_moe.experts, "block_sparse_moe.experts", {}
        (gate, up), down = experts.gate_up_proj[1].chunk(2), experts.down_proj[1]
    elif kind == "aria_text":
        experts = layer.mlp.experts
        pairs = {"fc1": experts.fc1.weight[1].T, "fc2": experts.fc2.weight[1].T}
        return {f"model.layers.0.mlp.experts.{name}.1.weight": value for name, value in pairs.items()}
    else:
        return {"transformer.h.0.attn.c_attn.weight": layer.attn.c_attn.weight.T,
                "transformer.h.0.attn.c_attn.bias": layer.attn.c_attn.bias}  # fmt: skip
    weights = {"gate_proj": gate, "up_proj": up, "down_proj": down}
    found = {f"model.layers.0.{path}.1.{name}.weight": value for name, value in weights.items()}
    return found | {f"model.layers.0.{path}.1.{name}.bias": value for name, value in biases.items()}


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "granitemoe", "aria_text", "gpt2"])
def test_what_a_file_holds_whole_is_linears_by_name(kind: str, tmp_path: Path) -> None:
    from tests import matrix
    from tests.conftest import perturb

    model = matrix.build(kind)
    perturb(model, 1)
    model.save_pretrained(tmp_path / "model", save_original_format=kind != "granitemoe")
    tiny.save_byte_tokenizer(tmp_path / "model")
    folder = tmp_path / "results/original"
    convert({"directory": str(tmp_path / "model")}, folder / "checkpoint", folder / "convert.json")
    expected = by_hand(kind, model)
    with tensorfile.opened(folder / "checkpoint/model.safetensors") as file:
        layout = file.layout()
        for name, value in expected.items():
            assert torch.equal(file.get(name), value) and layout[name] == (value.dtype, tuple(value.shape))
    assert {name.removesuffix(".weight") for name in expected if name.endswith("weight")} <= set(
        tiny.read(folder / "convert.json")["linears"]
    )
    again = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    ours, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
