"""A model in two parts gives what it gives whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quant.evaluation.head import Head, Parts, padded
from tests.unit.calibration.architectures import ARCHITECTURES, COMMON, TUPLES, saved
from tests.unit.evaluation.undivided import Undivided

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ARCHITECTURES[name] for name in ("llama", "granite", "gemma2", "gpt_neox", "opt", "opt_350m", "phi3")},
    "cohere": ("CohereConfig", COMMON | {"logit_scale": 0.2}),
    "capped": ("Gemma2Config", COMMON | {"head_dim": 8, "final_logit_softcapping": 1.5}),
    "falcon": TUPLES["falcon"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_alone_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """With its scaling and soft-capping."""
    plain = saved(*HEADS[name], tmp_path)
    ids = torch.randint(3, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, whole = Head(plain, "cpu"), plain(ids, use_cache=False).logits.flatten(0, 1)
        # OPT calls a part of its body, and projects what comes out of it
        assert head.parts is (Parts.HEAD if name.startswith("opt") else Parts.BODY)
        states = head.states(ids).flatten(0, 1)
        for some in torch.arange(27).split(4):
            torch.testing.assert_close(head.logits(states[some]), whole[some], rtol=1e-5, atol=1e-5)
        again = plain(ids, use_cache=False).logits.flatten(0, 1)
    assert torch.equal(again, whole), "the model is left as it was"


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2"])
def test_a_head_with_rows_added_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """As on a GPU, whose products want widths that 8 divides."""
    config, changes = ARCHITECTURES[name]
    plain = saved(config, changes | {"vocab_size": 251}, tmp_path)
    ids = torch.randint(3, 251, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head, whole = Head(plain, "cpu"), plain(ids, use_cache=False).logits.flatten(0, 1)
        weight, head._padded = plain.lm_head.weight, padded(plain.lm_head)
        assert head.parts is Parts.BODY and head._padded.shape[0] == 256
        widths: list[int] = []
        hook = plain.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[-1]))
        torch.testing.assert_close(head.logits(head.states(ids).flatten(0, 1)), whole, rtol=1e-5, atol=1e-5)
        hook.remove()
    assert widths == [256]
    assert plain.lm_head.weight is weight and padded(nn.Linear(4, 8, bias=False)) is None


def test_a_model_that_does_not_come_apart_gives_whole_logits(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "quant")
    plain = saved(*ARCHITECTURES["llama"], tmp_path)
    ids = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head = Head(Undivided(plain), "cpu")
        assert head.parts is Parts.WHOLE and "Undivided" in caplog.text
        torch.testing.assert_close(head.logits(head.states(ids)), plain(ids).logits)
    assert (head.width, head.vocabulary) == (256, 256)
