"""What a checkpoint writes on by itself: its greedy continuations of a task's contexts, from files to a file."""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from quant.data.task_items import LEAST, prompts_of, requests_of
from quant.data.task_items import load as load_task
from quant.errors import InputError
from quant.evaluation.asked import Asked
from quant.evaluation.perplexity import load_model
from quant.files.artifacts import mark, read_json, write_json
from quant.models.structure.positions import positions_of
from quant.models.tokenization import tokenizers
from quant.runtime.compute import batch_tokens, device, dtype

logger = logging.getLogger("quant")


@torch.inference_mode()
def written(model: Any, prompts: Tensor, tokens: int, ends: list[int], room: int) -> list[list[int]]:
    """The likeliest next token, again and again, behind each of prompts [n, width]: at most so many, up to the first of
    `ends`, which is kept. room: tokens in a batch."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # not the checkpoint's own, whose penalties would be merged in
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, pad_token_id=ends[0] if ends else 0, eos_token_id=ends or None
    )
    found: list[list[int]] = []
    for some in prompts.split(max(1, room // (prompts.shape[1] + tokens))):
        some = some.to(model.device)
        ids = model.generate(some, attention_mask=torch.ones_like(some), generation_config=greedy)
        found += [cut(row[some.shape[1] :].tolist(), ends) for row in ids]
    return found


def cut(ids: list[int], ends: list[int]) -> list[int]:
    """Up to the first end, which is kept; what follows it is padding."""
    at = next((i for i, one in enumerate(ids) if one in ends), len(ids))
    return ids[: at + 1]


def run(asked: Asked, task_path: str, words: dict[str, Any], out: str) -> None:
    """A checkpoint's continuations of the first contexts of a task, each cut on the left to the tokens of the shortest,
    or to what leaves the model positions to write in. words: prompts (how many), tokens (of a continuation, at most).

    A row has its prompt and text, the ids, and `ends`: the characters of the text that its first tokens make.
    """
    checkpoint, compute, task = asked.checkpoint, asked.compute, load_task(task_path)
    made = asked.made()
    first = task._replace(items=task.items[: words["prompts"]])
    positions = positions_of(read_json(checkpoint / "config.json"))
    room = None if positions is None else positions + 1 - words["tokens"]  # the last token is written, and never read
    if positions is not None and room is not None and room < LEAST:
        raise InputError(
            f"words.tokens: {words['tokens']}: the model was made for {positions} tokens, the context's among "
            f"them; write {max(positions + 1 - LEAST, 1)} at most"
        )
    prompts = torch.tensor(prompts_of(task, requests_of(first, checkpoint), words["prompts"], room))
    where = device(compute["device"])
    with torch.inference_mode():
        model = load_model(asked.run, where, dtype(compute["dtype"], where, checkpoint))
    tokenizer = tokenizers.load(checkpoint)
    ends = [one for one in [tokenizer.eos_token_id] if one is not None]
    begun = time.perf_counter()
    found = written(model, prompts, words["tokens"], ends, batch_tokens(compute["batch_tokens"], where) * 4)
    seconds = time.perf_counter() - begun
    logger.info("%d tokens written in %.1f s", sum(map(len, found)), seconds)
    rows = []
    for prompt, ids in zip(prompts, found, strict=True):
        before = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
        whole = [[*prompt.tolist(), *ids[: i + 1]] for i in range(len(ids))]
        texts = [text[len(before) :] for text in tokenizer.batch_decode(whole, clean_up_tokenization_spaces=False)]
        rows.append({"prompt": before, "text": texts[-1], "ids": ids, "ends": list(map(len, texts))})
    write_json(
        out,
        {
            **{key: asked.names[key] for key in ("model", "method")},
            "task": task.name,
            "tokens": words["tokens"],
            "prompt_tokens": prompts.shape[1],
            "seconds": seconds,
            "checkpoint": mark(made),
            "texts": rows,
            "provenance": {**made, "task_fingerprint": task.fingerprint, "device": where},
        },
    )
