"""Snakemake in a fork of a process that has imported what it needs, most of what a dry run takes; its jobs are forks,
too (tests/jobs.py). Every fork imports this module, and with it nothing large."""

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests import jobs

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [*("tests.forks", "pytest", "snakemake.cli", "snakemake.report.html_reporter", "smart_open", "jsonschema", "yte")]
)
# by the environment of their jobs: this process's first one's, and the last other one's
SERVERS: dict[frozenset[tuple[str, str]], jobs.Server] = {}
LOCK = threading.Lock()


def server(environment: dict[str, str]) -> jobs.Server:
    key = frozenset(environment.items())
    with LOCK:
        if key not in SERVERS:
            for other in list(SERVERS)[1:]:
                SERVERS.pop(other).close()
            SERVERS[key] = jobs.Server(environment)
        return SERVERS[key]


def run_here(
    folder: Path, arguments: list[str], environment: dict[str, str], python: Path, outputs: list[Path]
) -> None:
    """Snakemake's command in this process, what it says on stdout and stderr in files, and how it exits in a third: of
    two forks at once, multiprocessing may tell the status of one to neither."""
    sys.executable = str(python)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, output in enumerate(outputs[:2], 1):
        with output.open("w") as file:
            os.dup2(file.fileno(), stream)
    from snakemake.cli import main

    gc.disable()  # a third of a dry run's time
    try:
        main(arguments)
    except SystemExit as exited:
        outputs[2].write_text(str(exited.code or 0))
        raise


def snakemake(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    with tempfile.TemporaryDirectory() as said:
        *outputs, status = (Path(said, name) for name in ("stdout", "stderr", "status"))
        python = server(environment).python
        process = FORKS.Process(target=run_here, args=(folder, arguments, environment, python, [*outputs, status]))
        process.start()
        process.join()
        code = int(status.read_text()) if status.is_file() else process.exitcode or 1
        return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs))
