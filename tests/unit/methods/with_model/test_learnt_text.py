"""A tuned recipe that overfits its calibration text is said to have learnt it; the same untuned is not."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.comparison.answers import Answered, Evidence
from quant.comparison.learnt import learnt_table
from quant.comparison.text_answers import learnt
from quant.data.tokens import Tokens, fingerprint
from quant.evaluation.divergence import compare
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe import keys
from quant.runtime.compute import Compute
from tests.unit.methods.with_model.given import loaded
from tests.unit.recipe.cases import PATTERNS

START = keys.defaults() | {
    "group_size": 16,
    "bits": 2,
    "rounding": "gptq",
    "inputs": "sequential",
    "n_calib": 24,
    "seed": 1,
}
TUNE = {"epochs": 8, "rate": 0.02, "batch": 4, "held_out": 0.25}
NEAREST = START | {"rounding": "nearest"}
RECIPES = {"tuned": START | {"tune": TUNE}, "start": START, "parallel": START | {"inputs": "parallel"}}


@torch.inference_mode()
def written(model: Any, n: int, low: int, high: int, seed: int) -> list[Tensor]:
    """Texts of 33 tokens that a model says itself, of low … high - 1 alone."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, high, (n, 1), generator=generator)
    for _ in range(32):
        p = model(ids).logits[:, -1, low:high].softmax(-1)
        ids = torch.cat([ids, low + torch.multinomial(p, 1, generator=generator)], 1)
    return list(ids)


@torch.inference_mode()
def evaluation(original: Any, model: Any, texts: list[Tensor]) -> dict[str, Any]:
    rows = []
    for i, ids in enumerate(texts):
        before, after = (each(ids[None]).logits[0, :-1] for each in (original, model))
        nll = -after.log_softmax(-1).gather(1, ids[1:, None]).sum().item()
        kl = compare(before, after)[0].sum().item()
        rows.append({"sequence": i, "tokens": 32, "nll": nll, "kl_tokens": 32, "kl": kl})
    return {"sequences": rows}


@pytest.mark.slow
def test_it_is_said_of_the_tuned_and_not_of_the_untuned(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Measured on the calibration's own text, of the vocabulary's first half, and on text of the other half. `parallel`
    rounds to nearest, so that the untuned has something to gain too."""
    original = loaded(tiny_checkpoint)
    texts = {"own": written(original, 24, 0, 128, 1), "far": written(original, 48, 128, 256, 3)}
    tokens = Tokens(texts["own"], fingerprint(texts["own"]), {})
    names, statistics = all_linears(skeleton(tiny_checkpoint)), Statistics({}, "m", PATTERNS)
    models = {"original": original}
    for name, recipe in {"tuned": RECIPES["tuned"], "start": START, "parallel": NEAREST}.items():
        out = Output(tmp_path / name, tmp_path / f"{name}.folds")
        given = (Source(tiny_checkpoint, names), out, statistics, keys.filled(recipe))
        quantize_with_model(*given, tokens, Compute("cpu", torch.float32, 512), {"model_fingerprint": "m"})
        models[name] = loaded(tmp_path / name)
    found = {
        (name, text): evaluation(original, model, sequences)
        for name, model in models.items()
        for text, sequences in texts.items()
    }
    groups = {("m", text): {name: found[name, text] for name in RECIPES} for text in texts}
    originals = {("m", text): found["original", text] for text in texts}
    one, none = Answered("learnt", "?"), pd.DataFrame()
    table = learnt_table(groups, originals, RECIPES, 999, 0)
    assert {(row.method, row.before) for row in table.itertuples()} == {("tuned", "start"), ("start", "parallel")}
    kinds = {"own": True, "far": False}
    learnt(Evidence("m", list(texts), {}, none, none, none, none, none, {}, learnt=table, kinds=kinds), one)
    assert one.verdict == "Yes: tuned, of 1 tuned", one
    assert one.lines[0].startswith("tuned has learnt the text: of start's delta_nll it leaves 5")
    assert not any(line.startswith("start") for line in one.lines)
    assert {row["verdict"] for row in one.values} == {"not shown"}, "each text by itself tells nothing here"
