"""The best packed checkpoint under the user's limits, or its GGUF file, copied to results/best/."""

import shutil
from pathlib import Path

from quant.comparison.pick import choose
from quant.errors import InputError
from quant.files.artifacts import copy, versions, write_json, write_text
from quant.files.csv_tables import read_table
from quant.records.method import GGUF
from quant.workflow.job import job

with job(snakemake.log[0]):
    options = snakemake.params.options
    choice = choose(read_table(snakemake.input.summary), read_table(snakemake.input.comparisons), options)
    print("\n".join([choice.headline, *choice.lines]))
    if choice.method is None:
        raise InputError(f"choose: {choice.lines[0]} Widen choose: in the configuration, or add a method")
    target = Path(snakemake.output.config).parent
    gguf = target.with_name("model.gguf")
    shutil.rmtree(target, ignore_errors=True)
    gguf.unlink(missing_ok=True)
    for file in (target.parents[1] / choice.model / choice.method / "checkpoint").iterdir():
        copy(file, target / file.name)
    card = target / "README.md"
    write_text(card, card.read_text(encoding="utf-8").replace(str(choice.folder), str(target)))
    if choice.storage == GGUF:
        copy(target.parents[1] / Path(choice.path).relative_to("results"), gguf)
    found = choice._asdict() | {
        "difference": choice.difference and choice.difference._asdict(),
        "shown": choice.shown,
        "path": choice.path,
        "copy": str(gguf if choice.storage == GGUF else target),
    }
    write_json(snakemake.output.choice, {"options": options, **found, "versions": versions()})
