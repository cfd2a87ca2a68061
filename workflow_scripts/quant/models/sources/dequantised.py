"""Checkpoints stored in a quantised format that transformers dequantises on a CPU: read by it, as plain weights.

Every tensor of the file must have a place in the model and every tensor of the model one in the file, so that no scale
and no zero point is passed over. Other formats are refused by name (quantised).
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from torch import Tensor, nn

from quant.errors import InputError, one_line
from quant.files.spool import Spool
from quant.files.units import megabytes
from quant.files.weight_names import experts_of
from quant.models.sources import quantised
from quant.models.sources.directory import weight_files
from quant.models.sources.gguf import spooled

logger = logging.getLogger("quant")

FORMATS = {  # by quant_method, in words
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
}
NARROW = ("F8_", "I8", "U8", "I32")  # how a file's header calls the types of quantised weights
SCALES = ("_scale_inv", "_scale", "_scales", ".scale")  # of the tensors that say what those are worth


def format_of(config: dict[str, Any]) -> str | None:
    """The format of a config.json's weights, where it is one that can be dequantised."""
    stored = config.get("quantization_config") or config.get("compression_config")
    method = quantised.method_of(stored).lower() if isinstance(stored, dict) else ""
    return method if method in FORMATS else None


def words(config: dict[str, Any]) -> str:
    """A format with what its configuration says of it: compressed-tensors (pack-quantized)."""
    stored = config.get("quantization_config") or config.get("compression_config") or {}
    more = stored.get("format") or (stored.get("weight_block_size") and "blocks of {} × {}".format(
        *stored["weight_block_size"]
    ))  # fmt: skip
    name = FORMATS[str(format_of(config))]
    return f"{name} ({more})" if more else name


def rounds_inputs(config: dict[str, Any]) -> bool:
    """Whether readers of a config.json's weights round the inputs of linears too."""
    stored = config.get("quantization_config") or config.get("compression_config") or {}
    groups = (stored.get("config_groups") or {}).values()
    return bool(stored.get("activation_scheme") or any(group.get("input_activations") for group in groups))


def caveat(stored: str, size: int, inputs: bool = False) -> str:
    """What report and cards say of a model whose weights were quantised before, in files of size bytes; inputs: and
    those of linears as it ran."""
    unrounded = " Its linears' inputs were rounded as it ran, which is left out here." if inputs else ""
    return (
        f"This model's weights were stored in {stored} once before, in {megabytes(size / 1e6)} MB: a checkpoint that "
        "is no smaller spares nothing. That grid shows through: compare methods with one another, not with figures "
        f"from full-precision models.{unrounded}"
    )


def check_scales(files: list[Path], where: str) -> None:
    """Refuses a narrow tensor without a scale beside it, which would be read as if it were the weight itself, and zero
    points of experts."""
    kinds: dict[str, str] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as handle:
            kinds |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    for name, kind in sorted(kinds.items()):
        if experts_of(name) and name.endswith("_zero_point"):
            unread = "is a zero point of experts, which transformers does not read"
            raise InputError(f"{where}: {name} {unread}; give the unquantised model")
        stem = name.removesuffix("_packed").removesuffix("_blocks")
        if not kind.startswith(NARROW) or name.endswith((*SCALES, "_shape", "_zero_point", "_g_idx")):
            continue
        if not any(f"{part}{scale}" in kinds for part in {stem, stem.removesuffix(".weight")} for scale in SCALES):
            raise InputError(f"{where}: {name} is {kind} and has no scale beside it; give the unquantised model")


@contextlib.contextmanager
def unpacked(spool: Spool, config: dict[str, Any]) -> Iterator[None]:
    """Within it compressed-tensors, which has a whole model unpacked in memory, hands each linear on as it is done."""
    if format_of(config) != "compressed-tensors":
        yield
        return
    from compressed_tensors.compressors.model_compressors import model_compressor

    unpack = model_compressor.decompress_module

    def keep(module: nn.Module, *rest: Any) -> None:
        unpack(module, *rest)
        for parameter in module.parameters(recurse=False):
            parameter.data = spool.keep(parameter.data)

    with mock.patch.object(model_compressor, "decompress_module", keep):
        yield


def read(folder: Path, config: dict[str, Any], native: dict[str, Any], where: str, stage: Path) -> dict[str, Tensor]:
    """The model's tensors in the type that its config.json names (bfloat16 where it names none), mapped from a file in
    `stage`; few are in memory at once.

    config: config.json as it is; native: the same as a native architecture's, without its code.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import set_verbosity_error

    files = weight_files(folder)
    if any(file.suffix != ".safetensors" for file in files):
        raise InputError(f"{where}: {words(config)} weights are read from safetensors only; give those")
    check_scales(files, where)
    set_verbosity_error()  # what it would warn of at length is refused below in one line
    already = f"{where}: its weights are quantised already ({words(config)})"
    named = native.get("dtype") or native.get("torch_dtype") or "bfloat16"
    stored = dict(config.get("quantization_config") or config["compression_config"])
    stored.pop("run_compressed", None)
    with tempfile.TemporaryDirectory() as alone:
        written = native | {"quantization_config": stored | {"dequantize": True}}
        (Path(alone) / "config.json").write_text(json.dumps(written))
        for file in [*files, *folder.glob("*.safetensors.index.json")]:
            (Path(alone) / file.name).symlink_to(file.resolve())
        try:
            dtype = getattr(torch, named)
            with spooled(stage, dtype) as spool, unpacked(spool, config):
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    alone, dtype=dtype, output_loading_info=True, trust_remote_code=False
                )
        except Exception as error:  # a reader raises whatever an unexpected value led to
            failed = f"transformers cannot dequantise them ({type(error).__name__}: {one_line(error)})"
            raise InputError(f"{already}, and {failed}; give the unquantised model") from None
    model, report = loaded
    for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "holds"), ("mismatched_keys", "misshapes")):
        odd = sorted(map(str, report[key]))
        if odd:
            more = f" and {len(odd) - 1} more" if odd[1:] else ""
            raise InputError(
                f"{already}, and as transformers dequantises them it {what} {odd[0]}{more}; give the unquantised model"
            )
    logger.info("%s: its weights are %s, dequantised by transformers to %s", where, words(config), named)
    return {name: value.detach() for name, value in model.state_dict().items()}
