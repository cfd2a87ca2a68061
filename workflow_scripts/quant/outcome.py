"""How a run ended, from what it left: the numbers that matter, or which jobs failed and why."""

import csv
import math
import re
from pathlib import Path
from typing import Any

STEPS = ("quantize", "quantize_autoawq", "measure_error", "evaluate")  # a method's own jobs
FINISHED = re.compile(r"^\d\d:\d\d:\d\d done in ", re.MULTILINE)  # the last line that quant.job writes


def reason(log: Path) -> str:
    """The one line of a failed job's log that matters: its error, or its last words where it was killed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    return (errors or lines or ["it said nothing: was it killed?"])[-1]


def failed_logs(said: str) -> list[tuple[str, str]]:
    """(rule, log) of the jobs that failed for good, from Snakemake's own log, each once."""
    found = re.findall(r"^Error in rule (\w+):.*?^ +log: ([^\s,]+)", said, re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(found))


def failure(snakemake_log: str | Path) -> str:
    """Rule, reason and log of every job that failed; nothing where none did (Snakemake has said what is wrong)."""
    said = Path(snakemake_log).read_text(encoding="utf-8", errors="replace")
    return "\n".join(
        f"{rule} failed: {reason(Path(log)) if Path(log).is_file() else 'it left no log'}\n    log: {log}"
        for rule, log in failed_logs(said)
    )


def success(results: Path) -> str:
    """Where the report is, and of each model on its first data set: the original's perplexity, the best method's, and
    by how much that is worse."""
    lines = [f"Report: {results / 'report.html'}"]
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
                f"{model} on {best['dataset']}: perplexity {float(original['ppl']):.2f}; best is {best['method']} with "
                f"{float(best['ppl']):.2f}, delta_nll {float(best['delta_nll']):.4f} [{low:.4f}, {high:.4f}]"
            )
    return "\n".join(lines)


def missing(study: dict[str, Any], results: Path) -> list[dict[str, str]]:
    """model, method and reason of every method that a failed job left without a result.

    Its last run is in the job's log; a method whose jobs have not run yet is not missing.
    """
    found = []
    for model in study["models"]:
        for method in study["methods"]:
            logs = [results / f"logs/{step}/{model}/{method}.log" for step in STEPS[:3]]
            logs += [results / f"logs/evaluate/{model}/{method}/{dataset}.log" for dataset in study["datasets"]]
            failed = [log for log in logs if log.is_file() and not FINISHED.search(log.read_text(errors="replace"))]
            if failed:
                step = failed[0].relative_to(results / "logs").parts[0]
                found.append({"model": model, "method": method, "reason": f"{step}: {reason(failed[0])}"})
    return found
