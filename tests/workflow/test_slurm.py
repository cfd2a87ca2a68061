"""The tiny study through profiles/slurm on a real one-node SLURM: the same numbers, one GPU job at a time, retries."""

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests import tiny
from tests.workflow import slurm
from tests.workflow.test_faults import damage

pytestmark = pytest.mark.slow
TIMES = ["tokens_per_s", "quantize_s"]
QUICK = [
    *("--latency-wait", "5", "--jobs", "4", "--slurm-init-seconds-before-status-checks", "8"),
    *("--slurm-status-command", "squeue", "--slurm-no-account", "--default-resources", "mem_mb=1000", "runtime=10"),
    *("slurm_partition=main", "--seconds-between-status-checks", "2"),
]
GREEDY = ["--set-resources", "collect_statistics:mem_mb=450*attempt*attempt*attempt"]


class Done(tuple[Path, str, list[dict[str, str]]]):
    """The clone, what the terminal showed, and SLURM's records."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = slurm.missing()
    if reason:
        pytest.skip(reason)
    folder = tiny.clone(tmp_path_factory.mktemp("slurm") / "clone")
    state = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    try:
        with slurm.cluster(state) as variables, pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setenv("PWD", str(folder))  # as a shell says where it stands
            command = [sys.executable, "-m", "snakemake", "results/report.html", "--configfile", "tiny.yaml"]
            command += ["--workflow-profile", "profiles/slurm", *QUICK, *GREEDY]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            seen = done.stdout + done.stderr
            records = slurm.jobs(variables)
            assert done.returncode == 0, seen
            yield folder, seen, records
    finally:
        shutil.rmtree(state, ignore_errors=True)


def of_rule(records: list[dict[str, str]], rule: str) -> list[dict[str, str]]:
    return [record for record in records if f"rule_{rule}" in record.get("Comment", "")]


def test_the_report_has_the_local_runs_numbers(ran: Any, study: Path) -> None:
    folder, seen, _ = ran
    found, local = (pd.read_csv(root / "results/summary.csv") for root in (folder, study))
    numbers = local.select_dtypes("number").columns.difference(TIMES)
    pd.testing.assert_frame_equal(found[numbers], local[numbers], check_exact=True)
    assert (folder / "results/report.html").is_file() and "Report: results/report.html" in seen


def test_jobs_with_a_gpu_never_overlap(ran: Any) -> None:
    _, _, records = ran
    spans = sorted((r["StartTime"], r["EndTime"]) for r in records if "gpu" in str(r))
    assert len(spans) >= 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), spans


def test_a_job_over_its_memory_comes_back_with_more(ran: Any) -> None:
    _, _, records = ran
    tries = sorted(of_rule(records, "collect_statistics"), key=lambda record: int(record["JobId"]))
    assert [record["JobState"] for record in tries][-1] == "COMPLETED" and len(tries) > 1, tries
    assert tries[0]["JobState"] in ("FAILED", "OUT_OF_MEMORY")
    assert tries[0]["MinMemoryNode"] != tries[-1]["MinMemoryNode"]


def test_failures_on_nodes_end_with_rule_line_and_log(ran: Any) -> None:
    """A job alone, and one of a group, of which only that one is named."""
    folder, _, _ = ran
    overlay = tiny.OVERLAY | {"methods": {"bad": {"noise_injection": 1e300}}}
    (folder / "bad.yaml").write_text(yaml.safe_dump(overlay))
    damage(folder / "results/tiny/rtn_g/evaluation/heldout.json", "flipped")
    command = [sys.executable, "-m", "snakemake", "results/tiny/bad/quantize.json", "results/report.html"]
    command += ["--forcerun", "summarize", "--configfile", "bad.yaml", "--workflow-profile", "profiles/slurm", *QUICK]
    done = subprocess.run([*command, "--keep-going", "--retries", "0"], cwd=folder, capture_output=True, text=True)
    told = re.findall(r"^(\w+) failed: (.*)\n    log: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    assert done.returncode == 1 and {rule for rule, _, _ in told} == {"quantize", "summarize"}, done.stderr
    reasons = {rule: (line, log) for rule, line, log in told}
    assert reasons["quantize"][1] == "results/logs/quantize/tiny/bad.log"
    assert "results/tiny/rtn_g/evaluation/heldout.json" in reasons["summarize"][0]
    assert reasons["summarize"][1] == "results/logs/summarize.log"
