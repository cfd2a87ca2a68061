"""Environments of libraries that do not go together with this one: a rule makes each from pinned requirements, or takes
one that is there already."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quant.errors import InputError

# what is installed, and whether it is the library
ASK = """
import sys, warnings
from importlib import metadata
warnings.simplefilter("ignore")
__import__(sys.argv[1])
package, _, wanted = sys.argv[2].partition("==")
if wanted and metadata.version(package) != wanted:
    sys.exit(f"it holds {package} {metadata.version(package)}, where {wanted} is wanted")
print(*sorted({f"{each.name}=={each.version}" for each in metadata.distributions()}, key=str.lower), sep="\\n")
"""


class Library(NamedTuple):
    """Its name in messages, the module that shows it is there, what to do without it, and PACKAGE==VERSION where no
    other is taken."""

    name: str
    module: str
    otherwise: str
    pinned: str = ""


def run(library: Library, command: list[str | Path], what: str, variables: Mapping[str, str] = os.environ) -> str:
    """Output of a command, which also goes into the log as it comes; its last words in one line where it fails."""
    said: list[str] = []
    try:
        process = subprocess.Popen(
            list(map(str, command)),
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
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


def python_in(existing: Path | None) -> Path | None:
    """The Python that a configured place is or holds; None for a folder of packages."""
    if existing is None or existing.is_file():
        return existing
    python = existing / "bin" / "python"
    return python if python.exists() else None


def make(folder: Path, requirements: Path, library: Library, existing: Path | None) -> Path:
    """The Python of the environment in `folder`. existing: a folder of packages, which this Python's own complete."""
    conda = importlib.util.find_spec(library.module) is not None  # whose Python runs this
    options = ["--without-pip"] if existing else ["--system-site-packages"] if conda else []
    run(library, [sys.executable, "-m", "venv", *options, folder], "python -m venv")
    python = folder / "bin" / "python"
    if existing is not None:
        paths = [str(existing.resolve()), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "existing.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(paths)), encoding="utf-8")
    elif not conda:
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        install = [*pip, "install", "--no-compile", "--progress-bar=off", "--requirement", requirements]
        run(library, install, "pip install")
    return python


def build(folder: Path, requirements: Path, library: Library, existing: Path | None = None) -> tuple[Path, str]:
    """The environment's Python, in `folder` where none is named, and what is installed for it, a line each."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        python = python_in(existing) or make(folder, requirements, library, existing)
        asked: list[str | Path] = [python.absolute(), "-W", "ignore", "-c", ASK, library.module, library.pinned]
        # here the modules that it imports are compiled, and nowhere else
        hindering = () if existing else ("PYTHONDONTWRITEBYTECODE",)
        variables = {name: value for name, value in os.environ.items() if name not in hindering}
        return python, run(library, asked, f"import {library.module}", variables)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
