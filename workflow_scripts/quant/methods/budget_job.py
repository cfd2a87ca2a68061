"""What a budget chooses by, from a rule's inputs and parameters."""

from pathlib import Path
from typing import Any, NamedTuple

from quant.checkpoints.embeddings import Embedding, wanted
from quant.data.tokens import fingerprint_in
from quant.files.artifacts import versions
from quant.files.tensorfile import opened
from quant.methods.choice import Given, given
from quant.models.record import model_record
from quant.records.method import Provenance
from quant.records.model import ModelRecord


class BudgetJob(NamedTuple):
    """source: the original's folder; the rest as `choice_of` has it."""

    source: Path
    model: ModelRecord
    known: Given
    limits: dict[str, float]
    embeddings: list[Embedding]
    end_loss: str | None

    @classmethod
    def of(cls, files: Any, params: Any, names: Any) -> "BudgetJob":
        """Of a job's inputs, parameters and wildcards."""
        model, recipe = model_record(files.model), params.recipe
        provenance: Provenance = {
            "model": names.model,
            "method": names.method,
            "recipe": recipe,
            "seed": recipe["seed"],
            "versions": versions(),
            "model_fingerprint": model["fingerprint"],
            "token_fingerprint": fingerprint_in(files.tokens),
        }
        swaps, moments = files.get("swaps"), files.moments
        known = given(files.records, files.tables, swaps, params.candidates, moments, provenance)
        with opened(files.weights) as file:
            embeddings = wanted(recipe["embeddings"], model["embeddings"], file.layout())
        return cls(Path(files.config).parent, model, known, recipe["budget"], embeddings, files.get("end_loss"))
