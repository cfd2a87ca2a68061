"""How a run ended, from what it left: the numbers that matter, or which jobs failed and why."""

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

# a method's own jobs; evaluate is one a data set
STEPS = ("quantize", "quantize_with_model", "quantize_library", "quantize_budget", "measure_error", "evaluate")
FINISHED = re.compile(r"^\d\d:\d\d:\d\d done in ", re.MULTILINE)  # the last line that workflow.job writes
RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")  # the last line of a traceback
# Snakemake's words on a failed job, indented where it is one of a group, whose jobs are all named
ERROR = re.compile(
    r"^( *)Error in rule (\w+):\n(?: +message: (.*)\n)?(?:.*\n)*? +jobid: (\d+)\n(?:.*\n)*? +log: ([^\s,]+)",
    re.MULTILINE,
)
KILLED = "it said nothing: was it killed?"
LITTLE = 10**6  # bytes: what a failed job had written of its outputs is gone again


def reason(said: str, message: str = "") -> str:
    """The one line of a failed job's log that matters: its error; where it has none, since the job was killed, what
    the executor says (message), or the log's last words."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    raised = ["interrupted" if line == "KeyboardInterrupt" else line for line in lines if RAISED.match(line)]
    if lines and FINISHED.match(lines[-1]):
        lines.append("its work was done: was it interrupted?")
    return (errors or raised or [message] * bool(message) or lines or [KILLED])[-1]


def silence(log: Path) -> str:
    """Why a job said nothing."""
    folder = next(parent for parent in log.parents if parent.is_dir())
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < LITTLE:
        return f"{log}: cannot be written (its disk is full, or read-only); mend that and run again"
    return KILLED


def read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def failure(snakemake_log: str | Path) -> str:
    """Rule, reason and log of every job that failed for good; nothing where none did (Snakemake has said what is
    wrong)."""
    said = read(Path(snakemake_log))
    told: dict[tuple[str, str], str] = {}
    for indent, rule, message, jobid, log in ERROR.findall(said):
        text = read(Path(log))
        retried = f"Finished jobid: {jobid} (Rule: {rule})" in said
        # of a group's jobs, some were done before one failed, and those after it never began
        bystander = bool(indent) and (not text or FINISHED.search(text))
        if not (retried or bystander):
            why = reason(text, message.removeprefix("None").partition(". ")[0])
            told[rule, log] = silence(Path(log)) if why == KILLED else why
    return "\n".join(f"{rule} failed: {why}\n    log: {log}" for (rule, log), why in told.items())


def page(results: Path) -> str:
    """Where the report is."""
    report, summary = results / "report.html", results / "summary.csv"
    earlier = report.stat().st_mtime < summary.stat().st_mtime
    return f"Report: {report.absolute()}" + (", of an earlier run: it lacks what this one added" if earlier else "")


def success(results: Path) -> str:
    """Where the report is, and of each model on its first data set: the original's perplexity, the best method's, and
    by how much that is worse."""
    lines = [page(results)]
    with (results / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        first = [row for row in of_model if row["dataset"] == of_model[0]["dataset"]]
        original, *methods = sorted(first, key=lambda row: (row["method"] != "original", float(row["nll"])))
        if methods and math.isfinite(float(methods[0]["delta_nll"])):
            best = methods[0]
            low, high = (float(best[f"delta_nll_{end}"]) for end in ("low", "high"))
            lines.append(
                f"{model} on {best['dataset']}: perplexity {float(original['ppl']):.2f}; least harmed by "
                f"{best['method']}, with {float(best['ppl']):.2f}, "
                f"delta_nll {float(best['delta_nll']):.4f} [{low:.4f}, {high:.4f}]"
            )
    return "\n".join(lines)


def chosen(results: Path) -> str:
    """Which checkpoint was taken, what it is and where; and the page, where there is one. That says which method harms
    least whether packed or not: not here, where one is taken."""
    choice = json.loads((results / "best/choice.json").read_text(encoding="utf-8"))
    found = f"{choice['method']} of {choice['model']}. {choice['lines'][0]}"
    lines = [f"Take {(results / 'best' / Path(choice['copy']).name).absolute()}", found]
    there = all((results / name).is_file() for name in ("report.html", "summary.csv"))
    return "\n".join([*([page(results)] if there else []), *lines])


def missing(study: dict[str, Any], results: Path, words: bool = False) -> list[dict[str, str]]:
    """model, method and reason of every method that a failed job left without a result.

    Its last run is in the job's log; a method whose jobs have not run yet is not missing. words: whether methods write.
    """
    found = []
    for model in study["models"]:
        for method in study["methods"]:
            logs = [results / f"logs/{step}/{model}/{method}.log" for step in STEPS[:-1]]
            logs += [results / f"logs/export/{model}/{method}/gguf.log"] * (method in study.get("gguf", ()))
            logs += [results / f"logs/evaluate/{model}/{method}/{dataset}.log" for dataset in study["datasets"]]
            if method in study.get("task_methods", ()):
                logs += [results / f"logs/evaluate_task/{model}/{method}/{task}.log" for task in study["tasks"]]
                logs += [results / f"logs/write_words/{model}/{method}.log"] * words
            failed = [log for log in logs if log.is_file() and not FINISHED.search(read(log))]
            if failed:
                step = failed[0].relative_to(results / "logs").parts[0]
                found.append({"model": model, "method": method, "reason": f"{step}: {reason(read(failed[0]))}"})
    return found
