"""Does PRAQ quantise better than AWQ? Convert, collect statistics, quantise, evaluate, compare, report."""

import atexit
import functools
import gc
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version, update_config

min_version("9.20")
# looking for garbage is a third of what Snakemake takes to read a study, and at its end
gc.freeze()
gc.set_threshold(100_000, 50, 100)
atexit.register(gc.freeze)

# the project's folder, wherever Snakemake runs; another workflow may use this one as a module
ROOT = Path(workflow.snakefile).parent
IS_MODULE = Path(workflow.main_snakefile) != Path(workflow.snakefile)
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.data import task_yaml
from quant.recipe import choices, keys, libraries
from quant.workflow import budgets, configuration, defaults, demands, gpus, moments, outcome, paths, shared_text
from quant.workflow import stamps, tracking, values, weights
from quant.workflow.estimates import needs, room
from quant.errors import InputError

CONFIG_FILES = [ROOT / "config.yaml"]


configfile: CONFIG_FILES[0]


# an experiment's folder has a config.yaml of its own: what it changes
if not IS_MODULE and Path("config.yaml").is_file() and not CONFIG_FILES[0].samefile("config.yaml"):
    CONFIG_FILES.append(Path.cwd() / "config.yaml")

    configfile: CONFIG_FILES[1]


include: "rules/common.smk"
include: "rules/convert.smk"
include: "rules/plan.smk"
include: "rules/statistics.smk"
include: "rules/quantize.smk"
include: "rules/library.smk"
include: "rules/budget.smk"
include: "rules/evaluate.smk"
include: "rules/tasks.smk"
include: "rules/analyse.smk"
include: "rules/preactivations.smk"
include: "rules/synthetic.smk"
include: "rules/deploy.smk"
include: "rules/report.smk"


rule all:
    """The report, and with it everything that it shows."""
    default_target: True
    input:
        "results/report.html",


onstart:
    for job in workflow.dag.needrun_jobs():
        if END_LOSS is None and job.rule.name in ("choose_widths", "quantize_budget"):
            raise WorkflowError(budgets.unmeasured(job.wildcards.method))
    if lacking := room.lacking(
        room.waiting(workflow.dag.needrun_jobs()), CONFIG, room.here(Path("results"), on_cluster()), bool(GPU(None))
    ):
        if STUDY["unfit"] == "stop":
            raise WorkflowError(room.refusal(lacking))
        print(*lacking, sep="\n", file=sys.stderr)


onsuccess:
    made = lambda name: name in workflow.dag_settings.targets and Path(name).is_file()  # --until ends before
    if made("results/best/choice.json"):
        print(outcome.chosen(Path("results")), file=sys.stderr)
    elif all(Path("results", name).is_file() for name in ("report.html", "summary.csv")):
        print(outcome.success(Path("results")), file=sys.stderr)
    if made("results/plan.txt") and room.unfit(Path("results/plan.json")):
        raise WorkflowError("the study does not fit: results/plan.txt says by how much")


onerror:
    print(*map(outcome.failure, log), sep="\n", file=sys.stderr)
