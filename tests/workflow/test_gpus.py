"""Jobs that Snakemake runs at once have a card each."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quant.runtime import cards
from tests import tiny
from tests.unit.runtime.machines import machine
from tests.workflow.strike import site

SNAKEFILE = """
rule all:
    input: expand("{n}.json", n=range(8))
rule compute:
    output: "{n}.json"
    resources: gpu=1
    script: "compute.py"
"""
SCRIPT = """
import json, os, pathlib, time
from quant.runtime import cards
cards.take(root=pathlib.Path("."))
begun = time.time()
time.sleep(0.5)
said = {"card": os.environ["CUDA_VISIBLE_DEVICES"], "begun": begun, "ended": time.time()}
pathlib.Path(snakemake.output[0]).write_text(json.dumps(said))
"""


def test_as_many_jobs_as_cards_each_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, *(f"nvidia{i}" for i in range(4)))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "compute.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT / "workflow_scripts"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in cards.HIDING:
        monkeypatch.delenv(name, raising=False)
    done = tiny.snakemake(tmp_path, "all", config=None, cores=4)
    assert done.returncode == 0, done.stderr
    jobs = sorted((json.loads(file.read_text()) for file in tmp_path.glob("*.json")), key=lambda job: job["begun"])
    assert len(jobs) == 8 and {job["card"] for job in jobs} == {"0", "1", "2", "3"}
    together = [(a, b) for a, b in itertools.combinations(jobs, 2) if b["begun"] < a["ended"]]
    assert together and all(a["card"] != b["card"] for a, b in together)


def test_shards_are_jobs_before_a_sum_and_only_where_asked_for(study: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "sharded.yaml"
    compute = tiny.OVERLAY["compute"] | {"shards": 3}
    overlay.write_text(yaml.safe_dump(tiny.OVERLAY | {"compute": compute}))
    found = tiny.pending(study, overlay)
    shards = {"collect_shard": 3, "quantize_shard": 12, "evaluate_original_shard": 3, "evaluate_shard": 9}
    assert {rule: n for rule, n in found.items() if rule.endswith("_shard")} == shards
    assert (found["collect_statistics"], found["evaluate_original"], found["evaluate"]) == (1, 1, 3)
    assert tiny.pending(study) == {}


FOUND = """
import sys
if "snakemake" in " ".join(sys.orig_argv):
    sys.path.insert(0, SCRIPTS)
    from quant.runtime import cards
    from quant.workflow import gpus
    cards.count = lambda root=None: 2
    gpus.torch_is_for_gpus = lambda version: True
    sys.path.pop(0)
"""


@pytest.mark.parametrize(("shown", "threads", "shards"), [(None, 4, 2), ("1", 8, 0)])
def test_the_cards_of_a_host_are_found(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, threads: int, shards: int
) -> None:
    """They are the jobs that may use one at once, between whom cores are shared out, and shards that are `auto`."""
    site(tmp_path, monkeypatch, FOUND.replace("SCRIPTS", repr(str(study / "workflow_scripts"))))
    for name in cards.HIDING:
        monkeypatch.delenv(name, raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    overlay = tmp_path / "found.yaml"
    overlay.write_text(yaml.safe_dump(tiny.OVERLAY | {"compute": {"shards": "auto"}}))
    command = [sys.executable, "-m", "snakemake", "-n", "results/summary.csv", "--configfile", str(overlay)]
    command += ["--cores", "8", "--forcerun", "collect_statistics"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and tiny.pending_in(said).get("collect_shard", 0) == shards, said
    found = re.search(r"^rule collect_statistics:\n(?:    .*\n)*?    threads: (\d+)$", said, re.MULTILINE)
    assert found and int(found[1]) == threads, said
