"""What stands around a checkpoint's weights: the head of their file, and the files beside it."""

import json
from pathlib import Path
from typing import Any

from quant.files import naming, pieces
from quant.files.artifacts import copy, write_plain_json
from quant.files.tensorfile import TensorFile
from quant.files.weight_names import is_weights
from quant.records.method import Provenance


def metadata_of(model: TensorFile, provenance: Provenance) -> dict[str, str]:
    """Of weights made from a model's."""
    metadata = {"format": "pt", "provenance": json.dumps(provenance)}
    return metadata | {key: model.metadata[key] for key in (pieces.KEY, naming.KEY) if key in model.metadata}


def copy_others(source: Path, target: Path) -> None:
    """A checkpoint's other files, but for config.json and its card: its tokenizer's, above all."""
    for file in source.iterdir():
        if file.is_file() and not is_weights(file) and file.name not in ("config.json", "README.md"):
            copy(file, target / file.name)


def put_around(source: Path, target: Path, config: dict[str, Any]) -> None:
    """The source's other files, and this config.json; the card of what was here before goes."""
    copy_others(source, target)
    write_plain_json(target / "config.json", config)
    (target / "README.md").unlink(missing_ok=True)
