"""Every question of the research → comparison_results.json: verdicts, and the numbers that they rest on."""

from dataclasses import asdict

from quant.comparison.answers import Evidence
from quant.comparison.numbers import LEVEL
from quant.comparison.questions import ask
from quant.files.artifacts import read_json, versions, write_json
from quant.files.csv_tables import read_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    tables = {
        name: read_table(snakemake.input[name])
        for name in ("summary", "comparisons", "linears", "rounding", "sensitivity", "learnt", "contrasts")
    }
    if snakemake.input.tasks:
        tables |= dict(zip(("tasks", "task_pairs"), map(read_table, snakemake.input.tasks), strict=True))
    checks = {check["model"]: check for check in map(read_json, snakemake.input.checks)}
    heldout = [read_table(path) for path in snakemake.input.heldout]
    channels = {record["model"]: record["channels"] for record in map(read_json, snakemake.input.parts)}
    recipes = {name: snakemake.params.recipes[name] for name in snakemake.params.order}
    models = {}
    for model in dict.fromkeys(tables["summary"]["model"]):
        own = {name: table[table["model"] == model] for name, table in tables.items()}
        mine = [frame for frame in heldout if set(frame["model"]) == {model}]
        evidence = Evidence(
            model,
            snakemake.params.datasets,
            recipes,
            **own,
            channels=channels.get(model, {}),
            check=checks.get(model),
            heldout=mine[0] if mine else None,
            by=snakemake.params.by,
            kinds=snakemake.params.kinds,
        )
        models[model] = [asdict(answered) for answered in ask(evidence)]
    write_json(
        snakemake.output[0],
        {
            "models": models,
            "verdicts": {
                "level": LEVEL,
                "by": snakemake.params.by,
                "correction": "Holm",
                "pairs of methods": len(tables["comparisons"]),
                "comparisons of parts": int((tables["sensitivity"]["against"] != "original").sum()),
            },
            "provenance": {
                "recipes": recipes,
                "versions": versions(),
                "token_fingerprints": sorted(set(tables["summary"]["token_fingerprint"])),
            },
        },
    )
