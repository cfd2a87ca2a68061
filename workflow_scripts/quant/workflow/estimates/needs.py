"""What a job asks its executor for: memory, minutes, disk and GPUs, by its rule, its model and the attempt."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from quant.workflow.estimates.amounts import MB, Ask, Estimate
from quant.workflow.estimates.jobs import OF_MODEL, small
from quant.workflow.estimates.rates import SLOW_CPU, SLOW_GPU, seconds
from quant.workflow.estimates.shape import Shape, known_shape

SPARE = 1.3  # times the estimated memory
SNAKEMAKE = 600  # MB of two processes of a cluster's job, before its script starts
PATIENCE = 3  # times the estimated time, on a slow machine
LEAST_MINUTES = 10
# rules whose jobs compute on a GPU where there is one
ON_GPU = {
    *("collect_statistics", "collect_noisy", "collect_jacobian", "collect_end_loss", "collect_attention"),
    *(
        "check_mse",
        "measure_heldout",
        "quantize",
        "quantize_with_model",
        "quantize_library",
        "measure_error",
        "measure_swaps",
    ),
    *("evaluate_original", "evaluate", "evaluate_task", "write_words", "measure_sensitivity", "plan"),
}
# a part of another rule's work, which may take all of its memory
PART_OF = {
    "collect_shard": "collect_statistics",
    "evaluate_original_shard": "evaluate_original",
    "evaluate_shard": "evaluate",
    "quantize_shard": "quantize",
}
DOUBLINGS = 32  # of a second: more than a hundred years
# MB and minutes of jobs whose model is not known before it is fetched
UNKNOWN_MODEL = (3000, 120)
UNKNOWN = {
    "convert": (4000, 60),
    "quantize_library": (16000, 240),
    "quantize_with_model": (8000, 240),
}
# rules that no model makes larger: MB and minutes
PLAIN = {
    "build_lm_eval": (2000, 60),
    "build_library": (2000, 60),
    "make_task": (2000, 30),
    "summarize_tasks": (2000, 20),
    "fetch_package": (1000, 30),
    "plan": (3000, 20),
}


def estimated(rule: str, ask: Ask) -> Estimate:
    return OF_MODEL.get(rule, small())(ask)


def needs(
    rule: str, wildcards: Mapping[str, str], config: Mapping[str, Any], shape: Shape | None, on_gpu: bool
) -> dict[str, int]:
    """mem_mb, runtime in minutes and disk_mb of a job's first attempt; shape: None where it is not known yet."""
    rule = PART_OF.get(rule, rule)
    if rule not in OF_MODEL:
        memory, minutes = PLAIN.get(rule, (1000, 20))
        return {"mem_mb": memory, "runtime": minutes, "disk_mb": 1000}
    if shape is None:
        memory, minutes = UNKNOWN.get(rule, UNKNOWN_MODEL)
        return {"mem_mb": memory, "runtime": minutes, "disk_mb": 2 * memory}
    on_gpu = on_gpu and rule in ON_GPU
    found = estimated(rule, Ask(shape, config, wildcards, on_gpu))
    return {
        "mem_mb": SNAKEMAKE + math.ceil(SPARE * found.ram / MB / 100) * 100,
        "runtime": max(LEAST_MINUTES, math.ceil(PATIENCE * slowly(found, on_gpu) / 60)),
        "disk_mb": max(100, math.ceil(found.disk / MB)),
    }


def slowly(found: Estimate, on_gpu: bool) -> float:
    """Seconds on a slow machine."""
    return seconds(found, SLOW_GPU, "cuda") if on_gpu else seconds(found, SLOW_CPU, "cpu")


def longer(
    rule: str, wildcards: Mapping[str, str], config: Mapping[str, Any], shape: Shape | None, on_gpu: bool
) -> float:
    """How long a job takes, 0 to 1: a step for each doubling. The longest first leaves the least to wait for at the
    end, when other cards have nothing to do (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969); within a
    step Snakemake takes those first that free the most disk."""
    rule = PART_OF.get(rule, rule)
    if shape is None:
        spent = 60.0 * UNKNOWN.get(rule, UNKNOWN_MODEL)[1]
    else:
        on_gpu = on_gpu and rule in ON_GPU
        spent = slowly(estimated(rule, Ask(shape, config, wildcards, on_gpu)), on_gpu)
    return min(DOUBLINGS - 1, int(math.log2(max(1.0, spent)))) / DOUBLINGS


def of_jobs(config: Mapping[str, Any], on_gpu: Callable[[], bool], about: Callable[..., Any]) -> Callable[..., Any]:
    """`needs` or `longer` as a function of a job's wildcards and rule; on_gpu: whether jobs compute on one."""

    def of(wildcards: Any, rulename: str) -> Any:
        given = dict(wildcards.items())
        model = given.get("model")
        shape = None if model is None else known_shape(model, config["models"][model]["source"])
        return about(rulename, given, config, shape, on_gpu())

    return of


def resources(config: Mapping[str, Any], on_gpu: Callable[[], bool]) -> dict[str, Callable[..., int]]:
    """Resources of every rule, as functions that Snakemake asks for each job."""
    of = of_jobs(config, on_gpu, needs)

    def asked(key: str) -> Callable[..., int]:
        return lambda wildcards, attempt, rulename: of(wildcards, rulename)[key] * attempt

    return {key: asked(key) for key in ("mem_mb", "runtime", "disk_mb")}


def longest_first(config: Mapping[str, Any], on_gpu: Callable[[], bool]) -> Callable[..., float]:
    """Priority of a rule's jobs, below 1."""
    of = of_jobs(config, on_gpu, longer)
    return lambda wildcards, rulename: of(wildcards, rulename)
