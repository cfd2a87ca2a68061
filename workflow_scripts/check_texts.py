"""How many sequences the texts gave, and how much of each data set and task has been seen in calibration."""

from functools import reduce
from pathlib import Path

from quant.data import task_items, tokens
from quant.data.held_out import check_held_out
from quant.data.overlap import Seen, check_overlap, counted, fingerprints, seen_share
from quant.files.artifacts import versions, write_json
from quant.models.conversion.record import model_record
from quant.models.tokenization import tokenizers
from quant.workflow.job import job

with job(snakemake.log[0]):
    made_from = {"model_fingerprint": model_record(snakemake.input.model)["fingerprint"]}
    tokenizer = tokenizers.load(Path(snakemake.input.config).parent)
    read = {
        kind: {Path(path).parent.name: tokens.load(path, **made_from) for path in snakemake.input[kind]}
        for kind in ("calibrations", "datasets")
    }
    check_held_out(snakemake.params.tuned, read["calibrations"])
    texts = {
        kind: {name: tokenizer.batch_decode(found.sequences, skip_special_tokens=True) for name, found in sets.items()}
        for kind, sets in read.items()
    }
    seen = reduce(Seen.beside, map(fingerprints, texts["calibrations"].values()), fingerprints([]))
    asked = [task_items.load(path) for path in snakemake.input.tasks]
    texts["tasks"] = {task.name: [item.text for item in task.items] for task in asked}
    shares = {
        f"{kind}.{name}": seen_share(sequences, seen)
        for kind in ("datasets", "tasks")
        for name, sequences in texts[kind].items()
    }
    for name, share in shares.items():
        print(f"{name}: {share:.2%} of it has been seen in calibration")
    check_overlap(shares, snakemake.params.allow_overlap)
    for task in asked:  # an item that the model cannot hold, or not write on
        requests = task_items.requests_of(task, Path(snakemake.input.config).parent)
        if task.name == snakemake.params.words["task"]:
            task_items.prompts_of(task, requests, snakemake.params.words["prompts"])
    facts = {kind: {name: counted(found.sequences) for name, found in sets.items()} for kind, sets in read.items()}
    facts["tasks"] = {task.name: {"items": len(task.items)} for task in asked}
    for name, share in shares.items():
        kind, _, own = name.partition(".")
        facts[kind][own] |= {"seen_share": share}
    prints = {f"{kind}.{name}": found.fingerprint for kind, sets in read.items() for name, found in sets.items()}
    provenance = {"versions": versions(), "token_fingerprints": prints} | made_from
    write_json(snakemake.output[0], {"model": snakemake.wildcards.model, **facts, "provenance": provenance})
