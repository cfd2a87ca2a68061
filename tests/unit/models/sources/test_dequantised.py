"""Models stored in a quantised format: dequantised by transformers to what the format's formula gives, or refused."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.calibration.material import Material
from quant.calibration.statistics import collect
from quant.checkpoints import stored
from quant.data.tokens import Tokens, fingerprint
from quant.files import tensorfile
from quant.files.spool import Spool
from quant.models.sources import dequantised
from quant.runtime.compute import Compute
from tests import matrix, tiny
from tests.unit.model_files import edit_config, edit_tensors, refusal, run

SIDE = 16  # of FP8's blocks
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def saved(kind: str, folder: Path, **changes: Any) -> Path:
    """A tiny model in bfloat16, as transformers writes it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = matrix.config(kind)
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(folder)
    tiny.save_byte_tokenizer(folder)
    return folder


def as_fp8(folder: Path) -> dict[str, Tensor]:
    """Every projection in e4m3 with a scale for each block, as DeepSeek publishes; what that is worth, in float64."""
    worth: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name]:
            out, n_in = tensors[name].shape
            blocks = tensors[name].float().view(out // SIDE, SIDE, n_in // SIDE, SIDE)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            worth[name] = (codes.double() * scale.double()[:, None, :, None]).view(out, n_in)
            tensors |= {name: codes.view(out, n_in), f"{name}_scale_inv": scale}

    edit_tensors(folder, change)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [SIDE, SIDE]})
    return worth


def as_mxfp4(folder: Path) -> dict[str, Tensor]:
    """gpt-oss's experts in blocks of 32 codes of 4 bits with an exponent each, the even one in the low half of a byte;
    what that is worth [experts, in, out]."""
    worth: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            n, n_in, out = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (n, out, n_in // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(118, 124, (n, out, n_in // 32), generator=generator, dtype=torch.uint8)
            halves = torch.stack([blocks & 15, blocks >> 4], -1).long()
            value = E2M1[halves & 7] * (1 - 2 * (halves >> 3))
            value = value.flatten(-2) * 2.0 ** (scales.double() - 127)[..., None]
            worth[name] = value.flatten(-2).transpose(1, 2)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}

    edit_tensors(folder, change)
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return worth


def as_channels(folder: Path, kind: str) -> dict[str, Tensor]:
    """compressed-tensors' e4m3 or int8 with a scale for each output channel, as llm-compressor writes it."""
    worth: dict[str, Tensor] = {}
    last = {"float": 448, "int": 127}[kind]

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name]:
            scale = (tensors[name].float().abs().amax(1, keepdim=True) / last).bfloat16()
            ratio = (tensors[name].float() / scale.float()).clamp_(-last, last)
            codes = ratio.to(torch.float8_e4m3fn) if kind == "float" else ratio.round_().to(torch.int8)
            worth[name] = codes.double() * scale.double()
            tensors |= {name: codes, f"{name}_scale": scale}

    edit_tensors(folder, change)
    number = {"num_bits": 8, "type": kind, "symmetric": True}
    group = {"targets": ["Linear"], "weights": number | {"strategy": "channel", "dynamic": False},
             "input_activations": number | {"strategy": "token", "dynamic": True}}  # fmt: skip
    edit_config(folder, quantization_config={
        "quant_method": "compressed-tensors", "format": f"{kind}-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    })  # fmt: skip
    return worth


def as_packed(folder: Path, symmetric: bool) -> dict[str, Tensor]:
    """compressed-tensors' pack-quantized, as this project writes it and reads it back."""
    run({"directory": str(folder)}, folder.parent / "first/results")
    record = tiny.read(folder.parent / "first/results/original/convert.json")
    ids = matrix.sequences(2)
    files = {name: str(folder.parent / name) for name in ("channels", "moments")}
    original = folder.parent / "first/results/original/checkpoint"
    material = Material(original, Tokens(ids, fingerprint(ids), {}), {"model_fingerprint": record["fingerprint"]})
    collect(material, *files.values(), Compute("cpu", torch.float32, 60))
    entry = matrix.RECIPE | {"symmetric": symmetric}
    matrix.quantized(folder.parent / "first", "rtn", entry, record, files)
    packed = folder.parent / "first/results/rtn/checkpoint"
    with stored.opened(packed) as codes:
        worth = {f"{name}.weight": codes.weight(name).double() for name in record["linears"]}
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return worth


@pytest.mark.parametrize(
    ("kind", "how"),
    [("llama", "fp8"), ("qwen3_moe", "fp8"), ("gpt_oss", "mxfp4"), ("llama", "float-quantized"),
     ("llama", "int-quantized"), ("llama", "packed"), ("qwen3_moe", "packed"), ("llama", "packed with zeros")],
)  # fmt: skip
def test_weights_are_what_their_format_says(kind: str, how: str, tmp_path: Path) -> None:
    """As close as bfloat16 has them; everything else is the file's to the bit; the record has a caveat."""
    folder = saved(kind, tmp_path / "model")
    plain = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    if how == "fp8":
        worth, said = as_fp8(folder), f"FP8 (blocks of {SIDE} × {SIDE})"
    elif how.endswith("-quantized"):
        worth, said = as_channels(folder, how.removesuffix("-quantized")), f"compressed-tensors ({how})"
    elif how == "mxfp4":
        worth, said = as_mxfp4(folder), "MXFP4"
    else:
        worth, said = as_packed(folder, how == "packed"), "compressed-tensors (pack-quantized)"
    run({"directory": str(folder)}, tmp_path / "results")
    record = tiny.read(tmp_path / "results/original/convert.json")
    assert f"stored in {said} once before" in record["caveat"]
    config = tiny.read(tmp_path / "results/original/checkpoint/config.json")
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    found = load_file(tmp_path / "results/original/checkpoint/model.safetensors")
    assert len(worth) >= (4 if how == "mxfp4" else 14)
    with tensorfile.opened(tmp_path / "results/original/checkpoint/model.safetensors") as file:
        for name, value in worth.items():
            written = found[name] if name in found else file.get(name)
            assert written.dtype == torch.bfloat16
            torch.testing.assert_close(written.double(), value, rtol=2**-8, atol=0)
    same = [name for name in plain if name in found and name not in worth]
    assert same and all(torch.equal(found[name], plain[name]) for name in same)


def test_inputs_that_were_rounded_are_said() -> None:
    """What a model did as it ran, which its weights do not say."""
    dynamic = {"num_bits": 8, "type": "float", "dynamic": True}
    for entry, rounds in (
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, True),
        ({"quant_method": "fp8"}, False),
        ({"config_groups": {"group_0": {"input_activations": dynamic}}}, True),
        ({"config_groups": {"group_0": {"input_activations": None}}}, False),
        ({}, False),
    ):
        assert dequantised.rounds_inputs({"quantization_config": entry}) == rounds
    assert "inputs were rounded as it ran, which is left out" in dequantised.caveat("FP8", 10**6, True)
    assert "inputs" not in dequantised.caveat("FP8", 10**6)


def test_a_packed_model_is_never_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each linear is gone from memory when the next but one is unpacked; all are transformers' own to the bit."""
    from transformers import AutoModelForCausalLM

    folder = saved("llama", tmp_path / "model")
    worth = as_packed(folder, True)
    edit_config(
        folder,
        quantization_config=(config := tiny.read(folder / "config.json")["quantization_config"]) | {"dequantize": True},
    )
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    edit_config(folder, quantization_config=config)
    kept, alive, shapes, put = [], [], [], Spool.keep

    def keep(spool: Spool, value: Tensor) -> Tensor:
        found = put(spool, value)
        if found is not value:
            kept.append(weakref.ref(value.untyped_storage()))
            alive.append(sum(each() is not None for each in kept))
            shapes.append(value.shape)
        return found

    monkeypatch.setattr(Spool, "keep", keep)
    run({"directory": str(folder)}, tmp_path / "results")
    found = load_file(tmp_path / "results/original/checkpoint/model.safetensors")
    assert worth.keys() <= found.keys() and max(alive) <= 2
    linears = {value.shape for value in worth.values()}
    assert sum(shape in linears for shape in shapes) >= len(worth)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    as_fp8(folder)
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight_scale_inv"))
    assert "model.layers.1.mlp.up_proj.weight is F8_E4M3 and has no scale" in refusal(folder, tmp_path / "results")


def test_what_transformers_would_pass_over_is_named(tmp_path: Path) -> None:
    """FP8 with a scale of the whole tensor under another name: codes would be read as weights."""
    folder = saved("llama", tmp_path / "model")
    as_fp8(folder)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name.removesuffix("_inv")] = tensors.pop(name).max()[None]

    edit_tensors(folder, change)
    assert "quantised already (FP8" in (found := refusal(folder, tmp_path / "results")) and "weight_scale" in found


def test_zero_points_of_experts_are_named(tmp_path: Path) -> None:
    """transformers reads none: the codes alone would be other weights."""
    folder = saved("qwen3_moe", tmp_path / "model")
    as_packed(folder, True)
    config = tiny.read(folder / "config.json")
    group = next(iter(config["quantization_config"]["config_groups"].values()))
    group["weights"]["symmetric"] = False

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            rows, groups = tensors[name].shape
            zeros = torch.zeros(-(-rows // 8), groups, dtype=torch.int32)
            tensors[name.replace("weight_scale", "weight_zero_point")] = zeros

    edit_tensors(folder, change)
    (folder / "config.json").write_text(json.dumps(config))
    found = refusal(folder, tmp_path / "results")
    assert "experts.0.down_proj.weight_zero_point is a zero point of experts, which transformers does not" in found
