"""What a budget chooses by, from a rule's inputs and parameters."""

from pathlib import Path
from typing import Any, NamedTuple

from quant.checkpoints.embeddings import wanted
from quant.data.tokens import fingerprint_in
from quant.files.tensorfile import opened
from quant.methods.budgets.choice import Budget, Given, given
from quant.methods.source import Source, provenance_of
from quant.models.conversion.record import model_record
from quant.records.method import Provenance


class BudgetJob(NamedTuple):
    """The original, what is known of candidates, and the limits."""

    source: Source
    known: Given
    budget: Budget

    @classmethod
    def of(cls, files: Any, params: Any, names: Any) -> "BudgetJob":
        """Of a job's inputs, parameters and wildcards."""
        model, recipe = model_record(files.model), params.recipe
        provenance: Provenance = {
            **provenance_of(model, recipe, names),
            "token_fingerprint": fingerprint_in(files.tokens),
        }
        swaps, moments = files.get("swaps"), files.moments
        known = given(files.records, files.tables, swaps, params.candidates, moments, provenance)
        with opened(files.weights) as file:
            embeddings = wanted(recipe["embeddings"], model["embeddings"], file.layout())
        source = Source.of(Path(files.config).parent, model)
        return cls(source, known, Budget(recipe["budget"], embeddings, files.get("end_loss")))
