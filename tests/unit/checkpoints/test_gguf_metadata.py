"""What a GGUF export says of its model beside the tensors, and what it refuses to leave out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers import AutoConfig, LlamaConfig, MistralConfig

from quant.checkpoints import gguf_metadata
from quant.checkpoints.gguf_file import Names
from quant.errors import InputError
from quant.models.structure.architectures import ARCHITECTURES
from quant.models.tokenization.gguf import SPACE, from_gguf, sentencepiece
from tests.unit.models.tokenization.vocabularies import BEFORE, PIECES, TEXTS, byte_bpe, slow_spm

SHAPE = {"vocab_size": len(PIECES), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
KINDS = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
SCORES = [0.0 if i < 259 else -float(i) for i in range(len(PIECES))]


def said(folder: Path, **config: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    """What is written of a config.json, by key, and the factors of its rotary frequencies."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE, **config}))
    facts = ARCHITECTURES[config.get("model_type", "llama")].gguf
    assert facts is not None
    writer = gguf.GGUFWriter(folder / "a.gguf", facts.name)
    factors = gguf_metadata.hyperparameters(writer, gguf_metadata.normalised(folder), facts)
    return {key.removeprefix(f"{facts.name}."): value.value for key, value in writer.kv_data[0].items()}, factors


OLD = {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
NEW = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}


@pytest.mark.parametrize("words", [OLD, NEW], ids=["old", "new"])
def test_linear_scaling_in_older_and_in_todays_words(tmp_path: Path, words: dict[str, Any]) -> None:
    found, factors = said(tmp_path, **words)
    assert factors is None and found["rope.freq_base"] == 5000.0
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 4.0)


def test_yarn(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 64}
    found, factors = said(tmp_path, rope_parameters=scaling | {"beta_fast": 32.0, "beta_slow": 1.0})
    assert factors is None and found["rope.freq_base"] == 1e6
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("yarn", 8.0)
    assert found["rope.scaling.original_context_length"] == 64


def test_llama3_factors_are_transformers_frequencies(tmp_path: Path) -> None:
    """And a scaling type is not said, as llama.cpp would scale once more."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found, factors = said(tmp_path, rope_parameters=scaling | {"original_max_position_embeddings": 64})
    assert not any("scaling" in key for key in found) and factors is not None
    config = AutoConfig.from_pretrained(tmp_path)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = [1e4 ** (-2 * i / 16) for i in range(8)]
    np.testing.assert_allclose(np.array(plain) / factors, expected.double().numpy(), rtol=1e-6)
    assert factors[0] == 1 and factors[-1] == 8 and any(1 < factor < 8 for factor in factors)


def test_without_scaling_nothing_is_said_of_it(tmp_path: Path) -> None:
    found, factors = said(tmp_path)
    assert factors is None and not any("scaling" in key for key in found)
    assert (found["rope.dimension_count"], found["attention.key_length"]) == (16, 16)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', and llama.cpp has SiLU"),
        ({"sliding_window": 8}, "sliding_window 8, which this GGUF export has no word for"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' with factor"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8, "original_max_position_embeddings": 64,
                }
            },
            "rope_type 'longrope' with",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64,
                    "beta_fast": 16.0,
                }
            },
            "rope_type 'yarn' with beta_fast",
        ),
    ],
    ids=["activation", "window", "dynamic", "longrope", "yarn with a beta of its own"],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(
    tmp_path: Path, words: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        said(tmp_path, **words)
    assert "export dense" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("window", [None, 512, 4096])
def test_a_window_that_no_text_fills_is_none(tmp_path: Path, window: int | None) -> None:
    found, _ = said(tmp_path, model_type="mistral", sliding_window=window)
    assert found["context_length"] == 512


def test_a_mistral_with_a_window_is_refused(tmp_path: Path) -> None:
    config = MistralConfig(**SHAPE, sliding_window=8).to_dict()
    with pytest.raises(InputError, match="sliding_window 8"):
        said(tmp_path, **config)


GEMMA3 = {"model_type": "gemma3_text", "head_dim": 256, "sliding_window": 16, "num_hidden_layers": 7}


def test_gemma3_has_a_window_and_global_positions(tmp_path: Path) -> None:
    """In config.json's older words, as it is published."""
    found, _ = said(tmp_path, **GEMMA3, rope_theta=1e6, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (found["attention.sliding_window"], found["rope.freq_base"]) == (16, 1e6)
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 8.0)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation 'gelu', and llama.cpp has GELU by tanh"),
        (
            {"layer_types": ["full_attention"] * 7},
            r"layer_types \['full_attention', .* and llama.cpp has \['sliding_att",
        ),
        ({"query_pre_attn_scalar": 128}, "query_pre_attn_scalar 128, and llama.cpp has 256"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0, and llama.cpp has None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True, and llama.cpp has False"),
        ({"rope_local_base_freq": 2e4}, "for the layers with a window"),
    ],
)
def test_a_gemma3_that_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, words: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        said(tmp_path, **GEMMA3 | words)
    assert "export dense" in str(caught.value) and "\n" not in str(caught.value)


# in config.json's words, as it is published
QWEN3_MOE = {"model_type": "qwen3_moe", "head_dim": 32, "num_experts": 12, "num_experts_per_tok": 3,
             "moe_intermediate_size": 48, "norm_topk_prob": True}  # fmt: skip


def test_a_mixture_says_how_many_experts_it_has_and_how_wide(tmp_path: Path) -> None:
    found, _ = said(tmp_path, **QWEN3_MOE)
    assert (found["expert_count"], found["expert_used_count"], found["expert_feed_forward_length"]) == (12, 3, 48)
    assert found["attention.key_length"] == 32


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (QWEN3_MOE | {"norm_topk_prob": False}, "norm_topk_prob False, and llama.cpp has True"),
        (QWEN3_MOE | {"mlp_only_layers": [1]}, r"mlp_only_layers \[1\], and llama.cpp has \[\]"),
        (QWEN3_MOE | {"decoder_sparse_step": 2}, "decoder_sparse_step 2, and llama.cpp has 1"),
        (QWEN3_MOE | {"attention_bias": True}, "attention_bias True, and llama.cpp has False"),
        (
            QWEN3_MOE | {"use_sliding_window": True, "sliding_window": 16},
            "sliding_window 16, which this GGUF export has no",
        ),
        ({"model_type": "phi3", "sliding_window": 16}, "sliding_window 16, which this GGUF export has no word for"),
        ({"model_type": "phi3", "head_dim": 32}, "head_dim 32, and llama.cpp has None"),
        (
            {
                "model_type": "phi3", "original_max_position_embeddings": 64,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            },
            "rope_type 'longrope' with",
        ),
    ],
)  # fmt: skip
def test_a_mixture_or_phi3_that_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, words: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match) as caught:
        said(tmp_path, **words)
    assert "export dense" in str(caught.value) and "\n" not in str(caught.value)


def test_phi3_may_turn_some_channels_of_a_head(tmp_path: Path) -> None:
    found, _ = said(tmp_path, model_type="phi3", rope_theta=2e4, partial_rotary_factor=0.5)
    assert (found["rope.dimension_count"], found["attention.key_length"], found["rope.freq_base"]) == (8, 16, 2e4)


def test_architectures_without_facts_are_refused() -> None:
    with pytest.raises(InputError, match="not known for model_type 'gemma2'"):
        Names({"model_type": "gemma2"})


# ---- tokenizers


def written(
    folder: Path, tokenizer: Tokenizer, settings: dict[str, Any] | None = None, size: int = len(PIECES)
) -> tuple[Any, dict[str, Any]]:
    """A tokenizer's fields in a GGUF file, and them by name."""
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | (settings or {}))
    )
    LlamaConfig(**SHAPE).save_pretrained(folder)
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    gguf_metadata.tokenizer(writer, SHAPE | {"vocab_size": size}, folder)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(folder / "a.gguf")
    return reader, {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}


def spm(prefix: bool, change: Callable[[Tokenizer], object] = lambda tokenizer: None) -> Tokenizer:
    tokenizer = sentencepiece(PIECES, KINDS, SCORES, "<unk>", prefix, "t")
    change(tokenizer)
    return tokenizer


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_a_sentencepiece_tokenizer_keeps_its_ids(tmp_path: Path, prefix: bool, bos: bool) -> None:
    template = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = spm(prefix, lambda made: setattr(made, "post_processor", template) if bos else None)
    reader, found = written(tmp_path, tokenizer, {"chat_template": "{{ messages }}"})
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("llama", "default")
    assert found["tokenizer.ggml.add_space_prefix"] is prefix and found["tokenizer.ggml.add_bos_token"] is bos
    assert found["tokenizer.ggml.token_type"] == KINDS and found["tokenizer.ggml.tokens"] == PIECES
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    again, _ = from_gguf(reader, "t")
    ids = {piece: i for i, piece in enumerate(PIECES)}
    written_scores = found["tokenizer.ggml.scores"]
    for text in [*TEXTS, "the  theathe and    in 1010", "thethethe", " " * 7]:
        expected = tokenizer.encode(text).ids
        assert again.encode(text).ids == expected
        assert expected == [1] * bos + slow_spm(text, ids, written_scores, prefix), text


def test_merges_of_runs_may_come_by_turns(tmp_path: Path) -> None:
    """Those of line ends and those of spaces, as Gemma 3's do; and its special token without a vector has no place."""
    runs = [character * n for n in (4, 3, 2, 1) for character in ("\n", SPACE)]
    pieces = [*runs, *(piece for piece in PIECES[3:] if piece not in runs)]
    tokens = [*PIECES[:3], *pieces]
    kinds = [KINDS[PIECES.index(piece)] if piece in PIECES else 1 for piece in tokens]
    tokenizer = sentencepiece(tokens, kinds, [-float(i) for i in range(len(tokens))], "<unk>", False, "t")
    made = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in made["merges"]]
    turns = [[merge for merge in merges if set("".join(merge)) == {character}] for character in ("\n", SPACE)]
    by_turns = [merge for pair in zip(*turns, strict=True) for merge in pair]
    merges = by_turns + [merge for merge in merges if merge not in by_turns]
    assert ["".join(merge) for merge in merges[:4]] == ["\n" * 4, SPACE * 4] * 2 and len(by_turns) == 12
    tokenizer.model = models.BPE(
        vocab=made["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer.add_special_tokens(["<image>"])
    reader, found = written(tmp_path, tokenizer, size=len(tokens))
    assert found["tokenizer.ggml.tokens"] == tokens
    again, _ = from_gguf(reader, "t")
    for text in [*TEXTS, *(mark * n + "the" for mark in ("\n", " ", "\n ") for n in range(12))]:
        assert again.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids, text


def no_order(tokenizer: Tokenizer) -> None:
    """A merge that no score gives: of one piece between those of another."""
    made = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in made["merges"]]
    joined = ["".join(merge) for merge in merges]
    twice = next(piece for piece in joined if joined.count(piece) > 1)
    merges.append(merges.pop(joined.index(twice)))
    tokenizer.model = models.BPE(
        vocab=made["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def fewer(tokenizer: Tokenizer) -> None:
    made = json.loads(tokenizer.to_str())["model"]
    tokenizer.model = models.BPE(
        vocab=made["vocab"],
        merges=[tuple(merge) for merge in made["merges"][:-1]],
        unk_token="<unk>",
        byte_fallback=True,
    )


def folded(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", SPACE)])


@pytest.mark.parametrize("change", [no_order, fewer, folded])
def test_a_tokenizer_that_no_scores_give_is_refused(tmp_path: Path, change: Callable[[Tokenizer], object]) -> None:
    with pytest.raises(InputError, match="none that this GGUF export writes") as caught:
        written(tmp_path, spm(False, change))
    assert "\n" not in str(caught.value)


def test_a_byte_level_tokenizer_names_the_rule_of_its_words(tmp_path: Path) -> None:
    _, found = written(tmp_path, byte_bpe(BEFORE["digits"]))
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert found["tokenizer.ggml.add_bos_token"] is True
    with pytest.raises(InputError, match="BPE tokenizer with Split and ByteLevel is none"):
        written(tmp_path, byte_bpe(BEFORE["lines"]))


def test_what_is_put_around_a_text_besides_bos_and_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_bpe(BEFORE["bytes"], special=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> <s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    with pytest.raises(InputError, match="around a text, and GGUF has a word for BOS"):
        written(tmp_path, tokenizer)


def phi3(**flags: bool) -> Tokenizer:
    """Whose special tokens take the spaces behind them, but for three."""
    tokenizer = spm(True)
    others = [AddedToken(text, special=True, **flags) for text in ("</s>", "<|user|>", "<|end|>")]
    tokenizer.add_special_tokens(["<unk>", "<s>", "<|endoftext|>", *others])
    return tokenizer


def test_a_file_is_called_after_phi3_where_special_tokens_take_spaces(tmp_path: Path) -> None:
    """As llama.cpp knows it; no other model's may have that in its name."""
    size = len(PIECES) + 3
    reader, _ = written(tmp_path / "phi3-mini/checkpoint", phi3(rstrip=True), size=size)
    assert reader.fields["general.name"].contents() == "Phi-3 phi 3-mini"
    reader, _ = written(tmp_path / "of Phi-3/checkpoint", phi3(), size=size)
    assert reader.fields["general.name"].contents() == "of phi 3"
    for flags in ({"rstrip": True, "lstrip": True}, {"lstrip": True}):
        with pytest.raises(InputError, match=r"its token '<(/s|\|user\|)>' takes spaces beside it") as caught:
            written(tmp_path / "c", phi3(**flags), size=size)
        assert "\n" not in str(caught.value)
    other = byte_bpe(BEFORE["digits"])
    other.add_special_tokens([AddedToken("<|end|>", special=True, rstrip=True)])
    with pytest.raises(InputError, match=r"its token '<\|end\|>' takes spaces beside it, for which GGUF has no word"):
        written(tmp_path / "d", other, size=size)
