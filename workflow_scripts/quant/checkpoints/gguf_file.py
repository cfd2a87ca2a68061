"""GGUF files for llama.cpp, by the `gguf` package: names, hyperparameters and tokenizer of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.errors import InputError
from quant.files.artifacts import read_json, whole
from quant.models.architectures import architecture_of, value_heads

# llama.cpp's name of a pre-tokenizer, by the types of tokenizer.json's, in order
PRETOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
}
PIECES = {"normal": 1, "control": 3, "user_defined": 4, "unused": 5}  # tokenizer.ggml.token_type


class Names:
    """GGUF's names and order of rows for the tensors of an architecture."""

    def __init__(self, config: dict[str, Any]) -> None:
        import gguf

        facts = architecture_of(config, "a GGUF export").gguf
        if facts is None:
            raise InputError(f"GGUF exports are not known for model_type {config['model_type']!r}; export dense or awq")
        self.facts, self._config = facts, config
        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == facts.name)
        self._map = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])

    def of(self, tensor: str) -> str:
        name = self._map.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(f"{tensor}: GGUF has no name for it; export dense")
        return name

    def rows(self, linear: str, n_rows: int) -> Tensor:
        """Where each row of GGUF's tensor comes from: llama.cpp turns neighbouring channels of a head's q and k."""
        heads, key_value, size = value_heads(self._config)
        count = {"q_proj": heads, "k_proj": key_value}.get(linear.rpartition(".")[2])
        order = torch.arange(n_rows)
        if count is None or not self.facts.neighbours:
            return order
        return order.view(count, 2, size // 2).transpose(1, 2).flatten()


def plain(value: Tensor) -> tuple[np.ndarray, str]:
    """A tensor that is not quantised, and its type: vectors in float32, matrices in the type that they have."""
    if value.ndim == 1 or value.dtype == torch.float32:
        return value.float().numpy(), "F32"
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint8).numpy(), "BF16"
    return value.half().numpy(), "F16"


def hyperparameters(writer: Any, config: dict[str, Any], facts: Any) -> None:
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type {rope['rope_type']!r}: this GGUF export writes the default kind; export dense")
    heads, key_value, size = value_heads(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for ours, theirs in facts.multipliers:
        writer.add_float32(f"{facts.name}.{theirs}", float(config[ours]))


def tokenizer(writer: Any, config: dict[str, Any], checkpoint: Path) -> None:
    """A byte-level BPE tokenizer out of tokenizer.json; others are refused."""
    path = checkpoint / "tokenizer.json"
    made = read_json(path)
    model, before = made["model"], made.get("pre_tokenizer") or {}
    kinds = tuple(part["type"] for part in before.get("pretokenizers", [before]) if part)
    if model["type"] != "BPE" or kinds not in PRETOKENIZERS:
        raise InputError(
            f"{path}: a {model['type']} tokenizer with {' and '.join(kinds) or 'no pre-tokenizer'} is none that this "
            "GGUF export writes (byte-level BPE); export dense and convert with llama.cpp's own script"
        )
    pieces = {index: (text, PIECES["normal"]) for text, index in model["vocab"].items()}
    for added in made.get("added_tokens", []):
        pieces[added["id"]] = added["content"], PIECES["control" if added["special"] else "user_defined"]
    listed = [pieces.get(i, (f"[PAD{i}]", PIECES["unused"])) for i in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRETOKENIZERS[kinds])
    writer.add_token_list([text for text, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    merges = model["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""])
    for key, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
        ("unk_token_id", writer.add_unk_token_id),
    ):
        index = config.get(key)
        index = index[0] if isinstance(index, list) else index
        if index is not None:
            add(index)
    settings = checkpoint / "tokenizer_config.json"
    writer.add_add_bos_token(bool(settings.is_file() and read_json(settings).get("add_bos_token", False)))
    template = checkpoint / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def write(
    path: Path,
    config: dict[str, Any],
    checkpoint: Path,
    tensors: Iterator[tuple[str, np.ndarray, str]],
    kind: str,
) -> None:
    """tensors: name, numbers or rows of block bytes, and type; kind: that of the linears."""
    import gguf

    facts = architecture_of(config, "a GGUF export").gguf
    assert facts is not None  # the names of the tensors were refused before
    types = gguf.GGMLQuantizationType
    with whole(path) as temporary:
        writer = gguf.GGUFWriter(temporary, facts.name)
        writer.add_name(checkpoint.parent.name)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        hyperparameters(writer, config, facts)
        tokenizer(writer, config, checkpoint)
        for name, value, stored_as in tensors:
            raw = None if stored_as in ("F32", "F16") else types[stored_as]
            writer.add_tensor(name, np.ascontiguousarray(value), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


class Weights:
    """A GGUF file's weights by the package's own reader."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def get(self, name: str) -> Tensor:
        """[out, in], float32."""
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
