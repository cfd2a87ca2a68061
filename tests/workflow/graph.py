"""Which job reads what another makes, written by hand, and what follows from a change."""

from collections import Counter
from collections.abc import Iterable

METHODS = ["rtn_g", "gw_awq", "gw_praq"]


# what each job reads; {m} is one job a method
GRAPH = {
    "convert": [],
    "check_study": ["convert"],
    "tokenize_calibration": ["convert"],
    "tokenize_dataset": ["convert"],
    "check_texts": ["convert", "tokenize_calibration", "tokenize_dataset"],
    "collect_statistics": ["convert", "tokenize_calibration"],
    "quantize:gw_awq": ["convert", "collect_statistics"],
    "quantize:gw_praq": ["convert", "collect_statistics"],
    "quantize:rtn_g": ["convert"],
    "quantize:rtn_g_sym": ["convert"],
    "measure_error:{m}": ["convert", "quantize:{m}", "collect_statistics"],
    "evaluate_original": ["convert", "tokenize_dataset"],
    "evaluate:{m}": ["quantize:{m}", "tokenize_dataset", "evaluate_original"],
    "check_mse": ["convert", "collect_statistics", "tokenize_calibration", "tokenize_dataset"],
    "measure_heldout": ["convert", "check_mse", "quantize:*"],
    "measure_sensitivity:rtn_g": ["quantize:rtn_g", "evaluate_original", "tokenize_dataset", "collect_statistics"],
    "measure_sensitivity:rtn_g_sym": [
        "quantize:rtn_g_sym",
        "evaluate_original",
        "tokenize_dataset",
        "collect_statistics",
    ],
    "summarize_sensitivity": ["measure_sensitivity:rtn_g", "measure_sensitivity:rtn_g_sym"],
    "analyse_preactivations": ["convert", "collect_statistics"],
    "plot_preactivations": ["analyse_preactivations"],
    "deep_dive": ["convert", "collect_statistics"],
    "plot_deep_dive": ["deep_dive"],
    "synthetic_benchmark": [],
    "plot_synthetic": ["synthetic_benchmark"],
    "summarize": ["evaluate_original", "evaluate:*", "measure_error:*", "check_texts"],
    "answer_questions": ["summarize", "summarize_sensitivity", "check_mse", "measure_heldout"],
    "describe": ["summarize", "quantize:*"],
    "plot": ["summarize", "check_mse", "answer_questions"],
    "report": ["check_study", "plot", "describe", "plot_preactivations", "plot_deep_dive", "plot_synthetic"],
}
PLOTS = ["plot_preactivations", "plot_deep_dive", "plot_synthetic"]


def graph(methods: Iterable[str]) -> dict[str, set[str]]:
    """Inputs of every job of a study of these methods."""
    jobs: dict[str, set[str]] = {}
    for job, inputs in GRAPH.items():
        for method in methods if "{m}" in job else [""]:
            read = {name.format(m=method) for name in inputs}
            jobs[job.format(m=method)] = {
                one for name in read for one in ([name.replace("*", m) for m in methods] if "*" in name else [name])
            }
    return jobs


def following(stale: set[str], methods: Iterable[str] = METHODS) -> dict[str, int]:
    """The stale jobs and all that follow from them, counted by rule."""
    jobs = graph(methods)
    assert stale <= jobs.keys(), stale - jobs.keys()
    while more := {job for job, inputs in jobs.items() if inputs & stale} - stale:
        stale = stale | more
    return dict(Counter(job.partition(":")[0] for job in stale))


def each(rule: str, methods: Iterable[str] = METHODS) -> set[str]:
    return {f"{rule}:{method}" for method in methods}
