"""Block reconstruction: errors and gradients against plain blocks, the file that comes of it, and what is kept."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant.calibration.reader import Statistics
from quant.calibration.streams import Pair, Streams, hidden_of
from quant.files import tensorfile
from quant.methods.source import Output, Source
from quant.methods.with_model import reconstruct
from quant.methods.with_model.quantize import quantize_with_model, reconstruction_of
from quant.methods.with_model.reconstruct import (
    Aim,
    Descent,
    MovableLinear,
    Reconstruction,
    Reconstructor,
    tensors_of,
    together,
)
from quant.methods.with_model.sequential import Sequential
from quant.models.structure.linears import all_linears, decoder_blocks, skeleton
from quant.recipe import grids
from quant.recipe.grids import Grid
from quant.recipe.quantized import QuantizedLinear
from quant.runtime.compute import Compute
from tests.unit.methods.with_model.given import CALIBRATION, SEQUENCES, slow_divergence
from tests.unit.recipe.cases import PATTERNS, PLAIN
from tests.unit.recipe.folded import MADE, Case

WAY = {"iterations": 80, "batch": 2, "code_rate": 0.1, "step_rate": 0.005}
RECIPE = {
    "salience": "l2",
    "scope": "shared",
    "n_grid": 4,
    "group_size": 16,
    "bits": 2,
    "clip": True,
    "rounding": "gptq",
}


def run(case: Case, target: Path, **changes: Any) -> dict[str, Any]:
    recipe = PLAIN | RECIPE | {"inputs": "sequential", "correction": 0.5, "tune": None} | changes
    names, statistics = all_linears(skeleton(case.path)), Statistics(case.paths, "m", PATTERNS)
    given = (Source(case.path, names), Output(target, target.with_suffix(".folds")), statistics, recipe, CALIBRATION)
    return dict(quantize_with_model(*given, Compute("cpu", torch.float32, 64), MADE))


def aims_of(pair: Pair) -> dict[str, Aim]:
    """Its linears rounded to 3 bits in groups of 14, which do not divide the inputs; every second one's rows are
    multiplied."""
    aims, generator = {}, torch.Generator().manual_seed(0)
    for i, name in enumerate(name for group in pair.groups for name in group):
        w = pair.quantised.get_parameter(f"{name}.weight").clone()
        rows = torch.rand(len(w), generator=generator) + 0.5 if i % 2 else None
        target, grid = w if rows is None else w / rows[:, None], Grid(3, 14, False)
        groups = grids.to_groups(target, 14)
        step, zero = grids.fit(groups, grid)
        rounded = QuantizedLinear(grids.encode(groups, step, zero, grid), step, zero, grid, w.shape[1])
        aims[name] = Aim(rounded, target, rows, None, lambda step: step.half().float())
    return aims


def second_block(
    case: Case, left_out: frozenset[int] = frozenset(), batch_tokens: int = 64, portion_tokens: int | None = None
) -> Reconstructor:
    """The second block's, after a first one whose down projection was changed."""
    streams = Streams(case.path, SEQUENCES, "cpu", torch.float32, batch_tokens)
    pairs: Iterator[Pair] = streams.pairs(portion_tokens=portion_tokens)
    first = next(pairs)
    name = f"{first.groups[-1][0]}.weight"
    first.put({f"{first.name}.{name}": 0.8 * first.quantised.get_parameter(name)})
    first.advance(True)
    pair = next(pairs)
    return Reconstructor(pair, aims_of(pair), 0.25, left_out, 64)


def second_outputs(model: nn.Module) -> list[Tensor]:
    """What the second block puts out of each sequence [tokens, hidden], the model run whole."""
    found: list[Tensor] = []
    hook = decoder_blocks(model)[1][1].register_forward_hook(lambda module, args, out: found.append(hidden_of(out)[0]))
    with torch.inference_mode():
        for ids in SEQUENCES:
            model(ids[None], use_cache=False)
    hook.remove()
    return found


def slow_error(case: Case, found: Reconstructor, left_out: frozenset[int], as_stored: bool) -> float:
    """Of three plain models: the original, with the first block changed, and with the second one's weights too."""
    changed = copy.deepcopy(case.model)
    names = list(found.linears)
    with torch.no_grad():
        decoder_blocks(changed)[1][0].get_parameter(f"{names[-1]}.weight").mul_(0.8)
    rounded = copy.deepcopy(changed)
    for name, linear in found.linears.items():
        linear.as_stored = as_stored
        with torch.no_grad():
            decoder_blocks(rounded)[1][1].get_parameter(f"{name}.weight").copy_(linear.weight)
        linear.as_stored = False
    total, count = 0.0, 0
    for i, (y, own, z) in enumerate(zip(*(second_outputs(m) for m in (case.model, changed, rounded)), strict=True)):
        if i not in left_out:
            goal = 0.25 * y.double() + 0.75 * own.double()
            total += float(((z - goal).square().sum(1) / goal.square().sum(1)).sum())
            count += len(goal)
    return total / count


@pytest.mark.parametrize(("name", "left_out"), [("llama_bias", frozenset()), ("gemma2", frozenset({1}))])
def test_the_error_is_that_of_plain_models(models: Callable[[str], Case], name: str, left_out: frozenset[int]) -> None:
    case = models(name)
    found = second_block(case, left_out)
    assert found.error() == pytest.approx(slow_error(case, found, left_out, as_stored=True), rel=1e-3)


def test_gradients_equal_finite_differences(models: Callable[[str], Case]) -> None:
    """Of steps along a random direction; of places, through which a gradient passes as if nothing were rounded, along
    the weights that they would be."""
    found = second_block(models("llama_bias"))
    _, part = found.part(0)
    found.gradients([part])
    generator = torch.Generator().manual_seed(1)

    def loss() -> float:
        with torch.no_grad():
            return found.loss(part).item() / part.counts.sum().item()

    for name in list(found.linears)[::2]:
        linear = found.linears[name]
        direction = torch.randn(linear.change.shape, generator=generator)
        wanted = (linear.change.grad * direction).sum().item()
        with torch.no_grad():
            linear.change += 1e-2 * direction
            up = loss()
            linear.change -= 2e-2 * direction
            down = loss()
            linear.change += 1e-2 * direction
        assert (up - down) / 2e-2 == pytest.approx(wanted, rel=0.05, abs=1e-5), name
        moved = torch.randn(linear.place.shape, generator=generator)
        wanted, zero = (linear.place.grad * moved).sum().item(), linear._zero
        losses = []
        for sign in (1, -1):
            linear._zero = zero - sign * 1e-2 * moved
            losses.append(loss())
        linear._zero = zero
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(wanted, rel=0.05, abs=1e-5), name


def test_a_step_in_smaller_batches_has_the_same_gradients(models: Callable[[str], Case]) -> None:
    """As they are where a GPU's memory does not hold it; batches of one sequence are not padded. So has one of portions
    of a batch."""
    ways = (64, None), (20, None), (64, 20)
    whole, small, parted = (second_block(models("llama_bias"), frozenset({2}), *way) for way in ways)
    assert (whole.steps, small.steps, parted.steps) == ([[0]], [[0, 1]], [[0, 1]])
    for found in (whole, small, parted):
        found.gradients([found.part(i)[1] for i in found.steps[0]])
    for found in (small, parted):
        assert whole.error() == pytest.approx(found.error(), rel=1e-5)
        for ours, theirs in zip(found.parameters, whole.parameters, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6 * theirs.grad.abs().max().item())
    way = Sequential(models("llama_bias").path, CALIBRATION, "cpu", torch.float32, 20, Reconstruction.of(WAY))
    assert len(next(way._pairs).batches) == 3
    assert together({0: 30, 2: 30, 3: 31, 4: 90, 5: 5}, 64) == [[0, 2], [3], [4], [5]]


@pytest.mark.parametrize("grid", [Grid(4, 32, True, "iq4_nl"), Grid(3, 16, True, "q3_k")])
def test_codes_of_other_formats_move_too(grid: Grid) -> None:
    """From where rounding left them, on the format's values and steps, down an error that rounding did not see."""
    w = 0.1 * torch.randn(24, 512, generator=torch.Generator().manual_seed(0))
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)).cumsum(1) / 20
    stored = partial(grids.stored_step, dtype=torch.float16, steps=grid.steps)
    groups = grids.to_groups(w, grid.group_size)
    step, zero = grids.fit(groups, grid)
    step = stored(step)
    rounded = QuantizedLinear(grids.encode(groups, step, zero, grid), step, zero, grid, 512)
    linear = MovableLinear(Aim(rounded, w, None, None, stored), None)
    start = [each.detach().clone() for each in (linear.place, linear.change)]
    linear.reset()
    assert all(torch.equal(a, b) for a, b in zip(linear.moved(), (rounded.codes, step), strict=True))
    optimizer = torch.optim.Adam([{"params": [linear.place], "lr": 0.02}, {"params": [linear.change], "lr": 0.002}])
    with torch.no_grad():
        linear.place.copy_(start[0])
        before = (linear(x) - x @ w.T).square().mean().item()
    for _ in range(40):
        optimizer.zero_grad()
        (linear(x) - x @ w.T).square().mean().backward()
        optimizer.step()
    codes, steps = linear.moved()
    after = (x @ (grids.from_groups(codes * steps, 512) - w).T).square().mean().item()
    assert after < 0.5 * before and torch.equal(stored(steps), steps)
    assert torch.equal(grid.points.nearest_(codes.clone()), codes) and not torch.equal(codes, rounded.codes)


def test_it_brings_the_model_nearer_and_twice_the_same(models: Callable[[str], Case], tmp_path: Path) -> None:
    """On the calibration text, by blocks as by the whole."""
    case = models("llama")
    records = {name: run(case, tmp_path / name, reconstruct=WAY) for name in "ab"}
    plain = run(case, tmp_path / "plain")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    errors = records["a"]["reconstruction"]
    assert list(errors) == ["model.layers.0", "model.layers.1"] and "reconstruction" not in plain
    assert all(after < before for before, after in errors.values()), errors
    assert slow_divergence(case, tmp_path / "a") < 0.9 * slow_divergence(case, tmp_path / "plain")
    assert records["a"]["summary"]["storage"] == "packed"


@pytest.mark.parametrize("name", ["llama_bias", "gemma2"])
def test_a_block_in_an_earlier_ones_place_gives_the_same(
    models: Callable[[str], Case], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what a GPU records is recorded once; Gemma 2's blocks see different tokens in turn."""
    made: list[Descent] = []
    begin = Descent.__init__
    monkeypatch.setattr(Descent, "__init__", lambda self, *given: made.append(self) or begin(self, *given))
    for target, most in {"apart": 0, "within": 2**30}.items():
        monkeypatch.setitem(reconstruct.SUCCEEDED, "cpu", most)
        run(models(name), tmp_path / target, reconstruct=WAY | {"iterations": 20})
    assert len(made) == (3 if name == "llama_bias" else 4)
    files = [(tmp_path / target / "model.safetensors").read_bytes() for target in ("apart", "within")]
    assert files[0] == files[1]


def test_a_block_that_computes_something_else_is_not_put_in_the_place(models: Callable[[str], Case]) -> None:
    found, other = (second_block(models("llama_bias")) for _ in range(2))
    kind, part = found.part(0)
    own = {name: value.clone() for name, value in tensors_of(other.block).items()}
    with torch.no_grad():
        found.linears["mlp.up_proj"].place.add_(1)
    assert found.descent.takes(other.block, other.linears, kind, part)
    assert all(torch.equal(own[name], value) for name, value in tensors_of(found.block).items())
    assert not found.descent.takes(other.block, other.linears, (*kind, 0), part)
    other.block.get_submodule("mlp").act_fn = nn.GELU()
    assert not found.descent.takes(other.block, other.linears, kind, part)


@pytest.mark.parametrize("scope", ["shared", "linear"])
def test_what_makes_it_worse_is_not_kept(models: Callable[[str], Case], scope: str, tmp_path: Path) -> None:
    case, files = models("llama"), []
    for name, way in {"wild": WAY | {"iterations": 3, "code_rate": 50.0, "step_rate": 1.0}, "plain": None}.items():
        run(case, tmp_path / name, reconstruct=way, scope=scope)
        with tensorfile.opened(tmp_path / name / "model.safetensors") as file:
            files.append({each: file.get(each) for each in file.names})
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_what_tuning_holds_out_is_not_looked_at() -> None:
    recipe = {"reconstruct": WAY, "tune": {"held_out": 0.3}, "seed": 42}
    drawn = torch.randperm(10, generator=torch.Generator().manual_seed(42)).tolist()
    assert reconstruction_of(recipe, 10)[1] == frozenset(drawn[:3])
    assert reconstruction_of(recipe | {"tune": None}, 10)[1] == frozenset()
    assert reconstruction_of(recipe | {"reconstruct": None}, 10) == (None, frozenset())
