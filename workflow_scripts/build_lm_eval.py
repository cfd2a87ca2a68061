"""Makes lm-eval's virtual environment from its pinned requirements; where conda made one, a view of that."""

from pathlib import Path

from quant.files.artifacts import write_text
from quant.workflow.environment import Library, build
from quant.workflow.job import job

LM_EVAL = Library("lm-eval", "lm_eval", "leave its tasks out of study.tasks")

if __name__ == "__main__":
    with job(snakemake.log[0]):
        environment = Path(snakemake.output.complete).parent
        _, packages = build(environment, Path(snakemake.input.requirements), LM_EVAL)
        write_text(snakemake.output.packages, packages)
        write_text(snakemake.output.complete, f"{environment / 'bin' / 'python'}\n")
