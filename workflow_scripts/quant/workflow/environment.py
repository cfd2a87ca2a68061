"""Environments of libraries that do not go together with this one: a rule makes each from pinned requirements."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from quant.errors import InputError


class Library(NamedTuple):
    """Its name in messages, the module that shows it is there, and what to do without it."""

    name: str
    module: str
    otherwise: str


def run(library: Library, command: list[str | Path], what: str) -> str:
    """Output of a command, which also goes into the log as it comes; its last words in one line where it fails."""
    said: list[str] = []
    try:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise InputError(
            f"{library.name}'s environment: {what} cannot start ({error.strerror}: {command[0]})"
        ) from None
    with process:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", file=sys.stderr)
    if process.returncode:
        errors = [line for line in said if line.startswith("ERROR")] or [line for line in said if line.strip()]
        reason = (errors or ["it said nothing"])[-1].strip().removeprefix("ERROR: ")
        raise InputError(f"{library.name}'s environment: {what} failed ({reason}); mend that, or {library.otherwise}")
    return "".join(said)


def build(folder: Path, requirements: Path, library: Library) -> str:
    """The environment in `folder`; what pip freeze says of it."""
    made = importlib.util.find_spec(library.module) is not None  # by conda, whose Python runs this
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run(
            library,
            [sys.executable, "-m", "venv", *(["--system-site-packages"] if made else []), folder],
            "python -m venv",
        )
        python = folder / "bin" / "python"
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        if not made:
            install: list[str | Path] = [
                *pip,
                "install",
                "--no-compile",
                "--progress-bar=off",
                "--requirement",
                requirements,
            ]
            run(library, install, "pip install")
        run(library, [python, "-W", "ignore", "-c", f"import {library.module}"], f"import {library.module}")
        return run(library, [*pip, "freeze"], "pip freeze")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
