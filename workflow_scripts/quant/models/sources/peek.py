"""How large a model is before it is converted: what its config.json says, or would say."""

import tempfile
from pathlib import Path
from typing import Any

from quant.errors import InputError, one_line
from quant.files.given import json_object
from quant.models.sources.gguf import open_gguf, wheel_member

# by a configuration's key, what llama.cpp calls it
GGUF = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


def of_gguf(path: Path) -> dict[str, Any]:
    """Of a GGUF file's header."""
    reader, dtype = open_gguf(path)
    fields = reader.fields
    kind = str(fields["general.architecture"].contents())
    found = {key: fields[name].contents() for key, own in GGUF.items() if (name := f"{kind}.{own}") in fields}
    found = {key: max(value) if isinstance(value, list) else int(value) for key, value in found.items()}
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    tokens = fields.get("tokenizer.ggml.tokens")
    vocabulary = len(tokens.data) if tokens is not None else int(fields[f"{kind}.vocab_size"].contents())
    found |= {"model_type": kind, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    return found | {"dtype": str(dtype).removeprefix("torch.")}


def of_hub(identifier: str, revision: str) -> dict[str, Any]:
    """config.json alone, of a hub's model."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(identifier, "config.json", revision=revision))
    except Exception as error:  # the client lets its transport's exceptions through, whatever that is
        raise InputError(
            f"{identifier}: its config.json cannot be had ({one_line(error)}), so that nothing is known of its size; "
            "try again where the hub can be reached"
        ) from None
    return json_object(path, "is no config.json")


def peek(source: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """A configuration's `source:`; files: what its conversion reads."""
    if "hub" in source:
        return of_hub(source["hub"]["id"], source["hub"]["revision"])
    if "directory" in source:
        path = Path(source["directory"]) / "config.json"
        return json_object(path, "is missing; give the path of a model directory")
    if "package" in source["gguf"]:
        with tempfile.TemporaryDirectory() as folder:
            return of_gguf(wheel_member(Path(files[0]), source["gguf"]["member"], Path(folder)))
    return of_gguf(Path(source["gguf"]["path"]))
