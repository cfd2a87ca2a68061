"""The model that a config.json describes, as transformers builds it, and a checkpoint's tensors under the names, and in
the pieces, that it gives them."""

import json
import re
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from quant.errors import InputError, one_line
from quant.files.given import AGAIN
from quant.models.structure import experts
from quant.models.structure.experts import unroll, unrolling
from quant.models.structure.linears import decoder_blocks

if TYPE_CHECKING:
    from concurrent.futures import Future

    from transformers import PreTrainedModel

# encoders with a causal head that only is_decoder makes causal; others mark their attention with is_causal
BOTH_WAYS = frozenset({"big_bird", "megatron-bert", "reformer", "rembert", "roformer", "xlm", "xlnet"})


NO_TEXT = "is multimodal ({}), and its text model cannot be taken out of it; give a text model"
DEPENDENT = {  # types whose sequences depend on what they are batched with
    "doge": "its attention chooses keys among those of later and padding tokens",
}


def native_object(config: dict[str, Any], where: str) -> Any:
    """The configuration as AutoConfig reads it: old and new words, and infinities, are one."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = config["model_type"]
    if kind not in CONFIG_MAPPING:
        raise InputError(
            f"{where}: model_type {kind!r} is not one that transformers knows without remote code; convert it to a "
            "native architecture first"
        )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a wrong value fails wherever the architecture first uses it
            raise cannot_build(error, where) from None


def cannot_build(error: Exception, where: str) -> InputError:
    return InputError(
        f"{where}: transformers cannot build a model from its config.json ({type(error).__name__}: {one_line(error)}); "
        f"{AGAIN}"
    )


TOWERS = re.compile("vision|visual|image|audio|speech|vq_|thinker")  # in the names of a configuration's other parts


def is_multimodal(native: Any) -> bool:
    """Whether a configuration has a part that is of no text."""
    return any(TOWERS.search(name) and getattr(native, name, None) is not None for name in native.sub_configs)


def text_part(native: Any) -> Any | None:
    """The configuration of a multimodal model's text model, where transformers has that as a model of its own."""
    text = getattr(native, "text_config", None)
    if text is None or not is_multimodal(native) or not is_causal(text) or type(text) is type(native):
        return None
    text.tie_word_embeddings |= getattr(native, "tie_word_embeddings", False)  # the whole model's word holds
    return text


def is_causal(native: Any) -> bool:
    """Whether transformers has a causal language model of a configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(native) in MODEL_FOR_CAUSAL_LM_MAPPING


def empty_model(native: Any, n_tensors: int, where: str) -> "PreTrainedModel":
    """The native causal language model that a configuration describes, without weights, its experts unrolled."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    kind = native.model_type
    depth = getattr(native.get_text_config(decoder=True), "num_hidden_layers", None) or 0
    if not 0 <= depth <= n_tensors:  # before any time goes into building them
        raise InputError(f"{where}: config.json asks for {depth} layers of {n_tensors} tensors; {AGAIN}")
    try:
        if is_causal(native):
            with init_empty_weights():
                model = AutoModelForCausalLM.from_config(native, trust_remote_code=False).eval()
    except Exception as error:  # a wrong value fails wherever the architecture first uses it
        raise cannot_build(error, where) from None
    if kind in DEPENDENT:
        raise InputError(f"{where}: model_type {kind!r} is not known here: {DEPENDENT[kind]}")
    if not is_causal(native) and is_multimodal(native):
        raise InputError(f"{where}: {NO_TEXT.format(kind)}")
    if not is_causal(native) or looks_ahead(model):
        raise InputError(f"{where}: model_type {kind!r} is not a causal language model; give a decoder-only model")
    return unroll(model)


def looks_ahead(model: "PreTrainedModel") -> bool:
    """Whether an attention within the decoder blocks is not causal (BERT under its causal head, a cross-attention)."""
    if model.config.model_type in BOTH_WAYS and not getattr(model.config, "is_decoder", False):
        return True
    try:
        _, blocks = decoder_blocks(model)
    except InputError:  # said where the linears are looked for
        return False
    return any(getattr(module, "is_causal", True) is False for module in blocks.modules())


def as_native(tensors: dict[str, Tensor], model: "PreTrainedModel", where: str) -> dict[str, Tensor]:
    """A file's tensors as those of an unrolled model: renamed, fused and split by transformers' own conversion, in
    the type that they have; those of no place in the model keep their names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    wanted = model.state_dict()
    if tensors.keys() == wanted.keys():
        return experts.split(tensors, model)
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    whole = wanted | dict.fromkeys(unrolling(model).fused())  # what a conversion may lead to
    prefix = model.base_model_prefix
    found: dict[str, Tensor] = {}
    pending: dict[str, WeightConverter] = {}
    for name in sorted(tensors, key=_natural):
        plain, _ = rename_source_key(name, renamings, [], prefix, wanted)
        if plain not in wanted and name in wanted:
            plain = name
        if plain in wanted:
            _put(found, plain, tensors[name], where)
            continue
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, whole)
        if pattern is not None and (renamed in whole):
            entry = pending.setdefault(renamed, deepcopy(by_pattern[pattern]))
            entry.add_tensor(renamed, name, pattern, cast("Future[Tensor]", tensors[name]))  # it takes either
        else:
            _put(found, plain if plain in whole else name, tensors[name], where)
    for first, entry in pending.items():
        try:
            made = entry.convert(first, model=model, config=model.config)
        except Exception as error:  # an operation raises whatever a wrong shape or a missing piece led to
            raise InputError(
                f"{where}: {first} cannot be made of the checkpoint's tensors ({one_line(error)}); {AGAIN}"
            ) from None
        for name, value in made.items():
            _put(found, name, value[0] if isinstance(value, list) else value, where)
    return experts.split(found, model)


def _natural(name: str) -> list[tuple[int, Any]]:
    """Order in which layer 10 comes after layer 9, as transformers stacks experts."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _put(found: dict[str, Tensor], name: str, value: Tensor, where: str) -> None:
    if name in found:
        raise InputError(f"{where}: two of its tensors are {name} to transformers; keep one")
    found[name] = value


def text_tensors(tensors: dict[str, Tensor], wanted: dict[str, Any]) -> dict[str, Tensor]:
    """A multimodal checkpoint's tensors under the names of its text model; those of its other towers stay."""
    return {
        name if name in wanted else name.replace("language_model.", "", 1): value for name, value in tensors.items()
    }
