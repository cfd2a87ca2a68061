"""How long Snakemake takes to say what a study would run: `python benchmarks/dag.py` prints seconds, and as a ratio to
`snakemake --version`.

Nothing is computed: the finished study was made by scripts that leave empty files.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import tiny

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
TARGET = ["results/report.html", "--configfile", "many.yaml", "--cores", "2", "--resources", "gpu=2"]


def study(n_models: int, n_methods: int, n_datasets: int) -> dict:
    """So many of each, by changes to the tests' tiny study; the methods differ in salience, bits and group_size."""
    models = {f"m{i}": {"source": {"directory": "inputs/model"}} for i in range(n_models)}
    datasets = {f"d{i}": tiny.OVERLAY["datasets"]["heldout"] for i in range(n_datasets)}
    kinds = ({"salience": "l1"}, {"salience": "praq", "clip": True}, {"salience": "l2", "rounding": "gptq"}, {})
    methods = {
        f"x{i}": kinds[i % 4] | {"bits": (2, 3, 4, 8)[i // 4 % 4], "group_size": 2 ** (i // 16)}
        for i in range(n_methods)
    }
    names = {"models": list(models), "datasets": list(datasets), "methods": list(methods)}
    return tiny.OVERLAY | {"study": names, "models": models, "datasets": datasets, "methods": methods}


def seconds(folder: Path, *arguments: str) -> tuple[float, str]:
    """Of one command, and what it printed."""
    begun = time.perf_counter()
    done = subprocess.run([*SNAKEMAKE, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - begun, done.stdout + done.stderr


STUB = """from pathlib import Path

for path in map(Path, snakemake.output):
    path.touch() if path.suffix else path.mkdir(exist_ok=True)
"""


def finish(folder: Path) -> None:
    """Every job run, by scripts that only touch their outputs."""
    for script in (folder / "workflow_scripts").glob("*.py"):
        script.write_text(STUB)
    seconds(folder, *TARGET)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for size, finished in (((10, 40, 1), False), ((1, 40, 3), True)):
            folder = tiny.clone(Path(name) / f"{finished}")
            version = min(seconds(folder, "--version")[0] for _ in range(3))
            (folder / "many.yaml").write_text(yaml.safe_dump(study(*size)))
            if finished:
                finish(folder)
            took, said = seconds(folder, "--dry-run", *TARGET)
            if finished and "Nothing to be done" not in said:
                sys.exit(f"not finished:\n{said}")
            jobs = re.search(r"^total +(\d+)", said, re.MULTILINE)
            what = "{} models × {} methods × {} data sets".format(*size)
            state = "up to date" if finished else f"{jobs[1]} jobs"
            print(f"{what}, {state}: {took:.1f} s, {took / version:.1f} × snakemake --version")
