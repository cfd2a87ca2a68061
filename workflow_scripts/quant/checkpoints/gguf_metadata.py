"""What a GGUF file says beside its tensors: hyperparameters as transformers reads config.json, and the tokenizer.

What the format, or llama.cpp for this architecture, has no word for is refused: left out, it would be another model.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from quant.checkpoints import gguf_sentencepiece
from quant.errors import InputError
from quant.files.artifacts import read_json
from quant.models.structure.architectures import Gguf, value_heads
from quant.models.tokenization.gguf_pretokenizers import RULES, pre_tokenizer
from quant.models.tokenization.tokenizers import PROBE, from_file

PIECES = {"normal": 1, "control": 3, "user_defined": 4, "unused": 5}  # tokenizer.ggml.token_type
NAMES = {"silu": "SiLU", "gelu_pytorch_tanh": "GELU by tanh"}
LOCAL_THETA = 1e4  # Gemma 3's of layers with a window
LARGEST_GEMMA3 = 62  # layers of the 27B, by which llama.cpp knows that its attention is scaled otherwise
BARE = ("<unk>", "<s>", "<|endoftext|>")  # special tokens of Phi-3 that leave the spaces behind them
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}  # those of llama.cpp too


def normalised(checkpoint: Path) -> dict[str, Any]:
    """config.json as transformers reads it: older words for rotary positions and windows in today's."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).to_dict()


def check(config: dict[str, Any], facts: Gguf) -> None:
    """Refuses what llama.cpp computes otherwise for these architectures."""
    window, positions = config.get("sliding_window"), config["max_position_embeddings"]
    if window is not None and window < positions and not facts.period:
        raise InputError(
            f"config.json has sliding_window {window}, which this GGUF export has no word for; export dense, or set it "
            "to null if the model attends to everything"
        )
    key, *known = facts.activation
    if config.get(key, known[0]) not in known:
        raise InputError(f"config.json has {key} {config[key]!r}, and llama.cpp has {NAMES[known[0]]}; export dense")
    fixed = dict(facts.fixed)
    if facts.period:
        layers = range(1, config["num_hidden_layers"] + 1)
        fixed["layer_types"] = [f"{'sliding' if i % facts.period else 'full'}_attention" for i in layers]
        local = {"rope_type": "default", "rope_theta": LOCAL_THETA}
        if config["rope_parameters"]["sliding_attention"] != local:
            raise InputError(f"config.json has not {local} for the layers with a window, as llama.cpp; export dense")
        heads, _, size = value_heads(config)
        own = config["hidden_size"] // heads if config["num_hidden_layers"] == LARGEST_GEMMA3 else size
        fixed["query_pre_attn_scalar"] = own
    for key, value in fixed.items():
        if config.get(key) != value:
            raise InputError(f"config.json has {key} {config.get(key)!r}, and llama.cpp has {value!r}; export dense")


def rope(writer: Any, config: dict[str, Any], size: int) -> np.ndarray | None:
    """Rotary positions; the factors of a llama3 scaling, which are a tensor [size/2] (rope_freqs.weight)."""
    import gguf

    given = dict(config["rope_parameters"].get("full_attention", config["rope_parameters"]))
    kind, theta = given.pop("rope_type", "default"), float(given.pop("rope_theta"))
    given.pop("type", None)  # the older word for rope_type
    given = {key: value for key, value in given.items() if value is not None and YARN_DEFAULTS.get(key) != value}
    turned = given.pop("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(size * turned))
    writer.add_rope_freq_base(theta)
    known = {
        "default": set(),
        "linear": {"factor"},
        "yarn": {"factor", "original_max_position_embeddings"},
        "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    }
    if kind not in known or set(given) != known[kind]:
        raise InputError(
            f"config.json has rope_type {kind!r} with {', '.join(sorted(given)) or 'nothing'}, which this GGUF export "
            f"has no words for (it has {', '.join(known)}); export dense"
        )
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(float(given["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(given["original_max_position_embeddings"]))
    return llama3_factors(theta, size, **given) if kind == "llama3" else None


def llama3_factors(
    theta: float,
    size: int,
    factor: float,
    original_max_position_embeddings: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> np.ndarray:
    """By how much each frequency is divided [size/2], float32 (transformers' _compute_llama3_parameters)."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    turns = original_max_position_embeddings / wavelength
    smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(turns < low_freq_factor, factor, np.where(turns > high_freq_factor, 1.0, between)).astype("float32")


def hyperparameters(writer: Any, config: dict[str, Any], facts: Gguf) -> np.ndarray | None:
    """Everything but tensors and tokenizer; config as `normalised` gives it. Returns what `rope` does."""
    check(config, facts)
    heads, key_value, size = value_heads(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if facts.period:
        writer.add_sliding_window(config["sliding_window"])
    for ours, theirs in facts.counts:
        writer.add_uint32(f"{facts.name}.{theirs}", config[ours])
    for ours, theirs in facts.multipliers:
        writer.add_float32(f"{facts.name}.{theirs}", float(config[ours]))
    return rope(writer, config, size)


def pre_name(tokenizer: Any, whole: bool) -> str | None:
    """llama.cpp's name of the rule that splits the probe text as a tokenizer's pre-tokenizer does."""
    if tokenizer.pre_tokenizer is None:
        return None
    expected = tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)
    for name, rule in RULES.items():
        if rule.whole == whole and pre_tokenizer(rule).pre_tokenize_str(PROBE) == expected:
            return name
    return None


def around(tokenizer: Any, path: Path, ids: dict[str, int]) -> dict[str, bool]:
    """Whether BOS is put before a text and EOS behind; refuses any other special token there."""
    found, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    marks = [mark == 1 for mark in found.special_tokens_mask]
    first = marks.index(False) if bare.ids else 0
    before, behind = found.ids[:first], found.ids[first + len(bare.ids) :]
    for what, put in (("bos", before), ("eos", behind)):
        if put not in ([], [ids.get(what)]):
            raise InputError(
                f"{path}: puts tokens {put} around a text, and GGUF has a word for {what.upper()} ({ids.get(what)}) "
                "alone; export dense"
            )
    return {"bos": bool(before), "eos": bool(behind)}


def takes_spaces(path: Path, added: list[dict[str, Any]]) -> bool:
    """Whether tokens take the spaces behind them as Phi-3's do; refuses those that take others. added: tokenizer.json's
    added_tokens."""
    behind = {token["content"] for token in added if token["rstrip"]}
    every = {token["content"] for token in added}
    token = next((token["content"] for token in added if token["lstrip"] or token["rstrip"]), None)
    if token is None:
        return False
    if any(token["lstrip"] for token in added) or behind != every - {*BARE} or not {*BARE, "</s>"} <= every:
        raise InputError(
            f"{path}: its token {token!r} takes spaces beside it, for which GGUF has no word; export dense"
        )
    return True


def name(writer: Any, given: str, spaces: bool) -> None:
    """What the file calls its model, by which llama.cpp knows whether special tokens take spaces (`takes_spaces`)."""
    other = re.sub("phi-?3", "phi 3", given, flags=re.IGNORECASE)
    writer.add_name(f"Phi-3 {other}" if spaces else other)


def tokenizer(writer: Any, config: dict[str, Any], checkpoint: Path) -> None:
    """A tokenizer out of tokenizer.json: byte-level BPE, or SentencePiece's; others are refused. Special tokens and the
    chat template as the gguf package finds them. And the model's name."""
    import gguf

    path = checkpoint / "tokenizer.json"
    made = read_json(path)
    own, model, before = from_file(path), made["model"], made.get("normalizer") or {"type": "NFC"}
    pieces = (
        {index: (text, PIECES["normal"]) for text, index in model["vocab"].items()} if model["type"] == "BPE" else {}
    )
    known = [
        added
        for added in made.get("added_tokens", [])
        # no text has the others: that of images in Gemma 3's, of which the model has no vector
        if not added["special"] or added["id"] < config["vocab_size"]
    ]
    for added in known:
        pieces[added["id"]] = added["content"], PIECES["control" if added["special"] else "user_defined"]
    if max(pieces, default=0) >= config["vocab_size"]:
        raise InputError(
            f"{path}: has an id {max(pieces)}, and config.json a vocab_size of {config['vocab_size']}; give the "
            "tokenizer that belongs to this model"
        )
    name(writer, checkpoint.parent.name, takes_spaces(path, known))
    listed = [pieces.get(i, (f"[PAD{i}]", PIECES["unused"])) for i in range(config["vocab_size"])]
    rule = spm = None
    if model["type"] == "BPE" and model.get("byte_fallback"):
        spm = gguf_sentencepiece.by_scores(own, model, listed, str(path))
    elif model["type"] == "BPE" and before["type"] == "NFC":  # llama.cpp leaves NFC out
        rule = pre_name(own, bool(model.get("ignore_merges")))
    if rule is None and spm is None:
        parts = made.get("pre_tokenizer") or {}
        kinds = [part["type"] for part in parts.get("pretokenizers", [parts]) if part]
        raise InputError(
            f"{path}: a {model['type']} tokenizer with {' and '.join(kinds) or 'no pre-tokenizer'} is none that this "
            "GGUF export writes (byte-level BPE that llama.cpp has a rule for, or SentencePiece's BPE); export dense "
            "and convert with llama.cpp's own script"
        )
    writer.add_tokenizer_model("gpt2" if spm is None else "llama")
    writer.add_tokenizer_pre(rule or "default")
    writer.add_token_list([text for text, _ in listed])
    if spm is None:
        writer.add_token_types([kind for _, kind in listed])
        merges = model["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""])
    else:
        writer.add_token_types(spm.kinds)
        writer.add_token_scores(spm.scores)
        writer.add_add_space_prefix(spm.prefix)
    special = gguf.SpecialVocab(checkpoint, n_vocab=config["vocab_size"])
    special.add_special_token |= around(own, path, special.special_token_ids)
    special.add_to_gguf(writer, quiet=True)
