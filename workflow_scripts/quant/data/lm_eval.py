"""Tasks of lm-evaluation-harness, which runs in an environment of its own and gives their items alone.

The library's own tasks may have functions, which are in its pinned wheel; a task file may not (quant.data.task_yaml).
"""

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from quant.data.task_items import Item
from quant.data.task_yaml import LOCAL, check, plain
from quant.errors import InputError, one_line
from quant.files.artifacts import read_json, write_plain_json
from quant.models.sources.hub import HUB_TIMEOUT

WORKER = Path(__file__).resolve().parents[2] / "lm_eval_worker.py"


def lm_eval_items(spec: dict[str, Any], environment: Path, what: str) -> tuple[list[Item], dict[str, Any]]:
    """Items of the task of a spec (lm_eval or yaml, n_items, num_fewshot), and what lm-eval says of it."""
    python = environment / "bin" / "python"
    if not python.is_file():
        raise InputError(f"{python}: no such file; delete {environment} and run again to rebuild lm-eval's environment")
    path = spec.get("yaml")
    if path is not None:
        check(path, what)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "items.json"
        name = spec["lm_eval"] if path is None else str(Path(path).absolute())
        job = {"task": name, "n_items": spec["n_items"], "num_fewshot": spec["num_fewshot"], "out": str(out)}
        write_plain_json(Path(folder) / "job.json", job)
        trouble = None if path is not None and plain(path).get("dataset_path") in LOCAL else hub_silence()
        run(python, Path(folder) / "job.json", Path(folder if path is None else path).absolute(), trouble, what)
        found = read_json(out)
    if "refused" in found:
        raise InputError(f"{what}: {found['refused']}")
    if "error" in found:
        reason = found["error"] if trouble is None else f"the hub cannot be reached ({trouble}), and {found['error']}"
        raise InputError(f"{what}: {reason}; mend that, or leave it out of study.tasks")
    return [Item([(a, b) for a, b in one["requests"]], one["gold"], one["lengths"]) for one in found["items"]], found


def hub_silence() -> str | None:
    """Why the hub does not answer, asked once, so that nothing tries again and again; None where it does."""
    from huggingface_hub import constants

    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT).close()
    except (OSError, ValueError) as error:
        return one_line(error)
    return None


def run(python: Path, job: Path, beside: Path, trouble: str | None, what: str) -> None:
    """The worker, where the task's files are, its output into our log; with trouble it has what is cached alone."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"PYTHONNOUSERSITE": "1", "HF_DATASETS_TRUST_REMOTE_CODE": "0", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if trouble else {}
    folder = beside if beside.is_dir() else beside.parent
    said = "it said nothing"
    with subprocess.Popen(
        [str(python.absolute()), "-u", str(WORKER), str(job)],
        cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if line.strip():
                said = line.strip()
                print(said, file=sys.stderr)
    if process.returncode:
        raise InputError(f"{what}: lm-eval ended with status {process.returncode} ({said}); the log has all it said")
