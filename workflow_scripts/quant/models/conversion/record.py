"""What convert recorded of a model, held against the checkpoint beside it."""

from pathlib import Path

from quant.files.artifacts import digest, read_json, require
from quant.files.tensorfile import opened
from quant.records.model import ModelRecord


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """Of config.json and of the weights' headers, which hold every tensor's checksum: nothing else is read."""
    with opened(checkpoint / "model.safetensors") as file:
        return digest(file.headers(), (checkpoint / "config.json").read_bytes())


def model_record(path: str | Path) -> ModelRecord:
    """What convert says of a model, refused where the checkpoint beside it is another one."""
    record: ModelRecord = read_json(path)
    checkpoint = Path(path).parent / "checkpoint"
    require(
        checkpoint / "model.safetensors",
        {"model_fingerprint": checkpoint_fingerprint(checkpoint)},
        model_fingerprint=record.get("fingerprint"),
    )
    return record
