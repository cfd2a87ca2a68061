"""What a checkpoint was made from, held against the study and against its file."""

from pathlib import Path
from typing import Any

from quant.files import tensorfile
from quant.files.artifacts import read_json, require, versions
from quant.models.record import model_record as opened_model


def made_of(checkpoint: Path, model_record: str, record: str | None, recipe: dict[str, Any] | None) -> dict[str, Any]:
    """The provenance of a whole checkpoint, of the original where there is no record; refused where it is of another
    model or recipe than these."""
    of_model = {"model_fingerprint": opened_model(model_record)["fingerprint"]}
    made = {"versions": versions()} | of_model
    if record is not None:
        made = read_json(record)["provenance"]
        require(record, made, **of_model, recipe=recipe)
        with tensorfile.opened(checkpoint / "model.safetensors") as file:
            require(file.path, {"record": file.info("provenance")}, record=made)
    tensorfile.verify(checkpoint / "model.safetensors")
    return made
