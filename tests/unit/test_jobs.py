"""A forked job is to Snakemake what a Python of its own would be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import jobs

ENVIRONMENT = dict.fromkeys(jobs.THREADS, "1") | {"LC_ALL": "C.UTF-8"}
SAYS = """
import os, sys, atexit
atexit.register(print, "ended")
print(os.getcwd(), sys.argv, sys.path, os.environ["MORE"], "LESS" in os.environ)
print(sys.stdin.read(), __name__, __file__)
print("error", file=sys.stderr)
sys.exit(WAY)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[jobs.Server]:
    server = jobs.Server(ENVIRONMENT, [])
    yield server
    server.close()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def ran(python: Path | str, script: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *options, str(script), "a b"],
        env=ENVIRONMENT | variables,
        cwd=script.parent,
        input="given",
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("way", ["", "0", "3", "'a message'"])
def test_streams_folder_arguments_and_status_are_those_of_a_python(server: jobs.Server, script: Path, way: str) -> None:
    script.write_text(SAYS.replace("WAY", way))
    mine, python = (ran(each, script, MORE="é") for each in (server.python, sys.executable))
    assert (mine.returncode, mine.stdout, mine.stderr) == (python.returncode, python.stdout, python.stderr)


def test_an_error_shows_its_traceback(server: jobs.Server, script: Path) -> None:
    script.write_text("import quantum_leap")
    done = ran(server.python, script)
    assert done.returncode == 1 and done.stderr.endswith("ModuleNotFoundError: No module named 'quantum_leap'\n")


def test_its_output_can_be_seen_as_it_comes(server: jobs.Server, script: Path) -> None:
    script.write_text("import os; print('begun'); os._exit(0)")
    assert [ran(server.python, script, *options).stdout for options in ((), ("-u",))] == ["", "begun\n"]


def test_a_killed_job_is_a_killed_python(server: jobs.Server, script: Path) -> None:
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert ran(server.python, script).returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_python_ends_its_job(server: jobs.Server, script: Path, number: signal.Signals) -> None:
    script.write_text("import os, time\nopen('job', 'w').write(str(os.getpid()))\ntime.sleep(60)")
    process = subprocess.Popen(
        [server.python, script], env=ENVIRONMENT, cwd=script.parent, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while not (script.with_name("job").is_file() and script.with_name("job").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(10) != 0
    while time.monotonic() < deadline:
        try:
            os.kill(int(script.with_name("job").read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("the job goes on")


def test_more_threads_are_another_pythons(server: jobs.Server, script: Path) -> None:
    script.write_text("import os; print(os.getppid())")
    assert ran(server.python, script).stdout != f"{os.getpid()}\n"
    assert ran(server.python, script, OMP_NUM_THREADS="2").stdout == f"{os.getpid()}\n"
