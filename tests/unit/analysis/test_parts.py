"""Parts of a model: what they hold, that swapping them in and out is exact, and their paired differences."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from quant.analysis import parts, sensitivity
from quant.checkpoints import stored
from quant.comparison.paired import holm, paired_difference
from quant.data import tokens
from quant.errors import InputError
from quant.evaluation import by_block
from quant.evaluation.divergence import compare
from quant.evaluation.perplexity import load_model
from quant.files import tensorfile
from quant.runtime.compute import Compute
from tests.unit.recipe.cases import run

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
LINEARS = {f"model.layers.{layer}.{kind}": layer for layer in (0, 1) for kind in KINDS}


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every weight of the tiny model rounded to tenths."""
    folder = tmp_path_factory.mktemp("quantized")
    shutil.copy(tiny_checkpoint / "config.json", folder)
    with tensorfile.opened(tiny_checkpoint / "model.safetensors") as file:
        tensors = {name: (file.get(name) * 10).round() / 10 for name in file.names}
    made = {"provenance": json.dumps({"model_fingerprint": "m"})}
    tensorfile.save(folder / "model.safetensors", tensors, made)
    return folder


@pytest.fixture(scope="module")
def heldout() -> tokens.Tokens:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randint(0, 256, (length,), generator=generator) for length in (20, 7, 31)]
    return tokens.Tokens(found, "mark", {})


def test_parts_by_kind_and_by_layer_hold_every_linear_once() -> None:
    for found, n in ((parts.by_kind(LINEARS), 7), (parts.by_layer(LINEARS), 2)):
        assert len(found) == n
        assert sorted(name for part in found for name in part.rows) == sorted(LINEARS)
    assert parts.by_kind(LINEARS)[0].name == "q_proj" and parts.by_layer(LINEARS)[1].name == "1"


def test_others_are_as_many_and_none_of_the_risky() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = {"a": torch.rand(40, generator=generator) < 0.2, "b": torch.rand(40, generator=generator) < 0.8}
    drawn = parts.others(masks, torch.Generator().manual_seed(7))
    assert all(not (masks[name] & drawn[name]).any() for name in masks)
    assert drawn["a"].sum() == masks["a"].sum() and drawn["b"].sum() == (~masks["b"]).sum()
    again = parts.others(masks, torch.Generator().manual_seed(7))
    assert all(torch.equal(drawn[name], again[name]) for name in masks)


def test_parts_by_risk_leave_out_linears_without_risk() -> None:
    masks = {"a": torch.tensor([True, False, False]), "b": torch.zeros(3, dtype=torch.bool)}
    found = parts.by_risk(masks, 2, seed=0)
    assert [part.name for part in found] == ["risky rows", "other rows 1", "other rows 2"]
    assert all(list(part.rows) == ["a"] for part in found)
    assert parts.by_risk({"b": masks["b"]}, 2, seed=0) == []


def test_a_part_is_swapped_in_alone_and_back_to_the_bit(tiny_checkpoint: Path, quantized: Path) -> None:
    model = load_model(tiny_checkpoint, "cpu", torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = torch.arange(48) % 3 == 0
    part = parts.Part("risk", "x", {"model.layers.0.self_attn.q_proj": rows, "model.layers.1.mlp.up_proj": None})
    with stored.opened(quantized) as weights:
        with parts.replaced(model, part, weights):
            for name, value in model.state_dict().items():
                new = weights.file.get(name)
                if name == "model.layers.1.mlp.up_proj.weight":
                    assert torch.equal(value, new)
                elif name == "model.layers.0.self_attn.q_proj.weight":
                    assert torch.equal(value[rows], new[rows]) and torch.equal(value[~rows], before[name][~rows])
                else:
                    assert torch.equal(value, before[name])
        with pytest.raises(RuntimeError, match="stop"), parts.replaced(model, part, weights):
            raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_models_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)}, {})
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    model = load_model(tiny_checkpoint, "cpu", torch.float32)
    part = parts.Part("kind", "up_proj", {"model.layers.0.mlp.up_proj": None})
    with stored.opened(tmp_path) as weights, pytest.raises(InputError, match="up_proj is"):
        parts.replaced(model, part, weights).__enter__()


def test_measure_is_what_a_model_with_these_weights_says(
    tiny_checkpoint: Path, quantized: Path, heldout: tokens.Tokens
) -> None:
    """Against a whole model built with the part's weights, one sequence at a time, by the library's own loss."""
    chosen = [parts.by_kind(LINEARS)[6], *parts.by_layer(LINEARS)]
    found = parts.measure(tiny_checkpoint, quantized, "m", chosen, heldout, Compute("cpu", torch.float32, 64))
    with stored.opened(quantized) as weights:
        for part, row in zip(chosen, found, strict=True):
            model = load_model(tiny_checkpoint, "cpu", torch.float32)
            for name in part.rows:
                model.get_submodule(name).weight.data = weights.weight(name)
            with torch.inference_mode():
                slow = [model(s[None], labels=s[None]).loss.item() * (len(s) - 1) for s in heldout.sequences]
            assert row["nll"] == pytest.approx(slow, rel=1e-5)
            assert row["weights"] == sum(model.get_submodule(name).weight.numel() for name in part.rows)


def test_parts_of_a_model_that_is_too_large_are_the_same_to_the_bit(
    tiny_checkpoint: Path, quantized: Path, heldout: tokens.Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {name: torch.arange(48) % 3 == 0 for name in LINEARS if name.endswith("q_proj")}
    chosen = [parts.by_kind(LINEARS)[6], parts.Part("risk", "risky rows", dict(rows)), parts.by_layer(LINEARS)[1]]
    compute = Compute("cpu", torch.float32, 64)
    whole = parts.measure(tiny_checkpoint, quantized, "m", chosen, heldout, compute)
    assert whole[1]["rows"] == 2 * 16 and whole[1]["weights"] == 2 * 16 * 48
    monkeypatch.setattr(by_block, "memory_left", lambda device: 0)
    assert parts.measure(tiny_checkpoint, quantized, "m", chosen, heldout, compute) == whole


@pytest.mark.parametrize("by_blocks", [False, True])
def test_divergence_of_all_is_that_of_the_folded_checkpoint_itself(
    tiny_checkpoint: Path,
    statistics: dict[str, str],
    heldout: tokens.Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_blocks: bool,
) -> None:
    """Of a method that folds scales, whose linears are taken without them; a part by itself costs less."""
    changes = {"salience": "l2", "scope": "shared", "n_grid": 4, "group_size": 16, "bits": 3}
    run(tiny_checkpoint, tmp_path / "own", statistics, **changes)
    chosen = [parts.Part("swap", "all", dict.fromkeys(LINEARS)), parts.by_layer(LINEARS)[0]]
    if by_blocks:
        monkeypatch.setattr(by_block, "memory_left", lambda device: 0)
    folds, compute = tmp_path / "own.folds.safetensors", Compute("cpu", torch.float32, 64)
    found = parts.measure(tiny_checkpoint, tmp_path / "own", "tiny", chosen, heldout, compute, folds, compared=True)
    models = [load_model(path, "cpu", torch.float32) for path in (tiny_checkpoint, tmp_path / "own")]
    with torch.inference_mode():
        for sequence, kl, less in zip(heldout.sequences, found[0]["kl"], found[1]["kl"], strict=True):
            p, q = (model(sequence[None]).logits[0, :-1] for model in models)
            assert kl == pytest.approx(compare(p, q)[0].sum().item(), rel=1e-3)
            assert 0 < less < kl


def record(method: str, shift: float, seed: int) -> dict:
    """Twelve sequences: down_proj raises every NLL by `shift` a token, risky rows by twice as much as others."""
    rng = np.random.default_rng(seed)
    length = np.arange(100, 112)
    base = np.random.default_rng(9).normal(3, 1, 12) * length
    raised = {("kind", "down_proj"): shift, ("risk", "risky rows"): 2 * shift, ("risk", "other rows 1"): shift,
              ("risk", "other rows 2"): shift}  # fmt: skip
    rows = [
        {"by": by, "part": part, "rows": 4, "weights": 40,
         "nll": (base + (rise + rng.normal(0, 0.002, 12)) * length).tolist()}
        for (by, part), rise in raised.items()
    ]  # fmt: skip
    return {"model": "m", "dataset": "d", "method": method, "tokens": length.tolist(), "original": base.tolist(),
            "parts": rows, "channels": {}}  # fmt: skip


def test_the_table_pairs_parts_with_the_original_with_twins_and_with_others() -> None:
    records = [record("asym", 0.05, 0), record("sym", 0.08, 1)]
    table = sensitivity.table(records, lambda a, b: (a, b) == ("asym", "sym"), 999, 0)
    assert list(table.columns) == sensitivity.COLUMNS
    counts = table.groupby(["method", "against"]).size().to_dict()
    assert counts == {("asym", "original"): 4, ("asym", "sym"): 4, ("asym", "other rows"): 1,
                      ("sym", "original"): 4, ("sym", "other rows"): 1}  # fmt: skip
    twin = table[(table.against == "sym") & (table.part == "down_proj")].iloc[0]
    nll = [np.array(one["parts"][0]["nll"]) for one in records]
    slow = paired_difference(*nll, np.array(records[0]["tokens"], dtype=float), 999, 0)
    assert (twin.delta_nll, twin.delta_nll_low, twin.p) == (slow.mean, slow.low, slow.p)
    risky = table[(table.against == "other rows") & (table.method == "asym")].iloc[0]
    assert risky.delta_nll == pytest.approx(0.05, abs=0.005) and risky.p_holm < 0.05
    for is_original in (True, False):
        family = table[(table.against == "original") == is_original]
        np.testing.assert_allclose(family.p_holm, holm(family.p))
    json.dumps(table.to_dict("records"))


def test_no_record_makes_an_empty_table() -> None:
    assert list(sensitivity.table([], lambda a, b: False, 999, 0).columns) == sensitivity.COLUMNS
