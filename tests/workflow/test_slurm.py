"""The tiny study in shards through profiles/slurm on a real one-node SLURM with two stand-in GPUs: the numbers of a
local run in one piece, two jobs with a GPU at a time, retries; checkpoints are in shards, too."""

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
import torch
import yaml

from tests import tiny
from tests.workflow import slurm
from tests.workflow.strike import damage, site

pytestmark = pytest.mark.slow
TIMES = ["tokens_per_s", "quantize_s"]
FILES = ["size_mb", "other_mb", "compression", "file_bits_per_weight"]  # headers are several
SHARDS = 2
OVERLAY = tiny.OVERLAY | {"compute": {"threads": 1, "shards": SHARDS}, "sensitivity": {"methods": []}}
# the first job of collect_shard dies while it writes; Snakemake looks every second whether a job has ended, where the
# plugin waits 10 s longer each time that none has
SITE = """
import os, pathlib, signal, sys

if "--workflow-profile" in sys.orig_argv:
    import asyncio

    sleep = asyncio.sleep
    asyncio.sleep = lambda seconds, *result: sleep(min(seconds, 1), *result)

fsync = os.fsync

def once(file):
    if pathlib.Path(sys.argv[0]).stem.endswith("collect_shard"):
        try:
            os.close(os.open(os.environ["STRUCK"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = once
"""
QUICK = [
    *("--latency-wait", "5", "--jobs", "4", "--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--default-resources", "mem_mb=1000", "runtime=10", "slurm_partition=main"),
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
    tiny.write_overlay(folder, OVERLAY)
    state = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    try:
        with slurm.cluster(state) as variables, pytest.MonkeyPatch.context() as patch:
            for name, value in (variables | {"STRUCK": str(folder / "struck"), "SHARD_BYTES": "60000"}).items():
                patch.setenv(name, value)
            site(folder, patch, SITE)
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
    chances = ["p", "p_holm"]  # of differences near 0
    numbers = local.select_dtypes("number").columns.difference([*TIMES, *FILES, *chances])
    pd.testing.assert_frame_equal(found[numbers], local[numbers], rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(found[chances], local[chances], rtol=1e-4, atol=1e-6)
    words = ["model", "method", "dataset", "storage", "storage_reason"]
    pd.testing.assert_frame_equal(found[words], local[words])
    found, local = (pd.read_csv(root / "results/linears.csv") for root in (folder, study))
    numbers = local.select_dtypes("number").columns.difference(["milliseconds"])
    pd.testing.assert_frame_equal(found[numbers], local[numbers], rtol=1e-5, atol=1e-6)
    assert (folder / "results/report.html").is_file() and f"Report: {folder}/results/report.html" in seen


def test_two_jobs_with_a_gpu_run_at_a_time(ran: Any) -> None:
    _, _, records = ran
    spans = [(r["StartTime"], r["EndTime"]) for r in records if "gpu" in str(r)]
    assert len(spans) >= 16
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2, spans


def test_a_killed_shard_is_made_again_alone(ran: Any) -> None:
    folder, _, records = ran
    states = sorted(record["JobState"] for record in of_rule(records, "collect_shard"))
    assert (folder / "struck").is_file() and states == ["COMPLETED", "COMPLETED", "FAILED"]
    for rule, n in (("quantize_shard", 3), ("evaluate_original_shard", 1), ("evaluate_shard", 3)):
        assert [each["JobState"] for each in of_rule(records, rule)] == ["COMPLETED"] * n * SHARDS
    assert not list((folder / "results").rglob(f"*-of-{SHARDS}*.safetensors"))  # what is summed goes


def test_checkpoints_are_in_shards_that_transformers_loads(ran: Any, study: Path) -> None:
    from transformers import AutoModelForCausalLM

    for method in ("original", "rtn_g"):
        checkpoint = ran[0] / f"results/tiny/{method}/checkpoint"
        assert len(list(checkpoint.glob("model-*-of-*.safetensors"))) > 1
        models = (
            AutoModelForCausalLM.from_pretrained(root) for root in (checkpoint, study / checkpoint.relative_to(ran[0]))
        )
        mine, theirs = (model.state_dict() for model in models)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_job_over_its_memory_comes_back_with_more(ran: Any) -> None:
    _, _, records = ran
    tries = sorted(of_rule(records, "collect_statistics"), key=lambda record: int(record["JobId"]))
    assert [record["JobState"] for record in tries][-1] == "COMPLETED" and len(tries) > 1, tries
    assert tries[0]["JobState"] in ("FAILED", "OUT_OF_MEMORY")
    assert tries[0]["MinMemoryNode"] != tries[-1]["MinMemoryNode"]


def test_failures_on_nodes_end_with_rule_line_and_log(ran: Any) -> None:
    """A job alone, and one of a group, of which only that one is named."""
    folder, _, _ = ran
    overlay = OVERLAY | {"methods": {"bad": {"noise_injection": 1e300}}}
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
