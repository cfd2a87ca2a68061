"""Scales shared by the linears that read one input, folded into the operation before, on every known architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.second_moments import from_triangle
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.evaluation.exact_error import measure
from quant.files import tensorfile
from quant.methods.block import Block
from quant.methods.quantize import Output, Source, quantize_checkpoint
from quant.methods.shared import Shared, shared_groups
from quant.models.architectures import ARCHITECTURES, Fold
from quant.models.compute import Compute
from quant.models.linears import all_linears, skeleton
from quant.recipe.grids import Grid
from quant.recipe.linear import tie_heads
from quant.recipe.quantized import QuantizedLinear
from quant.recipe.recipe import Recipe
from quant.recipe.search import Search, Target, scale_for, search_scale
from tests.unit import reference
from tests.unit.calibration.test_blocks import COMMON, FEWER, saved
from tests.unit.recipe.test_recipe import PATTERNS, PLAIN

TWO = COMMON | {"num_hidden_layers": 2}
HEADS = TWO | {"head_dim": 8}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", TWO),
    "llama_mha": ("LlamaConfig", TWO | {"num_key_value_heads": 4}),
    "llama_mqa": ("LlamaConfig", TWO | {"num_key_value_heads": 1}),
    "llama_bias": ("LlamaConfig", TWO | {"attention_bias": True, "mlp_bias": True}),
    "llama_head_dim": ("LlamaConfig", TWO | {"head_dim": 16}),
    "granite": ("GraniteConfig", TWO | GRANITE),
    "qwen2": ("Qwen2Config", TWO),
    "qwen3": ("Qwen3Config", HEADS),
    "mistral": ("MistralConfig", HEADS),
    "phi3": ("Phi3Config", TWO),
    "phi3_mha": ("Phi3Config", TWO | {"num_key_value_heads": 4}),
    "gemma": ("GemmaConfig", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3_text": ("Gemma3TextConfig", HEADS),
}
MADE = {"model_fingerprint": "m"}
FINE = {"bits": 8, "group_size": 1, "symmetric": True}  # a step for each weight: rounding is the identity


class Case(NamedTuple):
    """A model, its checkpoint, its linears, and paths of its statistics."""

    model: nn.Module
    path: Path
    linears: dict[str, int]
    paths: dict[str, str]

    def run(self, target: Path, **changes: Any) -> dict[str, Any]:
        chosen = Recipe.of(PLAIN | {"salience": "l2", "scope": "shared", "n_grid": 4} | changes)
        statistics, out = Statistics(self.paths, "m", PATTERNS), Output(target, folds_of(target))
        return quantize_checkpoint(Source(self.path, self.linears), out, statistics, chosen, "cpu", MADE)

    def logits(self, target: Path) -> tuple[Tensor, Tensor]:
        """The original's and the checkpoint's."""
        from transformers import AutoModelForCausalLM

        ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(1))
        after = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        with torch.inference_mode():
            return self.model(ids, use_cache=False).logits, after(ids, use_cache=False).logits


def folds_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.folds.safetensors")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case_of(name: str) -> Case:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = saved(*MODELS[name], folder / "model")
            paths = {key: str(folder / f"{key}.safetensors") for key in ("channels", "moments")}
            generator = torch.Generator().manual_seed(0)
            sequences = [torch.randint(3, 256, (length,), generator=generator) for length in (12, 20, 30)]
            tokens = Tokens(sequences, fingerprint(sequences), {})
            material = Material(folder / "model", tokens, {"model_fingerprint": "m"})
            collect(material, *paths.values(), Compute("cpu", torch.float32, 64))
            made[name] = Case(model, folder / "model", all_linears(skeleton(folder / "model")), paths)
        return made[name]

    return case_of


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales far from 1 and from each other, whatever the search would choose."""

    def chosen(targets: object, salience: Tensor, *_: object) -> Search:
        return Search(1.0, 3 * scale_for(salience / salience.mean(), 1.5), 0.0)

    monkeypatch.setattr("quant.recipe.linear.search_scale", chosen)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("loud")
def test_folding_alone_leaves_the_logits_unchanged(cases: Callable[[str], Case], name: str, tmp_path: Path) -> None:
    case = cases(name)
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
    cases: Callable[[str], Case], name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = Block._fold

    def forget(self: Block, group: Shared, how: Fold, scale: Tensor, heads: tuple[int, int, int] | None) -> None:
        if how.kind == kind:
            self.folded |= set(group.linears)
        else:
            fold(self, group, how, scale, heads)

    monkeypatch.setattr(Block, "_fold", forget)
    cases(name).run(tmp_path / "out", **FINE)
    before, after = cases(name).logits(tmp_path / "out")
    assert (after - before).norm() > 0.2 * before.norm()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma"])
def test_referee_sees_the_errors_that_were_made(
    cases: Callable[[str], Case], name: str, rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored weights act on other inputs and outputs; taken back, they are those that were searched and rounded."""
    made: dict[str, tuple[Tensor, QuantizedLinear]] = {}
    quantize = Block.quantize

    def keep(self: Block, *arguments: Any) -> None:
        quantize(self, *arguments)
        made.update({linear: (self.original(linear), self.rounded(linear)) for linear in self._done})

    monkeypatch.setattr(Block, "quantize", keep)
    case, out = cases(name), tmp_path / "out"
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
def test_groups_hold_each_linear_once(cases: Callable[[str], Case], name: str) -> None:
    """And no scale costs storage of its own."""
    found = [linear for group in groups_of(cases(name)) for linear in group.linears]
    assert sorted(found) == sorted(cases(name).linears)


def test_folded_scales_cost_no_storage(cases: Callable[[str], Case], tmp_path: Path) -> None:
    """Dense, since groups of 7 divide no row, where a linear's own scale counts; packed as without any."""

    def bits(name: str, group_size: int, **more: Any) -> float:
        record = cases("llama").run(tmp_path / name, bits=3, group_size=group_size, **more)
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
