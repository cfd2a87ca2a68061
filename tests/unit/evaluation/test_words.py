"""Greedy texts: the likeliest next token of a forward pass, again and again."""

from pathlib import Path

import pytest
import torch

from quant.data.embedded_tasks import RULES
from quant.data.task_items import Item, Task, save
from quant.errors import InputError
from quant.evaluation.asked import Asked
from quant.evaluation.perplexity import load_model
from quant.evaluation.words import run, written
from quant.files.artifacts import write_json
from quant.models.conversion.record import checkpoint_fingerprint
from tests import tiny

CPU = {"device": "cpu", "dtype": "float32", "batch_tokens": "auto"}


def slow(model: torch.nn.Module, prompt: list[int], tokens: int, ends: list[int]) -> list[int]:
    ids: list[int] = []
    with torch.inference_mode():
        while len(ids) < tokens and not (ids and ids[-1] in ends):
            ids.append(int(model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("room", [1, 10_000])
def test_each_token_is_the_likeliest(tmp_path: Path, room: int) -> None:
    model = load_model(tiny.save_model(tmp_path), "cpu", torch.float32)
    model.generation_config.repetition_penalty = 9.0  # a checkpoint's own settings do not count
    prompts = torch.randint(3, 200, (5, 9), generator=torch.Generator().manual_seed(0))
    free = written(model, prompts, 12, [], room)
    assert free == [slow(model, prompt, 12, []) for prompt in prompts.tolist()]
    ends = [free[0][4]]
    stopped = written(model, prompts, 12, ends, room)
    assert stopped == [slow(model, prompt, 12, ends) for prompt in prompts.tolist()]
    assert len(stopped[0]) == free[0].index(ends[0]) + 1


def test_the_file_says_where_each_token_ends(tmp_path: Path) -> None:
    checkpoint = tiny.save_model(tmp_path / "checkpoint")
    words = [" ".join(tiny.WORDS[i : i + 8 + i % 3]) for i in range(6)]
    task = Task("t", "acc", RULES["continuation"].words, [Item([(one, " w1")], 0, [2]) for one in words], {"spec": {}})
    save(tmp_path / "t.json", task)
    write_json(tmp_path / "convert.json", {"fingerprint": checkpoint_fingerprint(checkpoint)})
    names, out = {"model": "m", "method": "original"}, str(tmp_path / "words.json")
    asked = Asked(str(checkpoint / "config.json"), str(tmp_path / "convert.json"), CPU, names)
    run(asked, str(tmp_path / "t.json"), {"prompts": 5, "tokens": 6}, out)
    found = tiny.read(Path(out))
    assert len(found["texts"]) == 5 and found["prompt_tokens"] == 8 and found["task"] == "t"
    for row, context in zip(found["texts"], words, strict=False):
        assert context.endswith(row["prompt"].strip()) and len(row["ids"]) == len(row["ends"]) <= 6
        assert row["ends"] == sorted(row["ends"]) and row["ends"][-1] == len(row["text"])
    task = task._replace(items=[*task.items, Item([("w1 w2", " w3")], 0, [2])])
    save(tmp_path / "t.json", task)
    with pytest.raises(InputError, match=r"^words\.task: t: a context has 2 tokens, too few"):
        run(asked, str(tmp_path / "t.json"), {"prompts": 7, "tokens": 6}, out)


def test_texts_end_where_positions_do(tmp_path: Path) -> None:
    """Of a model with a vector for each: contexts are cut to leave room, and what leaves none is refused."""
    from transformers import GPT2Config, GPT2LMHeadModel

    checkpoint, out = tmp_path / "checkpoint", str(tmp_path / "words.json")
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
        checkpoint
    )
    tiny.save_tokenizer(checkpoint)
    write_json(tmp_path / "convert.json", {"fingerprint": checkpoint_fingerprint(checkpoint)})
    items = [Item([(" ".join(tiny.WORDS[i : i + 12]), " w1")], 0, [2]) for i in range(2)]
    save(tmp_path / "t.json", Task("t", "acc", RULES["continuation"].words, items, {"spec": {}}))
    names = {"model": "m", "method": "original"}
    asked = Asked(str(checkpoint / "config.json"), str(tmp_path / "convert.json"), CPU, names)
    for tokens, width in ((5, 12), (6, 11), (9, 8)):
        run(asked, str(tmp_path / "t.json"), {"prompts": 2, "tokens": tokens}, out)
        assert tiny.read(Path(out))["prompt_tokens"] == width
    with pytest.raises(InputError, match=r"^words\.tokens: 10: the model was made for 16 tokens, .*; write 9 at most"):
        run(asked, str(tmp_path / "t.json"), {"prompts": 2, "tokens": 10}, out)
    save(tmp_path / "t.json", Task("t", "acc", "", [Item([(" ".join(tiny.WORDS[:17]), " w1")], 0, [2])], {"spec": {}}))
    with pytest.raises(InputError, match="item 0: has 18 tokens, the model was made for 16"):
        run(asked, str(tmp_path / "t.json"), {"prompts": 1, "tokens": 5}, out)
