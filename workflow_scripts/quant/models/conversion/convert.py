"""Any source of a causal LM → one directory with config.json, model.safetensors and a tokenizer.

No remote code and no pickle is ever run: a .bin is read with torch.load(weights_only=True), and architectures that
publish their own code are mapped to native ones where the equations are the same (MiniCPM → Granite).
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from quant.errors import InputError, one_line
from quant.files import shards
from quant.files import stage as stages
from quant.files.artifacts import versions, write_json, write_text
from quant.files.given import AGAIN
from quant.files.weight_names import LIMIT, WEIGHTS
from quant.models.conversion import published
from quant.models.conversion.native import (
    NO_TEXT,
    as_native,
    empty_model,
    is_causal,
    native_object,
    text_part,
    text_tensors,
)
from quant.models.conversion.record import checkpoint_fingerprint
from quant.models.sources.reading import SIDE_FILES, read, without_code
from quant.models.structure.experts import held, inputs_of, unrolling
from quant.models.structure.linears import all_linears, decoder_blocks, embeddings_in, left_alone
from quant.models.structure.notes import called, packs
from quant.models.tokenization import tokenizers
from quant.records.model import Linears, ModelRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("quant")


def settle_ties(
    config: dict[str, Any], tensors: dict[str, Tensor], tied: dict[str, str], where: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One tensor for each pair that the config ties, under the name that transformers shares it from.

    Where a checkpoint holds two that differ, both count, as in transformers, and the config says so.
    """
    tensors, config = dict(tensors), dict(config)
    for name, source in tied.items():
        if name not in tensors:
            continue
        if source not in tensors:
            tensors[source] = tensors.pop(name)
        elif tensors[name].dtype == tensors[source].dtype and torch.equal(tensors[name], tensors[source]):
            del tensors[name]
        else:
            logger.info("%s: %s and %s differ, so they are not tied", where, name, source)
            config["tie_word_embeddings"] = False
    return config, tensors


def check_tensor(name: str, value: Tensor, wanted: Tensor, where: str) -> None:
    """Refuses a tensor that is not finite floating-point numbers in the shape that the config asks for."""
    kind = str(value.dtype).removeprefix("torch.")
    if not wanted.is_floating_point():
        raise InputError(f"{where}: its model holds integers ({name}), which is not known here; use another model")
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise InputError(f"{where}: {name} is no plain tensor ({value.layout}, {value.device}); {AGAIN}")
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{where}: {name} is {kind}; give the unquantised model, in float16, bfloat16 or float32")
    if value.shape != wanted.shape:
        raise InputError(
            f"{where}: {name} is {list(value.shape)} where config.json asks for {list(wanted.shape)}; config and "
            "weights do not belong together"
        )
    if value.numel() == 0:
        raise InputError(f"{where}: {name} is empty, {list(wanted.shape)}; {AGAIN}")
    if not torch.isfinite(value).all():
        raise InputError(f"{where}: {name} holds NaN or infinite values; use a model whose weights are finite")


def is_left_bias(name: str, value: Tensor, wanted: dict[str, Any]) -> bool:
    """Whether a tensor that the model lacks is the bias of a weight that it has, and changes what that puts out."""
    stem = name.removesuffix(".bias")
    return stem != name and f"{stem}.weight" in wanted and bool(value.any())


class Checked(NamedTuple):
    """A model that agrees with itself: config as transformers reads it, tensors, and the metadata of a file of them."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    linears: Linears


def check_model(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> Checked:
    """Holds the tensors against the architecture that config.json names."""
    native = native_object(config, where)
    try:
        model, tensors = native_model(native, tensors, where)
        linears = all_linears(model)
        reached = called(model, decoder_blocks(model)[1])
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from None
    left = left_alone(model, linears, reached)
    linears = {name: layer for name, layer in linears.items() if name not in left}
    wanted = model.state_dict()
    for name in sorted(set(wanted) & set(tensors)):
        check_tensor(name, tensors[name], wanted[name], where)
    config = normalised(model, config)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    config, tensors = settle_ties(config, tensors, tied, where)
    missing = sorted(set(wanted) - set(tensors) - set(tied))
    if missing:
        raise InputError(
            f"{where}: lacks {len(missing)} tensors that {type(model).__name__} needs, {missing[0]} first; the "
            "checkpoint is incomplete"
        )
    extra = sorted(set(tensors) - set(wanted))
    unread = next((name for name in extra if is_left_bias(name, tensors[name], wanted)), None)
    if unread is not None:
        raise InputError(
            f"{where}: {unread} holds numbers, and by config.json {type(model).__name__} has no such bias; config and "
            "weights do not belong together"
        )
    if extra:
        logger.info(
            "%s: left out %d tensors that %s does not have: %s", where, len(extra), type(model).__name__, some(extra)
        )
    if not linears:
        raise InputError(f"{where}: no token reaches a linear of {type(model).__name__} through a forward call")
    tensors = {name: tensors[name] for name in sorted(wanted) if name in tensors}
    metadata = unrolling(model).written.metadata() | published.names(model).metadata()
    embeddings = embeddings_in(model, tensors, tied)
    experts = [found for block in decoder_blocks(model)[1] if (found := inputs_of(block))]
    unpacked = why_unpacked(model, linears)
    made: Linears = {
        "linears": linears,
        "left": left,
        "unpacked": unpacked,
        "embeddings": embeddings,
        "experts": experts,
    }
    return Checked(config, tensors, metadata, made)


def why_unpacked(model: "PreTrainedModel", linears: dict[str, int]) -> dict[str, str]:
    """Why a packed checkpoint of this model is read by nobody: on any grid, or on an asymmetric one; {} where it is.

    The model is of no use afterwards.
    """
    if pieces := unrolling(model).written.pieces:
        name, piece = next(iter(pieces.items()))
        how = "the other way round" if name == piece.whole else f"as a part of {piece.whole}"
        return {"any": f"transformers holds {name} {how}, and loads no packed weights there"}
    other = next((name for name in linears if type(model.get_submodule(name)).__name__ != "Linear"), None)
    if other is not None:
        kind = type(model.get_submodule(other)).__name__
        return {"any": f"{other} is a {kind}, which readers of packed weights do not take for a Linear"}
    if held(model):
        return {"asymmetric": "transformers reads no zero points of experts; symmetric: true packs them"}
    if not packs(model, linears):
        return {"any": f"transformers cannot load packed linears in {type(model).__name__}"}
    return {}


def native_model(native: Any, tensors: dict[str, Tensor], where: str) -> tuple["PreTrainedModel", dict[str, Tensor]]:
    """The empty model and the tensors as its own; of a multimodal checkpoint, those of its text model."""
    text, found = text_part(native), tensors
    if text is None or is_causal(native):
        model = empty_model(native, len(tensors), where)
        found = as_native(tensors, model, where)
    if text is None:
        return model, found
    alone = empty_model(text, len(tensors), where)
    short = as_native(text_tensors(found, alone.state_dict()), alone, where)
    missing = set(alone.state_dict()) - set(short) - set(alone.get_expanded_tied_weights_keys(all_submodels=True))
    if missing:
        raise InputError(f"{where}: {NO_TEXT.format(native.model_type)} (it lacks {min(missing)})")
    logger.info("%s: is multimodal (%s); its text model (%s) is converted", where, native.model_type, text.model_type)
    return alone, short


def normalised(model: "PreTrainedModel", config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model as transformers reads it, every value in it."""
    native = model.config
    entries = json.loads(native.to_json_string(use_diff=False))
    own = config.get("dtype") or config.get("torch_dtype")
    entries = without_code(
        {key: value for key, value in entries.items() if key not in ("dtype", "torch_dtype", "_name_or_path")}
    )
    return entries | ({"dtype": own} if own is not None else {}) | {"architectures": [type(model).__name__]}


def some(names: list[str]) -> str:
    """The first ten, and how many more."""
    names = [name if name.isprintable() else repr(name) for name in names]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def settle_dtype(config: dict[str, Any], tensors: dict[str, Tensor], where: str) -> dict[str, Any]:
    """The config with a `dtype`: its own, or where it has none that of most weights."""
    own = config.get("dtype") or config.get("torch_dtype")
    if own in ("float16", "bfloat16", "float32", "float64"):
        return config
    if own not in (None, "auto"):
        raise InputError(f"{where}: config.json's dtype is {own!r}; write float16, bfloat16 or float32")
    numbers: dict[torch.dtype, int] = {}
    for value in tensors.values():
        numbers[value.dtype] = numbers.get(value.dtype, 0) + value.numel()
    stored = str(max(numbers, key=lambda dtype: numbers[dtype])).removeprefix("torch.")
    return {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": stored}


def with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """config.json that transformers 4 reads as 5 does, and with it vLLM and AutoAWQ: they would ignore rope_parameters
    without a word, and turn by other frequencies.

    rope_parameters → rope_theta, partial_rotary_factor and, unless it is the default kind, rope_scaling. One that
    differs by layer has no such words.
    """
    rope = dict(config.get("rope_parameters") or {})
    if config.get("rope_scaling") or any(isinstance(value, dict) for value in rope.values()):
        return config
    older = {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    return config | older


def settle_tokenizer(stage: Path, tokenizer: tuple[Any, dict[str, Any]] | None, where: str) -> None:
    """Writes the tokenizer so that whoever loads the checkpoint gets its own ids; the one of a GGUF file, or of the
    files that are there already."""
    from transformers import AutoTokenizer

    try:
        found = tokenizer or tokenizers.own_tokenizer(stage, where)
        if found is not None:
            tokenizers.settle(stage, *found, where)
        AutoTokenizer.from_pretrained(stage, trust_remote_code=False)("text", truncation=True, max_length=2)
    except InputError:
        raise
    except Exception as error:  # tokenizer classes raise whatever a missing or damaged file led to
        reason = one_line(error).replace(str(stage), where)
        raise InputError(
            f"{where}: its tokenizer cannot be loaded ({reason}); put tokenizer.json and tokenizer_config.json there"
        ) from None


def check_side_files(stage: Path, where: str) -> None:
    """Loads the generation settings as a user of the checkpoint will."""
    from transformers import GenerationConfig

    if (stage / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(stage)
        except Exception as error:
            reason = one_line(error).replace(str(stage), where)
            raise InputError(
                f"{where}: its generation_config.json cannot be loaded ({reason}); mend or remove it"
            ) from None


def fits(tensors: dict[str, Tensor], weights: str, where: str) -> None:
    """Refuses one file for weights that belong in shards, as it happens to a model whose size was not known before."""
    size = sum(value.nbytes for value in tensors.values())
    if weights == WEIGHTS and size > LIMIT:
        raise InputError(
            f"{where}: its weights take {size / 1e9:.1f} GB, more than the {LIMIT / 1e9:g} GB of one file, which could "
            "not be known before they were there; run the same command again, and checkpoints will be in shards"
        )


def publish(stage: Path, target: Path) -> None:
    """Moves a finished checkpoint to its place; of an earlier one nothing stays."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*SIDE_FILES, "config.json"):
        (target / name).unlink(missing_ok=True)
    shards.publish(stage, target)
    for file in sorted(stage.iterdir()):
        file.rename(target / file.name)


def convert(
    source: dict[str, Any],
    target: Path,
    record_path: str | Path,
    resource: Path | None = None,
    weights: str = WEIGHTS,
) -> None:
    """Writes `target` from one of {"directory": PATH}, {"hub": {"id", "revision"}}, {"gguf": PATH or resource}.

    weights: the name of its one file of weights, or of its shards' index.

    The record says where the model came from, its fingerprint, and its linears with the block each is in. Files come
    to `target` all together, once the last check has passed.
    """
    with stages.hidden(target.parent, "convert") as folder:
        stage = folder / target.name
        stage.mkdir()
        config, tensors, tokenizer, where, origin = read(source, stage, resource)
        config, tensors, metadata, linears = check_model(config, tensors, where)
        config = with_older_keys(settle_dtype(config, tensors, where))
        fits(tensors, weights, where)
        shards.save(stage / weights, tensors, {"format": "pt"} | metadata)
        write_text(stage / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        settle_tokenizer(stage, tokenizer, where)
        check_side_files(stage, where)
        record: ModelRecord = {
            "source": source,
            **origin,
            **linears,
            "fingerprint": checkpoint_fingerprint(stage),
            "versions": versions(),
        }
        publish(stage, target)
    write_json(record_path, record)
