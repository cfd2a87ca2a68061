"""Any source of a causal LM → one directory with config.json, model.safetensors and a tokenizer.

No remote code and no pickle is ever run: a .bin is read with torch.load(weights_only=True), and architectures that
publish their own code are mapped to native ones where the equations are the same (MiniCPM → Granite).
"""

import json
import logging
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quant import tensorfile
from quant.artifacts import digest, file_sha256, versions, write_json, write_text
from quant.blocks import all_linears
from quant.errors import InputError

logger = logging.getLogger("quant")

SIDE_FILES = (  # beside the weights; whatever of these a source has is kept
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


def granite_config(minicpm: dict[str, Any]) -> dict[str, Any]:
    """MiniCPM-1/2B's config as Granite's: the same equations, four multipliers by other names (DESIGN, contracts)."""
    heads, width, depth = minicpm["num_attention_heads"], minicpm["hidden_size"], minicpm["num_hidden_layers"]
    kept = (
        "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
        "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
        "rope_scaling", "rope_theta", "torch_dtype", "vocab_size",
    )  # fmt: skip
    return {key: minicpm[key] for key in kept if key in minicpm} | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "embedding_multiplier": float(minicpm.get("scale_emb", 1)),
        "residual_multiplier": minicpm.get("scale_depth", math.sqrt(depth)) / math.sqrt(depth),
        "logits_scaling": width / minicpm.get("dim_model_base", width),
        "attention_multiplier": 1 / math.sqrt(width // heads),
        "tie_word_embeddings": minicpm.get("tie_word_embeddings", True),
    }


NATIVE_CONFIGS = {"minicpm": granite_config}  # model_type whose published code we replace by a native architecture


def read_bin(path: Path) -> dict[str, Tensor]:
    """A .bin checkpoint by torch.load(weights_only=True): nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            first = "it holds objects other than tensors, which are never loaded"
        raise InputError(
            f"{path}: is not a readable weights-only checkpoint ({first}); use safetensors or a clean .bin"
        ) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a whole safetensors file ({error}); copy or download it again") from None


def weight_files(folder: Path) -> list[Path]:
    """A directory's weight files: safetensors before .bin, an index before a single file."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.exists():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError):
                raise InputError(f"{index}: is not a weight index; copy or download it again") from None
            for name in names:
                if Path(name).name != name or not (folder / name).is_file():
                    raise InputError(f"{folder / name}: named by {index.name} but not there; copy or download it again")
            return [folder / name for name in names]
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
    raise InputError(
        f"{folder}: holds no model.safetensors and no pytorch_model.bin (nor their indices); name a model directory"
    )


def read_directory(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and every tensor of a Hugging Face checkpoint directory."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give the path of a model directory")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder / 'config.json'}: cannot be read ({type(error).__name__}); name a model directory"
        ) from None
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= read_safetensors(file) if file.suffix == ".safetensors" else read_bin(file)
    return config, tensors


def read_gguf(path: Path, target: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A GGUF file, dequantised by transformers' reader; its tokenizer goes to `target`. Weights become float16,
    which keeps dequantised values that bfloat16 would round."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a GGUF file")
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise InputError(f"{path}: is not a whole GGUF file ({error}); copy or download it again") from None
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float16)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # it says how the GGUF was stored, which no longer holds
    config.pop("_name_or_path", None)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "float16"
    return config, {name: value.half() for name, value in model.state_dict().items()}


def fetch_hub(identifier: str, revision: str) -> tuple[Path, str]:
    """Downloads a hub model's configuration, weights and tokenizer; returns the folder and the commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    instead = "give a local directory (source: {directory: PATH}) or a GGUF file (source: {gguf: PATH}) instead"
    try:
        names = HfApi().list_repo_files(identifier, revision=revision)
        safe = any(name.endswith(".safetensors") for name in names)
        patterns = ["*.json", "tokenizer*", "*.txt", "*.jinja", "LICENSE*", "*.safetensors" if safe else "*.bin"]
        folder = Path(snapshot_download(identifier, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise InputError(f"{identifier}: the hub has no revision {revision}; give a commit hash that exists") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{identifier}: the hub has no such model, or it is private; correct the id, or {instead}"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"{identifier}: the hub cannot be reached ({type(error).__name__}); {instead}") from None
    except Exception as error:  # the hub's client raises its transport's own exceptions, whatever that is
        if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "urllib3"):
            raise InputError(f"{identifier}: the hub cannot be reached ({type(error).__name__}); {instead}") from None
        raise
    return folder, folder.name


def check_model(
    config: dict[str, Any], tensors: dict[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Holds the tensors against the architecture that config.json names; returns those it has, and its linears.

    Refuses remote code, quantised sources, missing or misshapen tensors, and NaN or infinite values.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise InputError(f"{where}: its weights are quantised already ({method}); give the unquantised model")
    kind = config.get("model_type")
    try:
        native = AutoConfig.for_model(**config) if kind else None
    except ValueError:
        native = None
    if native is None:
        raise InputError(
            f"{where}: model_type {kind!r} is not one that transformers knows without remote code; convert it to "
            "a native architecture first"
        )
    with init_empty_weights():
        try:
            model = AutoModelForCausalLM.from_config(native)
        except ValueError:
            raise InputError(
                f"{where}: model_type {kind!r} is not a causal language model; give a decoder-only model"
            ) from None
    wanted = model.state_dict()
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ()) if native.get_text_config().tie_word_embeddings else set()
    )
    extra = sorted(set(tensors) - set(wanted))
    missing = sorted(set(wanted) - set(tensors) - tied)
    if missing:
        raise InputError(
            f"{where}: lacks {len(missing)} tensors that {type(model).__name__} needs, {missing[0]} first; the "
            "checkpoint is incomplete"
        )
    if extra:
        logger.info("left out %d tensors that %s does not have, %s first", len(extra), type(model).__name__, extra[0])
    kept = {name: tensors[name] for name in sorted(wanted) if name in tensors and name not in tied}
    for name, value in kept.items():
        if value.shape != wanted[name].shape:
            raise InputError(
                f"{where}: {name} is {list(value.shape)} where config.json asks for {list(wanted[name].shape)}; "
                "config and weights do not belong together"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"{where}: {name} holds NaN or infinite values; use a model whose weights are finite")
    return kept, all_linears(model)


def convert(source: dict[str, Any], target: Path, record_path: str | Path, resource: Path | None = None) -> None:
    """Writes `target` from one of {"directory": PATH}, {"hub": {"id", "revision"}}, {"gguf": PATH or resource}.

    The record says where the model came from, its fingerprint, and its linears with the block each is in.
    """
    target.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"source": source}
    folder: Path | None = None
    if "gguf" in source:
        path = resource if resource is not None else Path(source["gguf"]["path"])
        config, tensors = read_gguf(path, target)
        record["sha256"] = file_sha256(path)
        where = str(path)
    else:
        if "hub" in source:
            folder, record["commit"] = fetch_hub(source["hub"]["id"], source["hub"]["revision"])
        else:
            folder = Path(source["directory"])
        config, tensors = read_directory(folder)
        where = str(folder)
        if config.get("model_type") in NATIVE_CONFIGS:
            config = NATIVE_CONFIGS[config["model_type"]](config)
        config.pop("auto_map", None)
        for name in SIDE_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        drop_remote_code(target / "tokenizer_config.json")
    tensors, record["linears"] = check_model(config, tensors, where)
    tensorfile.save(
        target / "model.safetensors", {name: value.contiguous() for name, value in tensors.items()}, {"format": "pt"}
    )
    write_text(target / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    load_tokenizer(target)
    weights = file_sha256(target / "model.safetensors")
    record["fingerprint"] = digest(weights.encode(), (target / "config.json").read_bytes())
    record["versions"] = versions()
    write_json(record_path, record)


def drop_remote_code(path: Path) -> None:
    """Removes auto_map from a tokenizer's configuration."""
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("auto_map", None) is not None:
            write_text(path, json.dumps(settings, indent=2) + "\n")


def load_tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's tokenizer, by transformers."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{checkpoint}: its tokenizer cannot be loaded ({str(error).splitlines()[0]}); put tokenizer.json and "
            "tokenizer_config.json there"
        ) from None
