"""Makes AutoAWQ's virtual environment from its pinned requirements; where conda made one, a view of that."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from quant.errors import InputError
from quant.files.artifacts import write_text
from quant.workflow.job import job


def run(command: list[str | Path], what: str) -> str:
    """Output of a command, which also goes into the log as it comes; its last words in one line where it fails."""
    said: list[str] = []
    try:
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise InputError(f"AutoAWQ's environment: {what} cannot start ({error.strerror}: {command[0]})") from None
    with process:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", file=sys.stderr)
    if process.returncode:
        errors = [line for line in said if line.startswith("ERROR")] or [line for line in said if line.strip()]
        reason = (errors or ["it said nothing"])[-1].strip().removeprefix("ERROR: ")
        raise InputError(
            f"AutoAWQ's environment: {what} failed ({reason}); mend that, or leave autoawq out of study.methods"
        )
    return "".join(said)


def build(folder: Path, requirements: Path) -> str:
    """The environment in `folder`; what pip freeze says of it."""
    made = importlib.util.find_spec("awq") is not None  # by conda, whose Python runs this
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run([sys.executable, "-m", "venv", *(["--system-site-packages"] if made else []), folder], "python -m venv")
        pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        if not made:
            run([*pip, "install", "--no-compile", "--progress-bar=off", "--requirement", requirements], "pip install")
        run([folder / "bin" / "python", "-W", "ignore", "-c", "import awq"], "import awq")
        return run([*pip, "freeze"], "pip freeze")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    with job(snakemake.log[0]):
        environment = Path(snakemake.output.complete).parent
        packages = build(environment, Path(snakemake.input.requirements))
        write_text(snakemake.output.packages, packages)
        write_text(snakemake.output.complete, f"{environment / 'bin' / 'python'}\n")
