"""A checkpoint's answers to a task's items, from files to a file."""

import logging
import time
from typing import Any

import numpy as np
import torch

from quant.data.task_items import Item, requests_of
from quant.data.task_items import load as load_task
from quant.errors import InputError
from quant.evaluation.asked import Asked
from quant.evaluation.head import Head
from quant.evaluation.items import Likelihood, log_likelihoods
from quant.evaluation.perplexity import load_model
from quant.files.artifacts import mark, require, write_json
from quant.runtime.compute import batch_tokens, device, dtype

logger = logging.getLogger("quant")


def answered(item: Item, found: list[Likelihood], score: str) -> dict[str, Any]:
    """An item's row: log p of every choice, in nats; its answer and whether it is right; log p of the right one, among
    the choices where there are several. A word's answer is whether it is the greedy one."""
    log_p = np.array([one.log_p for one in found])
    row = {"log_p": log_p.tolist(), "gold": item.gold}
    if score == "greedy":
        right = found[0].greedy
        return row | {"answer": int(right), "right": right, "right_log_p": float(log_p[0])}
    answer = int(np.argmax(log_p / np.array(item.lengths, dtype=float) if score == "acc_norm" else log_p))
    among = log_p - np.logaddexp.reduce(log_p)
    return row | {"answer": answer, "right": answer == item.gold, "right_log_p": float(among[item.gold])}


def run(asked: Asked, task_path: str, spec: dict[str, Any], out: str) -> None:
    """A checkpoint's answers to every item of a task. spec: of the task, as the configuration has it; what was not made
    from that is refused."""
    checkpoint, compute, task = asked.checkpoint, asked.compute, load_task(task_path)
    require(task_path, task.provenance, spec=spec)
    made = asked.made()
    where = device(compute["device"])
    requests = requests_of(task, checkpoint)
    with torch.inference_mode():
        head = Head(load_model(asked.run, where, dtype(compute["dtype"], where, checkpoint)), where)
    largest = max(max(each.context + each.continuation) for choices in requests for each in choices)
    if largest >= head.vocabulary:
        raise InputError(
            f"{checkpoint}: its tokenizer gives id {largest}, the model has {head.vocabulary} "
            "embeddings; give the tokenizer that belongs to this model"
        )
    begun = time.perf_counter()
    found = log_likelihoods(head, requests, batch_tokens(compute["batch_tokens"], where))
    seconds = time.perf_counter() - begun
    rows = [answered(item, one, task.score) for item, one in zip(task.items, found, strict=True)]
    logger.info("%d of %d items right, %.1f s", sum(row["right"] for row in rows), len(rows), seconds)
    write_json(
        out,
        {
            **{key: asked.names[key] for key in ("model", "method", "task")},
            "score": task.score,
            "rule": task.rule,
            "chance": task.chance,
            "seconds": seconds,
            "checkpoint": mark(made),
            "items": rows,
            "provenance": {**made, "task_fingerprint": task.fingerprint, "device": where},
        },
    )
