"""Jobs that Snakemake runs at once have a card each."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from quant.models import cards
from tests import tiny
from tests.unit.models.test_cards import machine

SNAKEFILE = """
rule all:
    input: expand("{n}.json", n=range(6))
rule compute:
    output: "{n}.json"
    resources: gpu=1
    script: "compute.py"
"""
SCRIPT = """
import json, os, pathlib, time
from quant.models import cards
cards.take(root=pathlib.Path("."))
begun = time.time()
time.sleep(0.3)
said = {"card": os.environ["CUDA_VISIBLE_DEVICES"], "begun": begun, "ended": time.time()}
pathlib.Path(snakemake.output[0]).write_text(json.dumps(said))
"""


def test_as_many_jobs_as_cards_each_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, "nvidia0", "nvidia1")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "compute.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT / "workflow_scripts"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in cards.HIDING:
        monkeypatch.delenv(name, raising=False)
    done = tiny.snakemake(tmp_path, "all", config=None)
    assert done.returncode == 0, done.stderr
    jobs = sorted((json.loads(file.read_text()) for file in tmp_path.glob("*.json")), key=lambda job: job["begun"])
    assert len(jobs) == 6 and {job["card"] for job in jobs} == {"0", "1"}
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
