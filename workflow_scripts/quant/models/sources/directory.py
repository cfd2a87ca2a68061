"""A Hugging Face checkpoint directory: config.json, and every tensor of its safetensors or .bin files.

Nothing that is read is run: a .bin goes through torch.load(weights_only=True), and whatever is not a whole, plain file
of tensors is refused in one line.
"""

import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from quant.errors import InputError, one_line
from quant.files.given import AGAIN, json_object

logger = logging.getLogger("quant")

WEIGHT_FILES = (  # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


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
