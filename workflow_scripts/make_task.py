"""The items of one task: embedded, or of lm-eval."""

from pathlib import Path

from quant.data.embedded_tasks import RULES, embedded
from quant.data.lm_eval import lm_eval_items
from quant.data.task_items import Task, chosen_score, save
from quant.workflow.job import job

with job(snakemake.log[0]):
    spec, name = snakemake.params.spec, snakemake.wildcards.task
    if "embedded" in spec:
        rule = RULES[spec["embedded"]]
        items, found = embedded(spec["embedded"], spec["n_items"], spec["seed"]), {}
        scores, words = [rule.score], rule.words
    else:
        environment = Path(snakemake.input.environment).parent
        items, found = lm_eval_items(spec, environment, f"tasks.{name}")
        scores, words = found.pop("scores"), found.pop("rule")
        found = {"lm_eval": {key: found[key] for key in ("versions", "sources")}}
    score = chosen_score(f"tasks.{name}", spec["score"], scores)
    save(snakemake.output[0], Task(name, score, words, items, {"spec": spec} | found))
