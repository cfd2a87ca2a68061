"""Every part's rise of the NLL → sensitivity.csv."""

from quant.analysis.sensitivity import table
from quant.comparison.pairs import differing_keys
from quant.files.artifacts import read_json
from quant.files.csv_tables import write_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    records = [read_json(path) for path in snakemake.input]
    recipes = {record["method"]: record["provenance"]["recipe"] for record in records}

    def asymmetric_twin(method: str, other: str) -> bool:
        """Alike but for the grid: the first has a zero point, the other is symmetric."""
        first, second = recipes[method], recipes[other]
        return differing_keys(first, second) == {"symmetric"} and second["symmetric"]

    options = snakemake.params.comparison
    write_table(snakemake.output[0], table(records, asymmetric_twin, options["resamples"], options["seed"]))
