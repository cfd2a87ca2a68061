"""Linears whose codes are bytes: the library's weights are ours to the bit, plain transformers loads every file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.checkpoints import byte_codes, packed, stored
from quant.checkpoints.export import export
from quant.errors import InputError
from quant.evaluation.exact_error import measure
from quant.evaluation.perplexity import load_model
from quant.methods.packing import why_not_packed
from quant.recipe import grids
from quant.recipe.formats import NAMES
from quant.recipe.grids import Codes, Grid
from quant.recipe.numbers import unit_of
from quant.recipe.recipe import Recipe
from tests import tiny
from tests.unit.recipe.cases import LINEARS, PATTERNS, PLAIN, run

GRIDS = {
    "nvfp4": Grid(4, 16, True, "nvfp4"),
    "mxfp4": Grid(4, 32, True, "mxfp4"),
    "fp8": Grid(8, -1, True, "fp8"),
    "fp8_blocks": Grid(8, 128, True, "fp8"),
    "int8": Grid(8, -1, True, "int8"),
}
RECIPES: dict[str, dict[str, Any]] = {
    name: {"format": grid.format, "bits": grid.bits, "group_size": grid.group_size, "symmetric": True}
    for name, grid in GRIDS.items()
}


def codes_of(grid: Grid, n_out: int, n_in: int, dtype: torch.dtype) -> Codes:
    """A random weight of rows of several sizes on its grid, every point among its codes, as a file has it."""
    generator = torch.Generator().manual_seed(n_out)
    w = torch.randn(n_out, n_in, generator=generator) * 10 ** (3 * torch.rand(n_out, 1, generator=generator) - 2)
    groups = grids.to_groups(w, grid.group_size)
    unit = unit_of(float(w.abs().max()) / 6) if grid.format == "nvfp4" else 1.0
    step, zero = grids.fit(groups, grid, lambda step: grids.stored_step(step, dtype, steps=grid.steps, unit=unit))
    step = grids.stored_step(step, dtype, steps=grid.steps, unit=unit)
    return Codes(grids.encode(groups, step, zero, grid), step, zero, grid, n_in, unit)


def saved(folder: Path, linear: Codes, dtype: torch.dtype) -> Path:
    folder.mkdir()
    dense = {"a.weight": (dtype, (len(linear.codes), linear.n_in)), "b.weight": (dtype, (3, 4))}
    layout = packed.layout(dense, {"a": linear.grid})
    tensors = {key: value.to(layout[key][0]).contiguous() for key, value in packed.pack("a", linear).items()}
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {k: layout[k][1] for k in tensors}
    save_file(tensors, folder / "model.safetensors", {"provenance": json.dumps({"model_fingerprint": "tiny"})})
    config = {"quantization_config": packed.quantization_config({"a": linear.grid}, dense)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


PRESETS = {
    "nvfp4": "NVFP4A16",
    "mxfp4": "MXFP4A16",
    "fp8": "FP8_DYNAMIC",
    "fp8_blocks": "FP8_BLOCK",
    "int8": "W8A8",
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 256), (13, 96), (256, 384)])
@pytest.mark.parametrize("name", GRIDS)
def test_the_librarys_weight_is_ours_to_the_bit(
    name: str, shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path
) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    grid = GRIDS[name]
    if byte_codes.why_not(grid, *shape) is not None:
        pytest.skip("no reader takes it")
    linear = codes_of(grid, *shape, dtype)
    folder = saved(tmp_path / "out", linear, dtype)
    tensors = load_file(folder / "model.safetensors")
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    scheme = config.config_groups["group_0"]
    assert config.format == scheme.format == NAMES[grid.format]
    preset = preset_name_to_scheme(PRESETS[name], ["Linear"])
    without = {"zp_dtype": None}
    assert scheme.weights.model_copy(update=without) == preset.weights.model_copy(update=without)
    if grid.format in byte_codes.BYTES:  # with inputs of 8 bits, as the library's preset has them
        dense = {"a.weight": (dtype, shape)}
        again = packed.quantization_config({"a": grid}, dense, inputs=True)
        scheme = QuantizationConfig.model_validate(again).config_groups["group_0"]
        inputs = scheme.input_activations
        assert inputs.model_copy(update=without) == preset.input_activations.model_copy(update=without)
    assert scheme.format == infer_module_format(torch.nn.Linear, scheme)
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    local = {key.removeprefix("a."): value for key, value in tensors.items()}
    theirs, ours = compressor.decompress(local, scheme)["weight"], linear.dequantize()
    assert torch.equal(theirs, ours.to(theirs.dtype))
    if grid.format in byte_codes.FP4:
        assert theirs.dtype == byte_codes.UNPACKED and torch.equal(theirs.float(), ours)  # nothing is rounded
    with torch.compiler.set_stance("force_eager"):  # it compiles the rounding to E2M1
        again = compressor.compress(dense_state(linear, local), scheme)
    assert all(torch.equal(again[key].view(torch.uint8), local[key].view(torch.uint8)) for key in local)
    with stored.opened(folder, "tiny") as file:
        found = file.linear("a")
        assert torch.equal(found.codes, linear.codes) and torch.equal(found.step, linear.step)
        assert (found.grid, found.unit, file.shape("a")) == (grid, linear.unit, shape)
        assert torch.equal(file.weight("a"), ours)


def dense_state(linear: Codes, local: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the library compresses: the weight, and its steps in the library's units."""
    of_fp4 = linear.step[:, :, 0] * linear.unit
    scale = of_fp4 if linear.grid.format in byte_codes.FP4 else local["weight_scale"]
    state = {"weight": linear.dequantize(), "weight_scale": scale}
    return state | {key: value for key, value in local.items() if key == "weight_global_scale"}


def as_a_user_loads_it(folder: Path) -> Tensor:
    """Logits of plain transformers, which generates too. Eager, or the library compiles its rounding to E2M1 (10 s)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder)
        logits: Tensor = model(torch.arange(3, 43)[None]).logits
        tokens = AutoTokenizer.from_pretrained(folder)("w1 w2", return_tensors="pt")
        found = model.generate(input_ids=tokens["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert found.shape[1] == 6
    return logits


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose inputs every format divides, in float16."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True}
    folder = tiny.save_model(tmp_path_factory.mktemp("wide") / "model", **shape)
    tensors = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return folder


def test_plain_transformers_loads_every_format_with_equal_logits(wide: Path, tmp_path: Path) -> None:
    """Those of the dense export, to the bit; q/k/v and gate/up have one unit, as vLLM's fused products take it."""
    before = load_file(wide / "model.safetensors")
    recipes = {name: recipe for name, recipe in RECIPES.items() if name != "fp8_blocks"}
    for name, recipe in recipes.items():
        record = run(wide, tmp_path / name, {}, **recipe)
        assert record["summary"]["storage"] == "packed", record["summary"]["storage_reason"]
        export(tmp_path / name, tmp_path / f"{name}-dense", "dense", "tiny")
        tensors = load_file(tmp_path / name / "model.safetensors")
        expected = torch.bfloat16 if recipe["format"] in byte_codes.FP4 else torch.float16
        norm = tensors["model.norm.weight"]
        assert norm.dtype == expected and torch.equal(norm, before["model.norm.weight"].to(expected))
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(expected)[6:]
        bits = sum(8 * v.numel() * v.element_size() for k, v in tensors.items() if "_proj" in k)
        assert record["summary"]["bits_per_weight"] * sum(
            v.numel() for k, v in before.items() if "_proj" in k
        ) == pytest.approx(bits)
    nvfp4 = load_file(tmp_path / "nvfp4/model.safetensors")
    for fused in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]):
        assert len({nvfp4[f"model.layers.0.{name}.weight_global_scale"].item() for name in fused}) == 1
    for name in recipes:
        logits = [as_a_user_loads_it(tmp_path / each) for each in (name, f"{name}-dense")]
        assert torch.equal(*logits) and logits[0].isfinite().all()
        model = load_model(tmp_path / name, "cpu", torch.float32)  # as an evaluation asks for
        weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
        with stored.opened(tmp_path / name) as file:
            assert torch.equal(weight, file.weight("model.layers.1.mlp.down_proj"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (RECIPES["nvfp4"], None),
        (RECIPES["fp8"], None),
        (RECIPES["mxfp4"], "group_size 32 does not divide the 48 inputs"),
        (RECIPES["fp8_blocks"], "a: blocks of 128 by 128 do not divide 64 outputs and 48 inputs"),
        (RECIPES["nvfp4"] | {"format": "nf4"}, "no reader of packed checkpoints takes nf4"),
        (RECIPES["nvfp4"] | {"keep": "awq"}, "keep: awq"),
    ],
)
def test_what_packs_and_why_not(changes: dict[str, Any], reason: str | None) -> None:
    found = why_not_packed(Recipe.of(PLAIN | changes), {"a": (64, 48)})
    assert found is None if reason is None else reason in found and "\n" not in found


def test_files_that_are_not_what_they_say(wide: Path, tmp_path: Path) -> None:
    run(wide, tmp_path / "out", {}, **RECIPES["nvfp4"])
    with pytest.raises(InputError, match="is in nvfp4, and AutoAWQ's layout holds words of codes; export dense"):
        export(tmp_path / "out", tmp_path / "awq", "awq", "tiny")
    config = json.loads((tmp_path / "out/config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights["group_size"] = 24
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is none of"), stored.opened(tmp_path / "out"):
        pass


def test_errors_are_measured_on_the_file(tiny_checkpoint: Path, statistics: dict[str, str], tmp_path: Path) -> None:
    found: list[list[float]] = []
    for name, recipe in (("nvfp4", RECIPES["nvfp4"]), ("gptq", RECIPES["nvfp4"] | {"rounding": "gptq", "refine": 1})):
        record = run(tiny_checkpoint, tmp_path / name, statistics, **recipe)
        assert record["summary"]["storage"] == "packed"
        files = tiny_checkpoint / "model.safetensors", tmp_path / name, tmp_path / f"{name}.folds.safetensors"
        rows = measure(*files, Path(statistics["moments"]), record, PATTERNS, "cpu")
        errors = [row["relative_error"] for row in rows]
        assert len(errors) == len(LINEARS) and all(0 < error < 0.05 for error in errors)
        found.append(errors)
    assert all(after < before for before, after in zip(*found, strict=True))


def test_simulated_formats_are_on_their_grid(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """48 inputs in groups of 32, and NF4: dense, each weight a point times a step."""
    for name, grid in (("mxfp4", GRIDS["mxfp4"]), ("nf4", Grid(4, 16, True, "nf4"))):
        recipe = {"format": name, "bits": 4, "group_size": grid.group_size, "symmetric": True}
        assert run(tiny_checkpoint, tmp_path / name, {}, **recipe)["summary"]["storage"] == "simulated"
        before, after = (load_file(path / "model.safetensors") for path in (tiny_checkpoint, tmp_path / name))
        for linear in LINEARS:
            expected = grids.nearest(before[f"{linear}.weight"], grid)
            torch.testing.assert_close(after[f"{linear}.weight"], expected, rtol=1e-5, atol=0)


def test_inputs_are_rounded_as_they_run(wide: Path, tmp_path: Path) -> None:
    """By each token's largest, to the weights' format: against a slow product of one linear."""
    for name, largest in (("int8", 127.0), ("fp8", 448.0)):
        record = run(wide, tmp_path / name, {}, **RECIPES[name], activations="dynamic")
        assert record["summary"]["storage"] == "packed"
        model = load_model(tmp_path / name, "cpu", torch.float32)
        linear = model.get_submodule("model.layers.0.mlp.up_proj")
        x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
        step = x.abs().amax(-1, keepdim=True) / (largest if name == "fp8" else 127.5)
        points = GRIDS[name].points
        with stored.opened(tmp_path / name) as file:
            expected = points.nearest_(x / step) * step @ file.weight("model.layers.0.mlp.up_proj").T
        with torch.inference_mode():
            torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"activations: dynamic: .* would be dense: keep: awq"):
        run(wide, tmp_path / "kept", {}, **RECIPES["fp8"], activations="dynamic", keep="awq")
