"""Scales shared by the linears that read one input, folded into the operation before, on every known architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibration.reader import Statistics
from quant.calibration.second_moments import from_triangle
from quant.errors import InputError
from quant.evaluation.exact_error import measure
from quant.files import tensorfile
from quant.methods.block import Block
from quant.methods.quantize import quantize_checkpoint
from quant.methods.shared import Shared, shared_groups
from quant.methods.source import Output, Source
from quant.models.structure.architectures import ARCHITECTURES, Fold
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe.grids import Grid
from quant.recipe.linear import tie_heads
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from quant.recipe.search import Search, Target, scale_for, search_scale
from tests.unit import reference
from tests.unit.calibration.architectures import FEWER, saved
from tests.unit.recipe.cases import PATTERNS, PLAIN
from tests.unit.recipe.folded import MODELS, Case, folds_of

FINE = {"bits": 8, "group_size": 1, "symmetric": True}  # a step for each weight: rounding is the identity


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales far from 1 and from each other, whatever the search would choose."""

    def chosen(targets: object, salience: Tensor, *_: object) -> Search:
        return Search(1.0, 3 * scale_for(salience / salience.mean(), 1.5), 0.0)

    monkeypatch.setattr("quant.recipe.linear.search_scale", chosen)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("loud")
def test_folding_alone_leaves_the_logits_unchanged(models: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    case = models(name)
    case.run(tmp_path / "out", **FINE)
    with tensorfile.opened(folds_of(tmp_path / "out")) as folds:
        for linear in case.linears:
            scale = folds.get(f"{linear}.input")
            assert scale.max() / scale.min() > 3, f"{linear}: the scale must be far from 1"
        outputs = [linear for linear in case.linears if f"{linear}.output" in folds.names]
        producers = ("v_proj", "up_proj", "qkv_proj", "gate_up_proj")
        assert outputs == [linear for linear in case.linears if linear.endswith(tuple(f".{p}" for p in producers))]
    before, after = case.logits(tmp_path / "out")
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * before.abs().max().item())


@pytest.mark.parametrize("kind", ["norm", "rows"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma2"])
@pytest.mark.usefixtures("loud")
def test_a_forgotten_fold_shows(
    models: Callable[[str], Case], name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = Block._fold

    def forget(self: Block, group: Shared, how: Fold, scale: Tensor, heads: tuple[int, int, int] | None) -> None:
        if how.kind == kind:
            self.folded |= set(group.linears)
        else:
            fold(self, group, how, scale, heads)

    monkeypatch.setattr(Block, "_fold", forget)
    models(name).run(tmp_path / "out", **FINE)
    before, after = models(name).logits(tmp_path / "out")
    assert (after - before).norm() > 0.2 * before.norm()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma"])
def test_referee_sees_the_errors_that_were_made(
    models: Callable[[str], Case], name: str, rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored weights act on other inputs and outputs; taken back, they are those that were searched and rounded."""
    made: dict[str, tuple[Tensor, QuantizedLinear]] = {}
    quantize = Block.quantize

    def keep(self: Block, *arguments: Any) -> None:
        quantize(self, *arguments)
        made.update({linear: (self.original(linear), self.rounded(linear)) for linear in self._done})

    monkeypatch.setattr(Block, "quantize", keep)
    case, out = models(name), tmp_path / "out"
    record = case.run(out, bits=3, group_size=8, rounding=rounding)
    rows = measure(
        case.path / "model.safetensors",
        out,
        folds_of(out),
        Path(case.paths["moments"]),
        record,
        PATTERNS,
        "cpu",
    )
    assert [row["linear"] for row in rows] == list(case.linears) and len(made) == len(case.linears)
    assert sum(row["alpha"] > 0 for row in rows) > len(rows) / 2, "the case must be one where scaling helps"
    with tensorfile.opened(case.paths["moments"]) as moments:
        for row in rows:
            w, done = made[row["linear"]]
            moment = from_triangle(moments.get(moments.info("reads")[row["linear"]])).double().numpy()
            d, whole = (w - done.dequantize()).double().numpy(), w.double().numpy()
            assert row["mse"] == pytest.approx(np.trace(d @ moment @ d.T) / len(w), rel=1e-3)
            relative = np.trace(d @ moment @ d.T) / np.trace(whole @ moment @ whole.T)
            assert row["relative_error"] == pytest.approx(relative, rel=1e-3) and 0 < relative < 1
    if rounding == "nearest":  # the search's minimum is the group's summed error
        for group in groups_of(case):
            members = [row for row in rows if row["linear"] in group.linears]
            assert len({row["alpha"] for row in members}) == 1
            total = sum(row["mse"] for row in members)
            assert all(row["objective"] == pytest.approx(total, rel=1e-3) for row in members)
    before, after = case.logits(out)
    assert 0 < (after - before).norm() < 0.8 * before.norm()


def groups_of(case: Case) -> list[Shared]:
    config, found = case.model.config.to_dict(), []
    for layer in sorted(set(case.linears.values())):
        names = [name for name, index in case.linears.items() if index == layer]
        found += shared_groups(names, f"model.layers.{layer}", "shared", config)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_groups_hold_each_linear_once(models: Callable[[str], Case], name: str) -> None:
    """And no scale costs storage of its own."""
    found = [linear for group in groups_of(models(name)) for linear in group.linears]
    assert sorted(found) == sorted(models(name).linears)


def test_folded_scales_cost_no_storage(models: Callable[[str], Case], tmp_path: Path) -> None:
    """Dense, since groups of 7 divide no row, where a linear's own scale counts; packed as without any."""

    def bits(name: str, group_size: int, **more: Any) -> float:
        record = models("llama").run(tmp_path / name, bits=3, group_size=group_size, **more)
        return record["summary"]["bits_per_weight"]

    assert bits("shared", 7) == bits("plain", 7, salience="none") < bits("linear", 7, scope="linear")
    assert bits("packed", 8) == bits("plain-packed", 8, salience="none") > 3 + (16 + 3) / 8


def test_one_scale_by_the_summed_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 24)) * np.exp(rng.normal(size=24))
    weights = [rng.normal(size=(n, 24)) * size for n, size in ((4, 1), (7, 3), (5, 0.2))]
    salience = (x**2).mean(0)
    each = np.array([reference.search(w, x, salience, 3, 8, False, 10)[2] for w in weights])
    moment = torch.from_numpy(reference.second_moment(x))
    targets = [Target(torch.from_numpy(w), moment) for w in weights]
    found = search_scale(targets, torch.from_numpy(salience), Grid(3, 8, False), 10)
    assert found.alpha == each.sum(0).argmin() / 10
    assert found.objective == pytest.approx(each.sum(0).min(), rel=1e-6)


def test_tied_heads_hold_the_mean_over_the_heads_that_share_values() -> None:
    salience = torch.arange(24.0)  # 4 query heads of 6, 2 value heads
    found = tie_heads(salience, (4, 2, 6)).view(4, 6)
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert found[0].tolist() == [3, 4, 5, 6, 7, 8] and found[2].tolist() == [15, 16, 17, 18, 19, 20]
    assert torch.equal(tie_heads(salience, (4, 4, 6)), salience)


@pytest.mark.parametrize(("config", "kind"), [("FalconConfig", "falcon"), ("GPTNeoXConfig", "gpt_neox")])
def test_architecture_without_facts_is_refused(config: str, kind: str, tmp_path: Path) -> None:
    saved(config, FEWER, tmp_path / "model")
    linears = all_linears(skeleton(tmp_path / "model"))
    chosen = Recipe.of(PLAIN | {"salience": "l2", "scope": "shared"})
    with pytest.raises(InputError, match=rf"scope: shared.*'{kind}'") as caught:
        quantize_checkpoint(
            Source(tmp_path / "model", linears),
            Output(tmp_path / "out", folds_of(tmp_path / "out")),
            Statistics({}, "m", PATTERNS),
            chosen,
            "cpu",
            {},
        )
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.glob("out*/**/*") if path.is_file()]


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_linears_unknown_to_the_facts_are_refused_by_name(change: str) -> None:
    names = [f"model.layers.0.{name}" for group in ARCHITECTURES["llama"].groups for name in group.linears]
    names = [*names, "model.layers.0.mlp.extra"] if change == "more" else names[:-1]
    with pytest.raises(
        InputError, match=rf"mlp\.{'extra' if change == 'more' else 'down_proj'}.*scope: linear"
    ) as caught:
        shared_groups(names, "model.layers.0", "shared", {"model_type": "llama"})
    assert "\n" not in str(caught.value)
