"""Damaged, malicious and unfit models: each refused in one line, nothing run and nothing left."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.errors import InputError
from tests import tiny
from tests.unit.model_files import (
    Change,
    Evil,
    edit_config,
    edit_tensors,
    refusal,
    run,
    to_bin,
    to_shards,
)

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
        (configure(quantization_config={"quant_method": "awq", "bits": 4}), "quantised already (AWQ)"),
        (configure(quantization_config="fp8"), "quantised already (FP8)"),
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


def beside(name: str, **entries: Any) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(entries))


def named(ending: str) -> Change:
    name = "model.layers.0.mlp.up_proj" + ending
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (beside("quantize_config.json", bits=4, group_size=128), "quantised already (GPTQ)"),
        (beside("quant_config.json", w_bit=4, q_group_size=128), "quantised already (AWQ)"),
        (beside("hf_quant_config.json", quantization={"quant_algo": "FP8"}), "quantised already (FP8)"),
        (
            configure(compression_config={"quant_method": "compressed-tensors"}),
            "quantised already (compressed-tensors)",
        ),
        (configure(quantization={"group_size": 64, "bits": 4}), "quantised already (MLX)"),
        (first_linear(lambda w: w[:, :6].to(torch.uint8)), "is uint8; give the unquantised model"),
        (
            lambda folder: (named(".qweight")(folder), configure(quantization_config={"quant_method": "gptq"})(folder)),
            "quantised already (GPTQ)",
        ),
        (named(".qweight"), "quantised already (GPTQ or AWQ"),
        (named(".weight_scale_inv"), "quantised already (FP8"),
        (named(".weight_packed"), "quantised already (compressed-tensors"),
        (named(".absmax"), "quantised already (bitsandbytes"),
    ],
)
def test_weights_quantised_already(model: Path, tmp_path: Path, change: Change, expected: str) -> None:
    """In config.json, in a file of their own, or said by the tensors alone."""
    change(model)
    assert expected in refusal(model, tmp_path / "results")


def test_a_bias_that_the_config_leaves_out_is_no_extra(model: Path, tmp_path: Path) -> None:
    """One of nothing but zeros is."""
    name = "model.layers.1.self_attn.q_proj.bias"
    edit_tensors(model, lambda tensors: tensors.update({name: torch.zeros(48)}))
    run({"directory": str(model)}, tmp_path / "results")
    edit_tensors(model, lambda tensors: tensors[name].fill_(0.1))
    assert f"{name} holds numbers, and by config.json LlamaForCausalLM has no such bias" in refusal(
        model, tmp_path / "refused"
    )


def test_null_quantization_config_is_none(model: Path, tmp_path: Path) -> None:
    edit_config(model, quantization_config=None)
    run({"directory": str(model)}, tmp_path / "results")


def test_a_key_that_no_configuration_knows_does_no_harm(model: Path, tmp_path: Path) -> None:
    edit_config(model, cls="x")
    run({"directory": str(model)}, tmp_path / "results")


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
