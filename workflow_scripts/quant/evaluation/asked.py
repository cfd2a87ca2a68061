"""A checkpoint that a task is asked of, as evaluate_task and write_words have it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quant.checkpoints import stored
from quant.evaluation.provenance import exported_as, method_record
from quant.files import tensorfile
from quant.files.artifacts import versions
from quant.models.conversion.record import model_record


class Asked(NamedTuple):
    """A checkpoint that a task is asked of. config: path of its; model_record: path of convert's; compute: as the
    configuration has it; names: its model, its method and what else the job is called by; record, recipe: of a
    quantised one; gguf: path of the file that was exported of it, where that is asked."""

    config: str
    model_record: str
    compute: Mapping[str, Any]
    names: Mapping[str, str]
    record: str | None = None
    recipe: Mapping[str, Any] | None = None
    gguf: str | None = None

    @classmethod
    def of(cls, files: Any, params: Any, names: Mapping[str, str]) -> "Asked":
        """From a job's inputs, parameters and wildcards."""
        return cls(
            files.config, files.model, params.compute, names, files.get("record"), params.recipe, files.get("gguf")
        )

    @property
    def checkpoint(self) -> Path:
        return Path(self.config).parent

    @property
    def run(self) -> Path:
        """What is loaded."""
        return self.checkpoint if self.gguf is None else Path(self.gguf)

    def made(self) -> Mapping[str, Any]:
        """The provenance of the whole checkpoint; refused where it is of another model or recipe, or not what its
        config.json says."""
        weights = self.checkpoint / "model.safetensors"
        of_model = {"model_fingerprint": model_record(self.model_record)["fingerprint"]}
        made: Mapping[str, Any] = {"versions": versions()} | of_model
        if self.record is not None and self.recipe is not None:
            stored.check(self.checkpoint)
            made = method_record(self.record, weights, self.recipe, of_model)["provenance"]
        if self.gguf is not None:
            exported_as(self.run, made)
        tensorfile.verify(weights)
        return made
