"""What a checkpoint was made from, held against the study and against its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.files import tensorfile
from quant.files.artifacts import read_json, require
from quant.records.method import MethodRecord, Provenance


def method_record(path: str, weights: Path, recipe: Mapping[str, Any], of_model: Mapping[str, str]) -> MethodRecord:
    """A method's quantize.json; refused where it is of another model or recipe than these, or of other weights."""
    record: MethodRecord = read_json(path)
    require(path, record["provenance"], **of_model, recipe=recipe)
    with tensorfile.opened(weights) as file:
        require(file.path, {"record": file.info("provenance")}, record=record["provenance"])
    return record


def exported_as(file: Path, made: Mapping[str, Any] | Provenance) -> dict[str, Any]:
    """export.json beside an exported file; refused where it is of another checkpoint than what was made so, or of
    another file."""
    path = file.with_name("export.json")
    record: dict[str, Any] = read_json(path)
    require(str(path), record | {"bytes": round(record["size_mb"] * 1e6)}, provenance=made, bytes=file.stat().st_size)
    return record
