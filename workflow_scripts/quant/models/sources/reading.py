"""A model from whichever of `sources` it has: config.json as a native architecture's, tensors, and the files beside
them that are kept; nothing in them that names code."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from quant.errors import InputError
from quant.files.artifacts import file_sha256, write_text
from quant.files.given import AGAIN, json_object
from quant.models.sources import dequantised, directory, gguf, hub, quantised
from quant.models.sources.minicpm import granite_config
from quant.records.model import Origin

logger = logging.getLogger("quant")

SIDE_FILES = (  # beside the weights; whatever of these a source has is kept
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "NOTICE",
)
CODE_KEYS = frozenset(  # of config.json: each names code that transformers would fetch and run
    {"auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation", "experts_implementation",
     "_experts_implementation", "kernel_config", "use_kernels"}
)  # fmt: skip
STORED = ("quantization_config", "compression_config")
NATIVE_CONFIGS = {"minicpm": granite_config}  # model_type whose published code we replace by a native architecture


def native_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """config.json as a native architecture's, without the names of its remote code; refuses quantised weights."""
    quantised.check_config(config, where)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise InputError(f'{where}: its config.json has no model_type; add it, e.g. "model_type": "llama"')
    if "transformers_weights" in config:
        raise InputError(
            f"{where}: config.json names its own weight file (transformers_weights); name the file model.safetensors "
            "and remove that key"
        )
    named = sorted(CODE_KEYS & set(config))
    if named:
        logger.info("%s: config.json names code (%s), which is never run; native code does", where, ", ".join(named))
    if kind in NATIVE_CONFIGS:
        config = NATIVE_CONFIGS[kind](config, where)
    # the last: of what the config was, in our own files
    return without_code({key: value for key, value in config.items() if key not in (*STORED, "checksum")})


def without_code(config: Any) -> Any:
    """A config, and those within it, without the keys that name code."""
    if not isinstance(config, dict):
        return config
    return {key: without_code(value) for key, value in config.items() if key not in CODE_KEYS}


def copy_side_files(folder: Path, stage: Path) -> None:
    """Tokenizer, generation settings and licence, without the names of remote code."""
    for name in SIDE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)
    path = stage / "tokenizer_config.json"
    if path.is_file():
        settings = json_object(folder / path.name, AGAIN)
        if settings.pop("auto_map", None) is not None:
            logger.info("%s: names remote code (auto_map), which is never run", folder / path.name)
            write_text(path, json.dumps(settings, indent=2) + "\n")


class Read(NamedTuple):
    """tokenizer: with its settings, of a GGUF file that holds one; where: for messages; origin: for the record."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: tuple[Any, dict[str, Any]] | None
    where: str
    origin: Origin


def read(source: dict[str, Any], stage: Path, resource: Path | None) -> Read:
    """source, resource: as `convert` has them; stage: where a directory's other files go, and what is dequantised."""
    origin: Origin = {}
    if "gguf" in source:
        path = resource if resource is not None else Path(source["gguf"]["path"])
        config, tensors, tokenizer, stored = gguf.read_gguf(path, stage)
        if stored:
            origin["caveat"] = dequantised.caveat(stored, path.stat().st_size)
        origin["sha256"] = file_sha256(path)
        return Read(config, tensors, tokenizer, str(path), origin)
    folder = Path(source.get("directory", ""))
    if "hub" in source:
        folder, origin["commit"] = hub.fetch_hub(source["hub"]["id"], source["hub"]["revision"])
    config, tensors = directory.read_directory(folder)
    where = str(folder)
    if dequantised.format_of(config) is not None:
        size = sum(file.stat().st_size for file in directory.weight_files(folder))
        origin["caveat"] = dequantised.caveat(dequantised.words(config), size, dequantised.rounds_inputs(config))
        native = native_config({k: v for k, v in config.items() if k not in STORED}, where)
        config, tensors = native, dequantised.read(folder, config, native, where, stage)
    else:
        config = native_config(config, where)
        quantised.check_files(folder)
        quantised.check_names(tensors, where)
    copy_side_files(folder, stage)
    return Read(config, tensors, None, where, origin)
