"""How a run ended, in a few lines: from Snakemake's own words and from what its jobs left."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from quant.workflow import outcome

SLURM = (
    "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'. For further error details see the cluster/cloud log.\n"
    "    and a second line"
)


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, logs: dict[str, str]) -> str:
    monkeypatch.chdir(tmp_path)
    for name, text in logs.items():
        Path(name).write_text(text)
    Path("snakemake.log").write_text(said)
    return outcome.failure("snakemake.log")


def block(rule: str, jobid: int, message: str = "None", indent: str = "") -> str:
    lines = [f"Error in rule {rule}:", f"    message: {message}", f"    jobid: {jobid}", "    input: a, b"]
    lines += ["    output: c", f"    log: {rule}.log, /slurm/7.log (check log file(s) for error details)", ""]
    return "".join(f"{indent}{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("log", "message", "line"),
    [
        ("12:00:00 begun\nERROR x.json: is not JSON; rebuild it\n", "None", "x.json: is not JSON; rebuild it"),
        ("Traceback (most recent call last):\n  File x\nValueError: bad\n", SLURM, "ValueError: bad"),
        ("12:00:00 begun\nblock 3 of 9\n", SLURM, "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'"),
        ("12:00:00 begun\nblock 3 of 9\n", "None", "block 3 of 9"),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n", "None", "interrupted"),
        ("12:00:00 begun\n12:00:03 done in 3.0 s\n", "None", "its work was done: was it interrupted?"),
        ("", "None", "it said nothing: was it killed?"),
    ],
)
def test_the_line_that_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, message: str, line: str
) -> None:
    said = f"[date]\n{block('quantize', 3, message)}[date]\n"
    assert told(tmp_path, monkeypatch, said, {"quantize.log": log}) == f"quantize failed: {line}\n    log: quantize.log"


def test_a_full_disk_takes_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    line = "quantize.log: cannot be written (its disk is full, or read-only); mend that and run again"
    assert f"quantize failed: {line}\n" in told(tmp_path, monkeypatch, block("quantize", 3), {})


def test_a_job_that_a_retry_saved_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = block("convert", 1) + block("plot", 2) + "Finished jobid: 1 (Rule: convert)\n"
    logs = {"convert.log": "12:00:00 done in 3 s\n", "plot.log": "ERROR no room\n"}
    assert told(tmp_path, monkeypatch, said, logs) == "plot failed: no room\n    log: plot.log"


def test_of_a_group_only_the_job_that_failed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "    message: Error in group x\n" + "".join(
        block(rule, place, indent="    ") for place, rule in enumerate(("summarize", "plot", "report"))
    )
    logs = {"summarize.log": "12:00:00 done in 3 s\n", "plot.log": "ERROR no room\n"}
    assert told(tmp_path, monkeypatch, said, logs) == "plot failed: no room\n    log: plot.log"


def test_no_job_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(tmp_path, monkeypatch, "MissingInputException in rule convert\n", {}) == ""


def test_the_three_numbers_are_the_first_data_sets(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(
        "model,method,dataset,nll,ppl,delta_nll,delta_nll_low,delta_nll_high\n"
        "m,original,a,1.0,2.718,0,0,0\nm,worse,a,1.3,3.669,0.3,0.2,0.4\nm,better,a,1.1,3.004,0.1,0.05,0.15\n"
        "m,original,b,0.5,1.649,0,0,0\nm,worse,b,0.5,1.649,0.0,0.0,0.0\n"
    )
    (tmp_path / "report.html").touch()
    first = f"Report: {tmp_path / 'report.html'}"
    assert outcome.success(tmp_path).splitlines() == [
        first,
        "m on a: perplexity 2.72; least harmed by better, with 3.00, delta_nll 0.1000 [0.0500, 0.1500]",
    ]
    os.utime(tmp_path / "report.html", (0, 0))
    assert outcome.success(tmp_path).splitlines()[0] == f"{first}, of an earlier run: it lacks what this one added"


def test_what_was_chosen_and_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole paths, wherever the shell stands; beside the page, where there is one, and with no other best."""
    (tmp_path / "best").mkdir()
    found = {"model": "m", "method": "gptq_clip", "headline": "gptq_clip", "lines": ["Small.", "Runner-up: x."]}
    (tmp_path / "best/choice.json").write_text(json.dumps(found | {"copy": "results/best/checkpoint"}))
    taken = f"Take {tmp_path}/best/checkpoint\ngptq_clip of m. Small."
    monkeypatch.chdir(tmp_path.parent)
    assert outcome.chosen(Path(tmp_path.name)) == taken
    for name in ("summary.csv", "report.html"):
        (tmp_path / name).touch()
    assert outcome.chosen(Path(tmp_path.name)) == f"Report: {tmp_path}/report.html\n{taken}"
    (tmp_path / "best/choice.json").write_text(json.dumps(found | {"copy": "results/best/model.gguf"}))
    assert f"Take {tmp_path}/best/model.gguf\n" in outcome.chosen(Path(tmp_path.name))


def test_a_method_that_failed_to_answer_is_missing_where_it_is_asked(tmp_path: Path) -> None:
    study = {"models": ["m"], "methods": ["a", "b"], "datasets": [], "tasks": ["t"], "task_methods": ["a"]}
    for log in (
        "evaluate_task/m/a/t.log",
        "evaluate_task/m/a/other.log",
        "evaluate_task/m/b/t.log",
        "write_words/m/a.log",
    ):
        (tmp_path / "logs" / log).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / log).write_text("ERROR broken\n")
    assert outcome.missing(study, tmp_path) == [{"model": "m", "method": "a", "reason": "evaluate_task: broken"}]
    assert outcome.missing(study | {"tasks": []}, tmp_path) == []
    assert outcome.missing(study | {"tasks": []}, tmp_path, words=True)[0]["reason"] == "write_words: broken"
