"""Does PRAQ quantise better than AWQ? Convert, collect statistics, quantise, evaluate, compare, report."""

import json
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.20")

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from quant.recipe import keys
from quant.workflow import configuration, outcome, tracking
from quant.errors import InputError


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/convert.smk"
include: "rules/statistics.smk"
include: "rules/quantize.smk"
include: "rules/autoawq.smk"
include: "rules/evaluate.smk"
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


onsuccess:
    if all(Path("results", name).is_file() for name in ("report.html", "summary.csv")):
        print(outcome.success(Path("results")), file=sys.stderr)


onerror:
    print(*map(outcome.failure, log), sep="\n", file=sys.stderr)
