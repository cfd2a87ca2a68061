"""Exports: read by transformers, by other tools' own readers and by slow loops, against the packed checkpoint."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quant.checkpoints import packed, stored
from quant.checkpoints.export import export, type_of
from quant.checkpoints.fitting import regrouped
from quant.checkpoints.gemm import pack_int4, unpack_int4
from quant.data import tokens
from quant.errors import InputError
from quant.evaluation import record
from quant.evaluation.perplexity import load_model
from quant.evaluation.trial import try_in
from quant.files import tensorfile
from quant.files.artifacts import read_json, write_json
from quant.methods.budgets.mixed import Candidate, weight_tensors
from quant.recipe.grids import Grid
from tests.unit.checkpoints.codes import codes_of
from tests.unit.methods.budgets.mixtures import mixed
from tests.unit.recipe.cases import LINEARS, recast, run

IDS = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AutoAWQ's columns, from the lowest four bits up


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A packed checkpoint of a float16 model whose linears' inputs are multiples of 32."""

    def made(hidden: int = 64, middle: int = 96, dtype: torch.dtype = torch.float16, **changes: Any) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = {"hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": 2, "vocab_size": 256}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        torch.manual_seed(0)
        config = LlamaConfig(**shape, **heads, initializer_range=0.2, bos_token_id=None, eos_token_id=None)
        source = recast(tiny_checkpoint, tmp_path / "source", lambda tensors: None)
        LlamaForCausalLM(config).to(dtype).save_pretrained(source)
        run(source, tmp_path / "out" / "checkpoint", {}, **{"group_size": 32} | changes)
        return tmp_path / "out" / "checkpoint"

    return made


def logits(folder: Path, **options: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(IDS).logits


def packed_logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder, "cpu", torch.float32)(IDS).logits


@pytest.mark.parametrize("symmetric", [True, False])
def test_dense_is_loaded_by_transformers_without_a_quantizer(checkpoint: Any, tmp_path: Path, symmetric: bool) -> None:
    folder = checkpoint(symmetric=symmetric)
    made = export(folder, tmp_path / "dense", "dense", "tiny")
    assert made["dtype"] == "float16" and made["largest_deviation"] < 0.01
    held = load_file(tmp_path / "dense/model.safetensors")
    assert not any("_packed" in name for name in held) and set(held) >= {f"{name}.weight" for name in LINEARS}
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    torch.testing.assert_close(logits(tmp_path / "dense"), packed_logits(folder), rtol=0, atol=0.02)


@pytest.mark.parametrize(("symmetric", "size"), [(True, 32), (False, 32), (False, -1), (True, 96)])
def test_gguf_is_read_by_transformers(checkpoint: Any, tmp_path: Path, symmetric: bool, size: int) -> None:
    """Whose reader takes names, the order of q's and k's rows, hyperparameters and blocks apart by itself."""
    folder = checkpoint(192, 96, symmetric=symmetric, group_size=size)
    made = export(folder, tmp_path / "gguf", "gguf", "tiny")
    assert made["type"] == ("Q4_0" if symmetric else "Q4_1")
    assert made["largest_deviation"] <= (1e-6 if symmetric else 0.005), "Q4_1 rounds a block's least value to float16"
    found = logits(tmp_path / "gguf", gguf_file="model.gguf")
    expected = packed_logits(folder)
    assert (found - expected).norm() < (1e-5 if symmetric else 0.01) * expected.norm()
    from transformers import AutoTokenizer

    text = "two words"
    tokens = [AutoTokenizer.from_pretrained(folder)(text).input_ids]
    tokens.append(AutoTokenizer.from_pretrained(tmp_path / "gguf", gguf_file="model.gguf")(text).input_ids)
    assert tokens[0] == tokens[1]


def test_gguf_of_8_bits(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(bits=8, symmetric=True)
    made = export(folder, tmp_path / "gguf", "gguf", "tiny")
    assert made["type"] == "Q8_0" and made["largest_deviation"] == pytest.approx(0, abs=1e-5)
    found = logits(tmp_path / "gguf", gguf_file="model.gguf")
    torch.testing.assert_close(found, packed_logits(folder), rtol=0, atol=1e-4)


def test_gguf_has_a_type_for_each_tensor(checkpoint: Any, tmp_path: Path) -> None:
    """4 and 8 bits in one file, and one layer's attention as it is."""
    made = []
    for bits in (4, 8):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        folder = checkpoint(192, 96, symmetric=True, bits=bits).parent.rename(tmp_path / f"b{bits}")
        (folder / "checkpoint.folds.safetensors").rename(folder / "folds.safetensors")
        with stored.opened(folder / "checkpoint", "tiny") as file:
            layout = file.file.layout()
        sizes = {name: packed.bits_of({k: layout[k] for k in weight_tensors(name, layout)}) for name in LINEARS}
        costs = {name: 1.0 if ".0.self_attn" in name else (bits == 4) * (".0." in name) for name in LINEARS}
        record: Any = {
            "linears": [{"linear": name} for name in LINEARS],
            "summary": {"storage_reason": ""},
            "provenance": {"recipe": {"bits": bits, "group_size": 32}},
        }
        made.append(Candidate(f"b{bits}", folder, record, costs, sizes))
    record = mixed(tmp_path / "source", tmp_path / "mix", made, bits_per_weight=16)
    kinds = {row["linear"]: row["bits"] for row in record["linears"]}
    assert set(kinds.values()) == {4, 8, 16}
    exported = export(tmp_path / "mix/checkpoint", tmp_path / "gguf", "gguf", "tiny")
    assert exported["type"] == "Q4_0+Q8_0" and exported["largest_deviation"] <= 1e-5
    found, expected = logits(tmp_path / "gguf", gguf_file="model.gguf"), packed_logits(tmp_path / "mix/checkpoint")
    assert (found - expected).norm() < 1e-4 * expected.norm()


DOWN = {"linears": r"mlp\.down_proj$", "format": "q3_k", "bits": 3, "group_size": 16, "symmetric": True}
IQ4_NL = {"format": "iq4_nl", "bits": 4, "group_size": 32, "symmetric": True}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_llama_cpps_own_formats_go_over_to_the_bit(checkpoint: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """IQ4_NL, and Q3_K where 256 divides, in one file: its own reader, and transformers', have the packed weights."""
    import gguf

    folder = checkpoint(64, 512, dtype, **IQ4_NL, tensor_types=[DOWN], clip=False)
    made = export(folder, tmp_path / "gguf", "gguf", "tiny")
    assert made == made | {"type": "IQ4_NL+Q3_K", "largest_deviation": 0.0}
    found = gguf.GGUFReader(tmp_path / "gguf/model.gguf")
    types = {each.name: each.tensor_type.name for each in found.tensors}
    assert types["blk.1.ffn_down.weight"] == "Q3_K" and types["blk.1.ffn_up.weight"] == "IQ4_NL"
    torch.testing.assert_close(
        logits(tmp_path / "gguf", gguf_file="model.gguf"), packed_logits(folder), rtol=0, atol=1e-4
    )
    with stored.opened(folder, "tiny") as file:
        down = file.linear("model.layers.0.mlp.down_proj")
        assert down.grid == Grid(3, 16, True) and (down.step < 0).any() and file.packed.keys() == set(LINEARS)
        assert file.packed["model.layers.0.mlp.up_proj"] == Grid(4, 32, True, "iq4_nl")


def test_steps_that_q3_k_does_not_have_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    plain = DOWN | {"format": "int"}
    with pytest.raises(InputError, match=r"steps are not 6 bits times one number for each 16.*use format: q3_k"):
        export(checkpoint(64, 512, **IQ4_NL, tensor_types=[plain]), tmp_path / "gguf", "gguf", "tiny")
    assert not list((tmp_path / "gguf").glob("model*"))


@pytest.mark.parametrize(("symmetric", "size"), [(True, 32), (False, 32), (False, -1)])
def test_awq_equals_slow_loops_and_another_librarys_reader(
    checkpoint: Any, tmp_path: Path, symmetric: bool, size: int
) -> None:
    """compressed-tensors reads AutoAWQ's layout too."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    folder = checkpoint(symmetric=symmetric, group_size=size)
    made = export(folder, tmp_path / "awq", "awq", "tiny")
    assert made["group_size"] == 32 and made["largest_deviation"] == 0
    held = load_file(tmp_path / "awq/model.safetensors")
    config = json.loads((tmp_path / "awq/config.json").read_text())
    settings = config["quantization_config"]
    assert settings["quant_method"] == "awq" and "lm_head" in settings["modules_to_not_convert"]
    converter = AutoAWQConverter.from_autoawq_config(settings)
    name = "model.layers.1.mlp.down_proj"
    with stored.opened(folder, "tiny") as file:
        expected = file.weight(name)
    n_out, n_in = expected.shape
    words, zeros, scales = (held[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales"))
    slow = np.empty((n_out, n_in), dtype=np.float32)
    for k in range(n_out):
        shift = np.uint32(4 * ORDER.index(k % 8))
        for j in range(n_in):
            code = (words.view(np.uint32)[j, k // 8] >> shift) & 15
            zero = (zeros.view(np.uint32)[j // 32, k // 8] >> shift) & 15
            slow[k, j] = (int(code) - int(zero)) * np.float32(scales[j // 32, k])
    np.testing.assert_array_equal(slow, expected.numpy())
    theirs = converter.process({key: value for key, value in held.items() if key.startswith(name)})
    from compressed_tensors.compressors import PackedQuantizationCompressor

    local = {key.removeprefix(f"{name}."): value for key, value in theirs.items()}
    local["weight_scale"] = local["weight_scale"].float()
    scheme = converter.create_config().config_groups["config_group_0"]
    assert torch.equal(PackedQuantizationCompressor.decompress(local, scheme)["weight"], expected)


def test_packing_int4_is_the_inverse_of_unpacking() -> None:
    codes = torch.randint(0, 16, (5, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(unpack_int4(pack_int4(codes)), codes)


def test_smaller_groups_hold_the_same_weights() -> None:
    linear = codes_of(Grid(4, 64, False), 6, 128)
    assert torch.equal(regrouped(linear, 32).dequantize(), linear.dequantize())
    whole = codes_of(Grid(4, -1, True), 6, 96)
    assert torch.equal(regrouped(whole, 32).dequantize(), whole.dequantize())


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gguf", {"bits": 8}, "in 8 bits with zero points, which GGUF has no blocks for"),
        ("awq", {"bits": 8}, "has 8 bits, and AutoAWQ's layout holds 4"),
        ("gguf", {"group_size": 16}, "groups of 16 inputs, which GGUF's 32 does not divide"),
        ("awq", {"group_size": 16}, "groups of 16 inputs, which AutoAWQ's 32 does not divide; use a group_size"),
        ("gguf", {"group_size": -1, "middle": 48}, "48 inputs, which GGUF's 32 does not divide; export dense"),
        ("awq", {"group_size": -1, "middle": 48}, "48 inputs, which AutoAWQ's 32 does not divide; export dense"),
        ("gguf", {"bits": 3}, "in 3 bits with zero points, which GGUF has no blocks for"),
        (
            "gguf",
            {"bits": 3, "symmetric": True, "group_size": 16, "middle": 256},
            "64 inputs, which GGUF's 256 does not",
        ),
        (
            "gguf",
            {"format": "fp8", "group_size": -1, "symmetric": True, "bits": 8},
            "is in fp8, which GGUF has no blocks",
        ),
        ("gguf", {"noise_injection": 0.1}, "simulated"),
        ("awq", {"dtype": torch.float32, "symmetric": True}, "is no float16"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(
    checkpoint: Any, tmp_path: Path, kind: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        export(checkpoint(**changes), tmp_path / kind, kind, "tiny")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / kind).glob("model*"))


def test_a_simulated_checkpoint_is_dense_already(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(noise_injection=0.1)
    made = export(folder, tmp_path / "dense", "dense", "tiny")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "dense"))
    assert made["largest_deviation"] == 0 and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("norm", "first"),
    [("layers.0.post_attention_layernorm", r"model\.layers\.0\.post_attention_layernorm"), ("norm", "its head")],
)
def test_an_export_whose_activations_leave_its_type_is_refused(
    checkpoint: Any, tmp_path: Path, norm: str, first: str
) -> None:
    """A bfloat16 model in float16."""
    folder = checkpoint(dtype=torch.bfloat16, symmetric=True)
    large = recast(folder, tmp_path / "large", lambda tensors: None)
    tensors = load_file(large / "model.safetensors")
    tensors[f"model.{norm}.weight"] *= 30000
    with stored.opened(folder) as held:
        metadata = held.file.metadata
    tensorfile.save(large / "model.safetensors", tensors, dict(metadata))
    with pytest.raises(InputError, match=f"leave float16, which awq is written in, first in {first}"):
        try_in(large, type_of(large, "awq") or torch.float32, "awq")
    try_in(large, type_of(large, "dense") or torch.float32, "dense")
    assert type_of(large, "dense") is torch.bfloat16 and type_of(large, "gguf") is None


def test_rows_of_next_to_nothing_are_exported() -> None:
    """Steps below float16's normal numbers, which bfloat16 holds."""
    from quant.checkpoints.fitting import in_float16

    linear = codes_of(Grid(4, 32, True), 8, 64)
    small = linear._replace(
        step=linear.step * torch.tensor([1.0, 1e-6, 1e-8, 1.0, 1e-5, 1.0, 1.0, 1e-9])[:, None, None]
    )
    found = in_float16(small)
    assert torch.equal(found.step.half().float()[[1, 2, 4, 7]], found.step[[1, 2, 4, 7]])
    moved = (found.dequantize() - small.dequantize()).abs().view(8, 2, 32)
    assert (moved[[1, 2, 4, 7]] <= found.step[[1, 2, 4, 7]] / 2 * (1 + 1e-6)).all()
    assert torch.equal(found.codes[[0, 3, 5, 6]], small.codes[[0, 3, 5, 6]])


def test_ranges_that_begin_beyond_float16_are_refused() -> None:
    """-zero·step is: a range from -65504 to 65504 has a code below both."""
    from quant.checkpoints.formats.gguf import blocks_q4_1

    linear = codes_of(Grid(4, 32, False), 8, 64)
    wide = linear._replace(step=torch.full_like(linear.step, 8736.0), zero=torch.full_like(linear.zero, 8.0))
    with pytest.raises(InputError, match="x: a range begins beyond float16, which GGUF's Q4_1 stores"):
        blocks_q4_1("x", wide)


def test_the_file_itself_is_evaluated(checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the checkpoint of the same weights is, with the file's own size and bits; another checkpoint's is refused."""
    folder = checkpoint(64, 512, **IQ4_NL, tensor_types=[DOWN])
    source, path = tmp_path / "source", tmp_path / "gguf/model.gguf"
    made = export(folder, path.parent, "gguf", "tiny")
    write_json(path.with_name("export.json"), made)
    with tensorfile.opened(folder / "model.safetensors") as file:
        provenance = file.info("provenance")
    summary = {"bits_per_weight": 8.5, "quantize_s": 1.0, "storage": "packed", "storage_reason": "", "no_kernels": "x"}
    left = {"summary": summary | {"quantized_share": 0.9, "parameters": 10**5}, "provenance": provenance}
    write_json(tmp_path / "quantize.json", left)
    tokens.save(tmp_path / "tokens", list(IDS), {})
    given: Any = {"kl_tokens": None, "protocol": "windows", "seq_len": 30}
    common = {"dataset": given, "compute": {"device": "cpu", "dtype": "auto", "batch_tokens": 60}}
    subject = record.Subject("m", "original", "d", str(source / "config.json"), str(tmp_path / "tokens"), **common)
    record.run(subject, record.Original(str(tmp_path / "kept")), str(tmp_path / "original.json"))
    side = record.Quantised(str(tmp_path / "kept"), subject.config, str(tmp_path / "quantize.json"))
    of = dataclasses.replace(subject, method="small", config=str(folder / "config.json"))
    of_file = dataclasses.replace(of, gguf=str(path))
    found = {}
    for name, one in (("packed", of), ("gguf", of_file)):
        record.run(one, side, str(tmp_path / f"{name}.json"))
        found[name] = read_json(tmp_path / f"{name}.json")
    own, packed_as = found["gguf"], found["packed"]
    assert own["kl"] == pytest.approx(packed_as["kl"], rel=1e-3) and own["kl"] > 0.001
    assert own["tensors"] == packed_as["tensors"] and (own["storage"], own["no_kernels"]) == ("gguf", "")
    assert own["size_mb"] == path.stat().st_size / 1e6 and own["size_mb"] < packed_as["size_mb"]
    parts = [own[f"{part}_mb"] for part in ("linears", "embeddings", "head", "other")]
    assert sum(parts) == pytest.approx(own["size_mb"]) and parts[2] == parts[1] == 256 * 64 * 2 / 1e6
    down, rest = 64 * 512, 2 * 64 * 512 + 64 * (64 + 32 + 32 + 64)
    assert own["bits_per_weight"] == pytest.approx((3.4375 * down + 4.5 * rest) / (down + rest))
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"a GGUF file is run whole; use more, or"):
        patch.setattr(record, "too_large", lambda *_: True)
        record.run(of_file, side, str(tmp_path / "large.json"))
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"export\.json.*bytes"):
        record.run(of_file, side, str(tmp_path / "again.json"))


def test_a_gguf_file_without_a_weight_is_refused(checkpoint: Any, tmp_path: Path) -> None:
    """Which transformers draws at random, with no more than a warning."""
    folder = checkpoint(symmetric=True)
    export(folder, tmp_path / "gguf", "gguf", "tiny")
    path = tmp_path / "gguf/model.gguf"
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(InputError, match=r"model\.gguf: cannot be loaded \(transformers finds no .*up_proj"):
        load_model(path, "cpu", torch.float32)
