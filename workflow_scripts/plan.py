"""What the study will take on this machine, and whether it fits."""

import os
import shutil
from pathlib import Path

import torch

from quant.errors import InputError
from quant.files.artifacts import versions, write_json, write_text
from quant.models.sources.peek import peek
from quant.runtime.compute import device
from quant.workflow.estimates import plan
from quant.workflow.estimates.rates import measure_rates
from quant.workflow.estimates.shape import Shape
from quant.workflow.job import job

with job(snakemake.log[0], snakemake.threads):
    config, results = snakemake.params.config, Path(snakemake.output.text).parent
    shapes = {}
    for model, source in snakemake.params.sources.items():
        shape = Shape.of(peek(source, list(snakemake.input)))
        if shape is None:
            raise InputError(f"{model}: its configuration does not say how large it is; run the study without a plan")
        shapes[model] = shape
    where = device(config["compute"]["device"])
    kinds = {4: "float32", 2: "bfloat16"}
    rates = measure_rates(where, "float32" if where == "cpu" else kinds[next(iter(shapes.values())).width], results)
    machine = plan.Machine(
        where,
        torch.cuda.get_device_name() if where != "cpu" else f"{snakemake.threads} threads",
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        torch.cuda.mem_get_info()[1] if where != "cpu" else 0.0,
        shutil.disk_usage(results).free,
        rates,
    )
    found = list(plan.estimates(config, shapes, machine))
    rows = plan.steps(found)
    there = sum(
        file.stat().st_size for model in shapes for file in (results / model).rglob("*.safetensors") if file.is_file()
    )
    unfit = plan.misfits(rows, machine, there, plan.shards_sums(config, shapes.values()))
    said = plan.words(config, shapes, machine, rows, unfit)
    print(said)
    jobs = [
        {"rule": job.rule, "wildcards": job.wildcards, "seconds": spent, **estimate._asdict()}
        for job, estimate, spent in found
    ]
    write_json(
        snakemake.output.record,
        {"machine": machine._replace(rates=rates._asdict())._asdict(), "jobs": jobs, "unfit": unfit,
         "provenance": {"versions": versions()}},
    )  # fmt: skip
    write_text(snakemake.output.text, said)
