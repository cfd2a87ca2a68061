"""Makes a library's virtual environment from its pinned requirements; a view of what is there already, where conda made
one or the configuration names it."""

from pathlib import Path

from quant.files.artifacts import write_text
from quant.recipe.libraries import LIBRARIES
from quant.workflow.environment import Library, build
from quant.workflow.job import job

if __name__ == "__main__":
    with job(snakemake.log[0]):
        name, existing = snakemake.wildcards.library, snakemake.params.existing
        known = LIBRARIES[name]
        pinned = f"{known.package}=={known.version}"
        wanted = Library(known.title, known.module, f"leave {name} out of study.methods", pinned)
        folder, requirements = Path(snakemake.output.complete).parent, Path(snakemake.input.requirements)
        python, packages = build(folder, requirements, wanted, Path(existing) if existing else None)
        write_text(snakemake.output.packages, packages)
        write_text(snakemake.output.complete, f"{python}\n")
