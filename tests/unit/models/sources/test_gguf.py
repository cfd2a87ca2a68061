"""GGUF files as sources: the same logits; what is damaged or missing is refused."""

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from quant.errors import InputError
from quant.files.spool import Spool
from quant.models.sources.peek import peek
from quant.workflow.estimates.shape import Shape, shape_in
from tests import tiny
from tests.unit.model_files import build, edit_config, edit_tensors, logits, refusal, run
from tests.unit.models.gguf_files import write_gguf


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
    assert Shape.of(peek({"gguf": {"path": str(path)}}, [])) == shape_in(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {dtype} and ("lm_head.weight" in tensors) is not tied
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.get_vocab()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer("abc").input_ids[-2:] == [254, ids["c"]]
    assert record["sha256"] and len(record["linears"]) == 14


def test_a_gguf_is_never_in_memory_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor is gone when the next but one is made; what convert reads is mapped from a file, which goes."""
    source = build(tmp_path / "model", num_hidden_layers=6)
    path = write_gguf(source, tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.F16)
    kept, alive, put = [], [], Spool.keep

    def keep(spool: Spool, value: Tensor) -> Tensor:
        kept.append(weakref.ref(value.untyped_storage()))
        alive.append(sum(each() is not None for each in kept))
        return put(spool, value)

    monkeypatch.setattr(Spool, "keep", keep)
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    assert len(kept) == 2 * (9 * 6 + 3) and max(alive[:57]) <= 2  # once more as parameters, from the file
    torch.testing.assert_close(logits(checkpoint, torch.float32), logits(source), rtol=0, atol=1e-2)


def test_experts_are_as_wide_as_the_file_says(tmp_path: Path) -> None:
    """transformers' reader leaves Qwen2-MoE's default width of an expert."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    shape = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    wide = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    source = tmp_path / "model"
    Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, **wide, **heads, num_experts_per_tok=2)).save_pretrained(source)

    def extra(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(24)
        writer.add_expert_shared_feed_forward_length(40)
        writer.add_tokenizer_pre("qwen2")

    path = write_gguf(source, tmp_path / "a.gguf", extra=extra, architecture="qwen2moe")
    checkpoint, record = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    torch.testing.assert_close(logits(checkpoint), logits(source), rtol=0, atol=1e-6)
    assert len(record["linears"]) == 2 * (4 + 3 + 3 * 4)


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
    path = write_gguf(base, tmp_path / "c.gguf", extra=lambda writer: writer.add_uint16("split.count", 3))
    assert "is one of 3 parts; merge them first" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")
    path = write_gguf(base, tmp_path / "d.gguf", extra=lambda writer: writer.add_type("adapter"))
    assert "is of type 'adapter', no model" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")


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


def with_biases(folder: Path, **changes: Any) -> Path:
    """A Llama whose biases are random, and large beside its weights."""
    source = build(folder, **changes)

    def fill(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(2)
        for name in tensors:
            if name.endswith(".bias"):
                tensors[name] = torch.randn(tensors[name].shape, generator=generator)

    edit_tensors(source, fill)
    return source


@pytest.mark.parametrize(
    "words", [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}]
)
def test_biases_of_a_gguf_are_the_models(tmp_path: Path, words: dict[str, Any]) -> None:
    source = with_biases(tmp_path / "model", **words)
    path = write_gguf(source, tmp_path / "tiny.gguf")
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    torch.testing.assert_close(logits(checkpoint), logits(source), rtol=0, atol=1e-5)
    assert {key: tiny.read(checkpoint / "config.json")[key] for key in words} == words


def test_biases_that_a_gguf_need_not_have_are_zeros(tmp_path: Path) -> None:
    """A Llama out of a Qwen: q, k and v have biases, the output none."""
    source = with_biases(tmp_path / "model", attention_bias=True)
    path = write_gguf(source, tmp_path / "tiny.gguf", leave_out="attn_output.bias")
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")

    def clear(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("o_proj.bias"):
                tensors[name].zero_()

    edit_tensors(source, clear)
    torch.testing.assert_close(logits(checkpoint), logits(source), rtol=0, atol=1e-5)


def test_heads_that_are_wider_than_their_share_of_the_hidden_size(tmp_path: Path) -> None:
    """transformers' reader passes over key_length of a Qwen3, and takes 128."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = {"vocab_size": 256, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
    torch.manual_seed(0)
    source = tmp_path / "model"
    Qwen3ForCausalLM(Qwen3Config(**shape, **heads, max_position_embeddings=128)).save_pretrained(source)

    def sizes(writer: gguf.GGUFWriter) -> None:
        writer.add_key_length(24)
        writer.add_value_length(24)

    path = write_gguf(source, tmp_path / "tiny.gguf", extra=sizes, architecture="qwen3")
    assert "rope.dimension_count is 12" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")

    def right(writer: gguf.GGUFWriter) -> None:
        sizes(writer)
        writer.kv_data[0].pop("qwen3.rope.dimension_count")

    path = write_gguf(source, tmp_path / "b.gguf", extra=right, architecture="qwen3")
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "results")
    torch.testing.assert_close(logits(checkpoint), logits(source), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "neutral", "other"),
    [
        ("logit_scale", 1.0, 0.0625),
        ("residual_scale", 1.0, 0.5),
        ("attention.clamp_kqv", 0.0, 8.0),
        ("attention.scale", 0.0, 0.25),
        ("final_logit_softcapping", 0.0, 30.0),
        ("rope.scaling.factor", 1.0, 4.0),
        ("rope.scale_linear", 1.0, 4.0),
        ("attention.value_length", 12, 16),
        ("rope.dimension_count", 12, 6),
        ("never.heard_of", 0, 3),
    ],
)
def test_what_a_gguf_says_and_its_model_lacks_is_refused_by_name(
    base: Path, tmp_path: Path, key: str, neutral: float, other: float
) -> None:
    def put(value: float) -> Callable[[gguf.GGUFWriter], object]:
        def extra(writer: gguf.GGUFWriter) -> None:
            writer.kv_data[0].pop(f"llama.{key}", None)
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{key}", value)
            writer.kv_data[0].pop("llama.attention.key_length", None)
            writer.add_key_length(12)

        return extra

    path = write_gguf(base, tmp_path / "a.gguf", extra=put(neutral))
    checkpoint, _ = run({"gguf": {"path": str(path)}}, tmp_path / "whole")
    torch.testing.assert_close(logits(checkpoint), logits(base), rtol=0, atol=1e-5)
    path = write_gguf(base, tmp_path / "b.gguf", extra=put(other))
    assert f"its {key} is {other}" in refusal({"gguf": {"path": str(path)}}, tmp_path / "results")
