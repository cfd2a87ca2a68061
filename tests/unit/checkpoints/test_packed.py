"""Packed checkpoints: against slow bit loops and the library's own compressor, loaded by transformers, refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quant.checkpoints import packed, stored
from quant.errors import InputError
from quant.evaluation.perplexity import load_model
from quant.methods.packing import why_not_packed
from quant.recipe import grids
from quant.recipe.grids import Grid
from quant.recipe.recipe import Recipe
from tests.unit.checkpoints.codes import codes_of
from tests.unit.recipe.cases import LINEARS, PLAIN, recast, run

GRIDS = [(bits, symmetric, size) for bits in (4, 8) for symmetric in (True, False) for size in (16, -1)]
GRIDS += [(2, False, 16), (3, True, 16), (3, False, -1)]  # of which an int32 holds 16 and 10
NAMES = [f"{bits}-{'sym' if symmetric else 'asym'}-{size}" for bits, symmetric, size in GRIDS]
MADE = {"model_fingerprint": "tiny"}


def saved(folder: Path, linear: packed.Codes, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    tensors = {key: value.contiguous() for key, value in packed.pack("a", linear).items()}
    save_file(tensors, folder / "model.safetensors", {"provenance": json.dumps(MADE)})
    dense = {"a.weight": (torch.float32, (len(linear.codes), linear.n_in)), "b.weight": (torch.float32, (3, 4))}
    made = {"quantization_config": packed.quantization_config({"a": linear.grid}, dense)} if config is None else config
    (folder / "config.json").write_text(json.dumps(made))
    return folder


@pytest.mark.parametrize(("n_out", "n_in"), [(8, 32), (13, 48), (3, 16)])
@pytest.mark.parametrize(("bits", "symmetric", "size"), GRIDS, ids=NAMES)
def test_file_equals_slow_bits_and_the_librarys_compressor(
    bits: int, symmetric: bool, size: int, n_out: int, n_in: int, tmp_path: Path
) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    linear = codes_of(Grid(bits, size, symmetric), n_out, n_in)
    folder = saved(tmp_path / "out", linear)
    tensors = load_file(folder / "model.safetensors")
    words = tensors["a.weight_packed"].numpy().view(np.uint32)
    per_word = 32 // bits
    for row in range(n_out):
        for j in range(n_in):
            field = (int(words[row, j // per_word]) >> (bits * (j % per_word))) & (2**bits - 1)
            code = linear.codes.flatten(1)[row, j]
            assert field == int(code) + (2 ** (bits - 1) if symmetric else 0)
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    local = {key.removeprefix("a."): value for key, value in tensors.items()}
    scheme = config.config_groups["group_0"]
    back = PackedQuantizationCompressor.decompress(local, scheme)["weight"]
    assert torch.equal(back, linear.dequantize())
    zero = {} if symmetric else {"weight_zero_point": (linear.zero[:, :, 0] - 2 ** (bits - 1)).to(torch.int8)}
    dense = {"weight": linear.dequantize(), "weight_scale": linear.step[:, :, 0], **zero}
    again = PackedQuantizationCompressor.compress(dense, scheme)
    assert again.keys() == local.keys() and all(torch.equal(again[key], local[key]) for key in local)
    with stored.opened(folder, "tiny") as file:
        found = file.linear("a")
        assert torch.equal(found.codes, linear.codes) and torch.equal(found.zero, linear.zero)
        assert torch.equal(file.weight("a"), back) and found.grid == linear.grid
    shapes = {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}
    assert shapes == packed.layout_of("a", (n_out, n_in), torch.float32, linear.grid)
    assert packed.bits_of(shapes) == 8 * sum(value.numel() * value.element_size() for value in tensors.values())
    by_size = {"strategy": "channel"} if size == -1 else {"strategy": "group", "group_size": size}
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **by_size)
    assert config == QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["b", "lm_head"],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_steps_are_those_that_are_read_back(dtype: torch.dtype) -> None:
    step = torch.tensor([1e-9, 1e-6, 0.01, 0.3, 7.0])[:, None, None]
    rows = torch.tensor([1.0, 0.37, 3.3, 1 / 3, 0.011])
    kept = grids.stored_step(step, dtype, rows)
    in_file = (kept * rows[:, None, None]).to(dtype)
    assert (in_file > 0).all()
    torch.testing.assert_close(in_file.float() / rows[:, None, None], kept, rtol=1e-6, atol=0)
    torch.testing.assert_close(kept[2:], step[2:], rtol=2**-8, atol=0)
    assert torch.equal(grids.stored_step(kept, dtype, rows), kept)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"bits": 8}, None),
        ({"salience": "l2", "scope": "shared", "rounding": "gptq", "clip": True}, None),
        ({"group_size": 24}, None),
        ({"bits": 3}, None),
        ({"keep": "awq"}, "keep: awq"),
        ({"noise_injection": 0.1}, "noise_injection"),
        ({"salience": "l1"}, "scope: linear"),
        ({"group_size": 7}, "7 does not divide the 24 inputs of a"),
    ],
)
def test_what_packs_and_why_not(changes: dict[str, Any], reason: str | None) -> None:
    found = why_not_packed(Recipe.of(PLAIN | changes), {"a": (6, 24)})
    assert found is None if reason is None else reason in found and "\n" not in found


@pytest.fixture
def half(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model in float16, so that what is stored is rounded."""

    def cast(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.half()

    source = recast(tiny_checkpoint, tmp_path / "half", cast)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return source


RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"bits": b, "symmetric": s, "group_size": g} for name, (b, s, g) in zip(NAMES, GRIDS, strict=True)},
    "shared": {"salience": "l2", "scope": "shared", "clip": True, "rounding": "gptq", "group_size": 16, "n_grid": 5},
}


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_packed_and_simulated_agree(
    half: Path, statistics: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The same codes, and the same logits but for the dense file's float16."""
    kept = statistics if "salience" in changes else {}
    result = run(half, tmp_path / "packed", kept, **changes)
    assert result["summary"]["storage"] == "packed"
    monkeypatch.setattr("quant.methods.packing.why_not_packed", lambda *_: "asked for")
    simulated = run(half, tmp_path / "dense", kept, **changes)
    assert simulated["summary"]["storage_reason"] == "asked for"
    with stored.opened(tmp_path / "packed") as codes, stored.opened(tmp_path / "dense") as dense:
        for name in LINEARS:
            linear = codes.linear(name)
            w = dense.weight(name)
            torch.testing.assert_close(w, linear.dequantize(), rtol=2**-10, atol=1e-7)
            groups = grids.to_groups(w, linear.grid.group_size)
            assert torch.equal(grids.encode(groups, linear.step, linear.zero, linear.grid), linear.codes)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    losses = []
    for name in ("packed", "dense"):
        model = load_model(tmp_path / name, "cpu", torch.float32)
        with torch.inference_mode():
            losses.append(model(ids, labels=ids).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


LOADER = """
import sys
import torch, compressed_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("abc", return_tensors="pt")
    tokens.pop("token_type_ids", None)
    out = model.generate(**tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape == (1, 7), out.shape
assert not any(name == "quant" or name.startswith("quant.") for name in sys.modules)
"""


def test_plain_transformers_loads_every_grid_and_generates(half: Path, tmp_path: Path) -> None:
    folders = []
    for name, (bits, symmetric, size) in zip(NAMES, GRIDS, strict=True):
        run(half, tmp_path / name, {}, bits=bits, symmetric=symmetric, group_size=size)
        folders.append(str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", LOADER, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_linears_shrink(half: Path, tmp_path: Path) -> None:
    """4 bits in groups of 128 with zero points: 16 / (4 + 20/128) = 3.85 times."""
    dense = {"a.weight": (torch.bfloat16, (2304, 5760))}
    for symmetric in (True, False):
        assert packed.bits_of(dense) / packed.bits_of(packed.layout(dense, {"a": Grid(4, 128, symmetric)})) > 3.84
    result = run(half, tmp_path / "out", {}, group_size=16)
    held = load_file(tmp_path / "out/model.safetensors")
    bits = sum(8 * v.numel() * v.element_size() for key, v in held.items() if ".weight_" in key)
    numbers = sum(load_file(half / "model.safetensors")[f"{name}.weight"].numel() for name in LINEARS)
    assert result["summary"]["bits_per_weight"] == bits / numbers


# grids that a config.json names and the file has not
WRONG: dict[str, dict[str, Any]] = {
    "size": {"group_size": 8},
    "size of as many groups": {"group_size": 20},
    "one group": {"group_size": None},
    "bits": {"num_bits": 8},
    "symmetric": {"symmetric": True},
}


def damaged(fault: str, folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif fault in WRONG:
        made = json.loads(config.read_text())
        made["quantization_config"]["config_groups"]["group_0"]["weights"] |= WRONG[fault]
        config.write_text(json.dumps(made))
    elif fault == "dense":
        made = json.loads(config.read_text())
        del made["quantization_config"]
        config.write_text(json.dumps(made))
    elif fault == "format":
        config.write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    elif fault == "missing":
        tensors = load_file(weights)
        del tensors["a.weight_zero_point"]
        save_file(tensors, weights, {"provenance": json.dumps(MADE)})
    elif fault == "model":
        save_file(load_file(weights), weights, {"provenance": json.dumps({"model_fingerprint": "another"})})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", "not a whole safetensors"),
        ("size", r"a\.weight_scale is \[8, 2\].*group_size 8.*\[8, 4\]"),
        ("size of as many groups", "a has 32 inputs, which group_size 20 in .*config.json does not divide"),
        ("one group", r"a\.weight_scale is \[8, 2\].*one group a row.*\[8, 1\]"),
        ("bits", r"a\.weight_packed is \[8, 4\].*8 bits.*\[8, 8\]"),
        ("symmetric", r"a\.weight_zero_point is \[1, 2\] where symmetric 4 bits and group_size 16 in .* ask for none"),
        ("dense", "holds packed weights"),
        ("format", "none of pack-quantized"),
        ("missing", r"a\.weight_zero_point is missing"),
        ("model", "another model_fingerprint .another; this study's is tiny."),
    ],
)
def test_what_is_broken_is_refused_by_name(fault: str, words: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "out", codes_of(Grid(4, 16, False), 8, 32))
    with stored.opened(folder, "tiny"):
        pass
    damaged(fault, folder)
    with pytest.raises(InputError, match=words) as caught, stored.opened(folder, "tiny"):
        pass
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_dense_checkpoint_reads_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "dense")
    with stored.opened(tmp_path / "dense") as file:
        name = next(iter(LINEARS))
        assert file.packed == {} and torch.equal(file.weight(name), file.file.get(f"{name}.weight"))
        with pytest.raises(InputError, match=f"{name} is not packed"):
            file.linear(name)
