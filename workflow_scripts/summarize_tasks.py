"""Every method's answers → tasks.csv and task_pairs.csv."""

from quant.comparison.tasks import Groups, task_tables
from quant.files.artifacts import read_json, require
from quant.files.csv_tables import write_table
from quant.workflow.job import job

with job(snakemake.log[0]):
    options = snakemake.params.comparison["resamples"], snakemake.params.comparison["seed"]
    groups: Groups = {}
    for path in snakemake.input.answers:
        answers = read_json(path)
        model, method, task = (answers[key] for key in ("model", "method", "task"))
        group = groups.setdefault((model, task), {})
        if group:  # the original comes first
            original = next(iter(group.values()))["provenance"]
            same = {key: original[key] for key in ("task_fingerprint", "model_fingerprint")}
            require(path, answers["provenance"], **same, recipe=snakemake.params.recipes[method])
        group[method] = answers
    tasks, pairs = task_tables(groups, *options)
    write_table(snakemake.output.tasks, tasks)
    write_table(snakemake.output.pairs, pairs)
