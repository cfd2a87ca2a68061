"""Every format of a model becomes the same checkpoint."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant.errors import InputError
from quant.models.conversion import convert
from tests import matrix, tiny
from tests.unit.model_files import (
    IDS,
    build,
    edit_config,
    edit_tensors,
    logits,
    refusal,
    run,
    to_bin,
    to_shards,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", ["safetensors", "bin", "safetensors shards", "bin shards"])
def test_directory_keeps_logits_dtype_ties_and_tokenizer(
    tmp_path: Path, form: str, tied: bool, dtype: torch.dtype
) -> None:
    source = build(tmp_path / "model", dtype, tie_word_embeddings=tied)
    expected = logits(source)
    if form.endswith("shards"):
        to_shards(source, form.split()[0])
    elif form == "bin":
        to_bin(source)
    checkpoint, record = run({"directory": str(source)}, tmp_path / "results")
    assert logits(checkpoint).dtype == dtype and torch.equal(logits(checkpoint), expected)
    tensors = load_file(checkpoint / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {dtype}
    assert ("lm_head.weight" in tensors) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert (loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()) is tied
    sentence = "w1 w7 w199 nothing"
    assert AutoTokenizer.from_pretrained(checkpoint)(sentence) == AutoTokenizer.from_pretrained(source)(sentence)
    assert len(record["linears"]) == 14 and record["linears"]["model.layers.1.mlp.up_proj"] == 1
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint", "convert.json"]


def test_old_bin_format_is_read(model: Path, tmp_path: Path) -> None:
    expected = logits(model)
    torch.save(to_bin(model), model / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(run({"directory": str(model)}, tmp_path / "results")[0]), expected)


def test_shared_bin_tensors_are_stored_once(tmp_path: Path) -> None:
    """A .bin holds the tied head under both names."""
    source = build(tmp_path / "model", tie_word_embeddings=True)
    expected = logits(source)
    tensors = to_bin(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, source / "pytorch_model.bin")
    checkpoint, _ = run({"directory": str(source)}, tmp_path / "results")
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    assert torch.equal(logits(checkpoint), expected)
    del tensors["model.embed_tokens.weight"]  # only the head: the same model
    torch.save(tensors, source / "pytorch_model.bin")
    assert torch.equal(logits(run({"directory": str(source)}, tmp_path / "results")[0]), expected)


def test_a_head_that_differs_is_kept_although_the_config_ties_it(tmp_path: Path, caplog: Any) -> None:
    """As transformers loads it."""
    source = build(tmp_path / "model", tie_word_embeddings=False)
    edit_config(source, tie_word_embeddings=True)
    expected = logits(source)
    with caplog.at_level(logging.INFO, "quant"):
        checkpoint, _ = run({"directory": str(source)}, tmp_path / "results")
    assert torch.equal(logits(checkpoint), expected)
    assert tiny.read(checkpoint / "config.json")["tie_word_embeddings"] is False and "not tied" in caplog.text


def test_extra_tensors_and_unread_files_are_in_the_log(model: Path, tmp_path: Path, caplog: Any) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))
    torch.save({}, model / "pytorch_model.bin")
    with caplog.at_level(logging.INFO, "quant"):
        checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in caplog.text and "not pytorch_model.bin" in caplog.text
    assert "inv_freq" not in str(load_file(checkpoint / "model.safetensors").keys())


def test_a_second_conversion_leaves_nothing_of_the_first(model: Path, tmp_path: Path) -> None:
    (model / "generation_config.json").write_text('{"top_k": 3}')
    run({"directory": str(model)}, tmp_path / "results")
    (model / "generation_config.json").unlink()
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    assert not (checkpoint / "generation_config.json").exists()


def test_same_source_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first, one = run({"directory": str(model)}, tmp_path / "a")
    second, two = run({"directory": str(model)}, tmp_path / "b")
    assert one["fingerprint"] == two["fingerprint"]
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_weights_saved_without_their_head_get_the_prefix(tmp_path: Path) -> None:
    source = build(tmp_path / "model", tie_word_embeddings=True)
    expected = logits(source)
    tensors = {name.removeprefix("model."): value for name, value in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(source), expected)  # so does transformers
    assert torch.equal(logits(run({"directory": str(source)}, tmp_path / "results")[0]), expected)


def test_what_a_killed_job_left_goes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "results/original/.convert.x").mkdir(parents=True)
    run({"directory": str(model)}, tmp_path / "results")
    assert not (tmp_path / "results/original/.convert.x").exists()


def test_a_full_disk_is_told_by_names_that_a_reader_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, *_: Any) -> None:
        raise InputError(f"{path}: cannot be written")

    monkeypatch.setattr(convert.shards, "save", save)
    due = re.escape(f"{tmp_path}/results/original/checkpoint/model.safetensors: cannot be written")
    with pytest.raises(InputError, match=f"^{due}$"):
        run({"directory": str(build(tmp_path / "model"))}, tmp_path / "results")


def test_missing_dtype_is_that_of_the_weights(tmp_path: Path) -> None:
    source = build(tmp_path / "model", torch.bfloat16)
    edit_config(source, dtype=...)
    checkpoint, _ = run({"directory": str(source)}, tmp_path / "results")
    assert tiny.read(checkpoint / "config.json")["dtype"] == "bfloat16"


ROPE: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
    {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]  # fmt: skip


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "stablelm"])
def test_an_older_transformers_finds_positions_too(kind: str, rope: dict[str, Any]) -> None:
    """Under the keys it knows; the pinned one reads the same from all of them, and from those alone."""
    from transformers import AutoConfig

    config = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
    config["rope_parameters"] = rope
    both = convert.with_older_keys(config)
    older = {key: value for key, value in both.items() if key != "rope_parameters"}
    assert older["rope_theta"] == rope["rope_theta"]
    assert ("rope_scaling" in older) == (rope["rope_type"] != "default")
    given, found, alone = (AutoConfig.for_model(**entries).rope_parameters for entries in (config, both, older))
    assert found == given == alone


def test_positions_that_older_words_cannot_say_are_left() -> None:
    for config in (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": None},
        {},
    ):
        assert convert.with_older_keys(config) == config


# --- MiniCPM, whose published code is never run

MINICPM = {
    "_name_or_path": "openbmb/CPM-2B",
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_minicpm.MiniCPMConfig",
        "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.1,
    "intermediate_size": 80,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vocab_size": 256,
    "scale_emb": 12,
    "dim_model_base": 16,
    "scale_depth": 1.4,
    "model_type": "minicpm",
}


def save_minicpm(folder: Path, marker: Path, with_head: bool = False, **changes: Any) -> dict[str, Tensor]:
    """A tiny MiniCPM as published: its own code, one .bin in bfloat16, rotary buffers."""
    config = MINICPM | changes
    generator = torch.Generator().manual_seed(5)
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]

    def draw(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    tensors = {"model.embed_tokens.weight": draw(256, width), "model.norm.weight": 1 + draw(width)}
    for i in range(layers):
        shapes = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }  # fmt: skip
        tensors |= {f"model.layers.{i}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = 1 + draw(width)
    tensors = {name: value.bfloat16() for name, value in tensors.items()}
    stored = dict(tensors)
    for i in range(layers):
        stored[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    if with_head:
        stored["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder.mkdir()
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    code = f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\nclass MiniCPMConfig: ...\n"
    for name in ("configuration_minicpm.py", "modeling_minicpm.py", "tokenization_minicpm.py"):
        (folder / name).write_text(code)
    tiny.save_tokenizer(folder)
    return tensors


def minicpm_logits(w: dict[str, Tensor], config: dict[str, Any], ids: list[int]) -> Tensor:
    """MiniCPM's equations in float64, one position, head and layer at a time."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean() + config["rms_norm_eps"]) * w[name].double()

    def linear(x: Tensor, name: str) -> Tensor:
        return w[name + ".weight"].double() @ x

    def rotate(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for j in range(size // 2):
            angle = position / 10000.0 ** (2 * j / size)
            a, b = x[j].item(), x[j + size // 2].item()
            out[j] = a * math.cos(angle) - b * math.sin(angle)
            out[j + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    share = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    hidden = [w["model.embed_tokens.weight"][i].double() * config["scale_emb"] for i in ids]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        normed = [norm(h, name + "input_layernorm.weight") for h in hidden]
        q, k, v = ([linear(x, f"{name}self_attn.{c}_proj") for x in normed] for c in "qkv")
        for t in range(len(ids)):
            outs = []
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                group = head * groups // heads
                theirs = slice(group * size, (group + 1) * size)
                query = rotate(q[t][mine], t)
                scores = torch.stack([query @ rotate(k[s][theirs], s) / math.sqrt(size) for s in range(t + 1)])
                weights = scores.softmax(0)
                outs.append(sum(weights[s] * v[s][theirs] for s in range(t + 1)))
            hidden[t] = hidden[t] + share * linear(torch.cat(outs), name + "self_attn.o_proj")
        for t in range(len(ids)):
            x = norm(hidden[t], name + "post_attention_layernorm.weight")
            gate, up = linear(x, name + "mlp.gate_proj"), linear(x, name + "mlp.up_proj")
            hidden[t] = hidden[t] + share * linear(gate / (1 + torch.exp(-gate)) * up, name + "mlp.down_proj")
    divisor = config["hidden_size"] / config["dim_model_base"]
    return torch.stack(
        [w["model.embed_tokens.weight"].double() @ (norm(h, "model.norm.weight") / divisor) for h in hidden]
    )


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
def test_minicpm_gives_its_own_equations_logits(tmp_path: Path, caplog: Any, groups: int, with_head: bool) -> None:
    marker = tmp_path / "marker"
    weights = save_minicpm(tmp_path / "model", marker, with_head, num_key_value_heads=groups)
    with caplog.at_level(logging.INFO, "quant"):
        checkpoint, _ = run({"directory": str(tmp_path / "model")}, tmp_path / "results")
    assert "inv_freq" in caplog.text and "auto_map" in caplog.text
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == weights.keys() and all(torch.equal(stored[name], weights[name]) for name in weights)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(loaded).__name__ == "GraniteForCausalLM" and loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    expected = minicpm_logits(weights, MINICPM | {"num_key_value_heads": groups}, IDS[0, :12].tolist())
    torch.testing.assert_close(
        logits(checkpoint, torch.float32)[0, :12].double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
    )
    assert not marker.exists() and not list(checkpoint.glob("*.py"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scale_emb": "twelve"}, "does not describe a MiniCPM"),
        ({"num_attention_heads": 0}, "does not describe a MiniCPM"),
        ({"num_experts": 8}, "num_experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
    ],
)
def test_other_minicpms_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    save_minicpm(tmp_path / "model", tmp_path / "marker")
    edit_config(tmp_path / "model", **changes)
    assert expected in refusal(tmp_path / "model", tmp_path / "results")
    edit_config(tmp_path / "model", scale_depth=...)
    refusal(tmp_path / "model", tmp_path / "results")


def test_linears_that_blocks_share_stay_as_they_are_and_are_named(tmp_path: Path) -> None:
    """Zamba's attention and MLP are one for several blocks, each with inputs of its own."""
    matrix.build("zamba").save_pretrained(tmp_path / "model")
    tiny.save_byte_tokenizer(tmp_path / "model")
    checkpoint, record = run({"directory": str(tmp_path / "model")}, tmp_path / "results")
    shared = {name for name, reason in record["left"].items() if "share" in reason}
    assert len(shared) == 2 * 7 and all(".shared_transf." in name for name in shared)
    assert not any(".shared_transf." in name for name in record["linears"])
    matrix.close(matrix.logits(checkpoint), matrix.logits(tmp_path / "model"), "converted")
