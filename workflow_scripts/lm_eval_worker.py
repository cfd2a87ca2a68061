"""Items of a task of lm-evaluation-harness, by the interpreter of its own environment: imports nothing of quant.

lm_eval_worker.py JOB.json: {"task": a name or the path of a YAML file, "n_items", "num_fewshot", "out"}. Writes to
`out` {"items": [{"requests", "gold", "lengths"}, …], "scores", "versions", "rule"}, or one line: {"refused"} of
what the user asks, {"error"} of what lm-eval says.
"""

import difflib
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils
from lm_eval.tasks import TaskManager

KINDS = ("multiple_choice", "loglikelihood")
SCORES = ("acc", "acc_norm")  # of choices, as quant.data.task_items takes them


class Refused(Exception):
    """What the user can mend, in one line."""


def shut_in() -> None:
    """A task's templates get no further than their document."""
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox


def leaves(name: str) -> list[Any]:
    """The task, or those of a group."""
    path = Path(name)
    manager = TaskManager(include_defaults=not path.is_file())
    if not path.is_file() and name not in manager.all_tasks:
        near = difflib.get_close_matches(name, manager.all_tasks, 1)
        raise Refused(f"lm-eval has no task {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    found = list(manager.load([name])["tasks"].values())
    for task in found:
        if task.OUTPUT_TYPE not in KINDS:
            raise Refused(f"{name} is of output_type {task.OUTPUT_TYPE}; write {' or '.join(KINDS)}")
        if task.config.unsafe_code or callable(task.config.process_results):
            what = "unsafe_code" if task.config.unsafe_code else "process_results, a function that scores it,"
            raise Refused(f"{name} has {what}, which is not run here; take a task without it")
    return found


def items(task: Any, n: int, num_fewshot: int | None) -> list[dict[str, Any]]:
    """Its first n items; the examples before them are lm-eval's."""
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=n, rank=0, world_size=1)
    asked: dict[int, list[Any]] = {}
    for instance in task.instances:
        asked.setdefault(instance.doc_id, []).append(instance)
    return [item(task, sorted(instances, key=lambda one: one.idx)) for instances in asked.values()]


def item(task: Any, instances: list[Any]) -> dict[str, Any]:
    doc = instances[0].doc
    if task.OUTPUT_TYPE == "loglikelihood":
        context, continuation = instances[0].args
        return {"requests": [[context, continuation]], "gold": 0, "lengths": [len(continuation)]}
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise Refused(f"item {instances[0].doc_id} has no single right answer among its choices (it says {gold!r})")
    requests = [
        list(instance.args) for instance in instances[: len(choices)]
    ]  # behind them: those of mutual information
    return {"requests": requests, "gold": gold, "lengths": list(map(len, choices))}


def source(task: Any) -> str:
    """Its data set, its configuration, and of a hub's the commit, by which `datasets` names a folder of its cache."""
    found = f"{task.config.dataset_path} {task.config.dataset_name or ''}".strip()
    folders = {Path(file["filename"]).parent.name for part in task.dataset.values() for file in part.cache_files}
    return "@".join([found, *sorted(name for name in folders if re.fullmatch("[0-9a-f]{40}", name))])


def one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or "it said nothing"
    return f"{type(error).__name__}: {words[:300]}"


def run(job: dict[str, Any]) -> dict[str, Any]:
    shut_in()
    tasks = leaves(job["task"])
    kinds = {task.OUTPUT_TYPE for task in tasks}
    if len(kinds) > 1:
        raise Refused("has tasks of words and of choices; name one of them")
    found: list[dict[str, Any]] = []
    for task in tasks:
        found += items(task, max(1, job["n_items"] // len(tasks)), job["num_fewshot"])
    listed = set.intersection(*(set(task.aggregation()) for task in tasks))
    scores = ["greedy"] if kinds == {"loglikelihood"} else [score for score in SCORES if score in listed]
    configs = [task.config for task in tasks]
    versions = {"lm_eval": metadata.version("lm_eval"), "datasets": metadata.version("datasets")}
    shots = sorted({one.num_fewshot or 0 for one in configs})
    names = ", ".join(task.config.task for task in tasks)
    rule = f"lm-eval {versions['lm_eval']}, {names}, {shots[-1]} examples before each"
    return {
        "items": found,
        "scores": scores or ["acc"],
        "rule": rule,
        "sources": sorted(set(map(source, tasks))),
        "versions": versions | {task.config.task: str(task.VERSION) for task in tasks},
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        result = run(given)
    except Refused as refusal:
        result = {"refused": str(refusal)}
    except Exception as error:  # templates and data sets raise what they like, and each is the user's to mend
        result = {"error": one_line(error)}
    Path(given["out"]).write_text(json.dumps(result), encoding="utf-8")
