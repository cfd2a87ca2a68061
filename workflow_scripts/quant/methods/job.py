"""What a job quantises by, from a rule's inputs and parameters."""

from pathlib import Path
from typing import Any, NamedTuple

from quant.calibration.reader import Statistics
from quant.data.tokens import fingerprint_in
from quant.methods.source import Source, provenance_of
from quant.models.conversion.record import model_record
from quant.recipe.recipe import Recipe
from quant.records.method import Provenance

READ = ("channels", "moments", "noisy", "weighted", "row_weight", "rows")


class Job(NamedTuple):
    """A model, a recipe, the statistics that it reads, and what the checkpoint says that it was made from."""

    source: Source
    recipe: Recipe
    statistics: Statistics
    provenance: Provenance

    @classmethod
    def of(cls, given: Any, params: Any, names: Any) -> "Job":
        """Of a job's inputs, parameters and wildcards."""
        model, recipe = model_record(given.model), Recipe.of(params.recipe)
        tokens = fingerprint_in(given.tokens) if "tokens" in given.keys() else None  # noqa: SIM118
        files = {name: path for name, path in given.items() if name in READ}
        statistics = Statistics(files, model["fingerprint"], params.linears, tokens, recipe.plain_share)
        source = Source.of(Path(given.config).parent, model)
        return cls(source, recipe, statistics, provenance_of(model, params.recipe, names))
