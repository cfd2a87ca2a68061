"""A block whose settled modules are not run again gives the same bits, runs each once, and hears of new weights."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quant.calibration import kept
from quant.calibration.kept import Budget, End, Outputs, Passing, ends_of
from quant.calibration.streams import Streams
from tests.unit.calibration.architectures import ARCHITECTURES, LENGTHS, TUPLES, changed, saved


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.b(self.a(x).relu_()), None


class Block(nn.Module):
    """One that changes in place what its modules put out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.c = nn.LayerNorm(4), Inner(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.inner(self.norm(x))[0].mul_(2)) + x


def counted(block: nn.Module) -> Counter[str]:
    """How often each linear computes, from now on."""
    runs: Counter[str] = Counter()
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            compute = module.forward

            def forward(x: Tensor, name: str = name, compute: object = compute) -> Tensor:
                runs[name] += 1
                return compute(x)

            module.forward = forward
    return runs


@pytest.fixture
def block() -> Iterator[Block]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield Block()


def test_a_settled_module_runs_once_and_gives_the_same_bits(block: Block) -> None:
    batches = [torch.randn(2, 3, 4) for _ in range(2)]
    expected = [block(x) for x in batches]
    runs, outputs = counted(block), Outputs(block, Budget(block))
    for final in ([], ["inner.a"], ["inner.a", "inner.b"], ["inner.a", "inner.b"]):
        outputs.settle(final)
        for i, x in enumerate(batches):
            with outputs.of(i):
                assert torch.equal(block(x), expected[i])
    # settled, a runs once more; b too, and then neither, since what holds both is kept
    assert runs == {"inner.a": 2 * 2, "inner.b": 2 * 3, "c": 2 * 4}
    assert torch.equal(block(batches[0]), expected[0]) and runs["inner.a"] == 2 * 2 + 1, "outside, all of it runs"


@pytest.mark.parametrize("name", ["norm", "inner.a"])
def test_a_new_weight_is_heard(block: Block, name: str) -> None:
    x, outputs = torch.randn(1, 3, 4), Outputs(block, Budget(block))
    outputs.settle(["inner.a", "inner.b"])
    for _ in range(2):
        with outputs.of(0):
            block(x)
    outputs.forget("c")  # not settled: what runs before it stays
    runs = counted(block)
    with outputs.of(0):
        block(x)
    assert runs == {"c": 1}
    outputs.forget(name)
    block.get_submodule(name).weight.mul_(3)
    with outputs.of(0):
        found = block(x)
    assert torch.equal(found, block(x))


class Twice(nn.Module):
    """Which changes what its linear puts out, and says so by no other tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mul_(2)


def test_a_module_whose_end_is_read_runs_no_more(block: Block) -> None:
    batches = [torch.randn(2, 3, 4) for _ in range(2)]
    expected = [block(x) for x in batches]
    ends = ends_of(block, lambda: block(batches[0]))
    assert ends == {"inner": End("inner.b", (None,))}
    budget = Budget(block)
    runs, outputs = counted(block), Outputs(block, budget, ends)
    outputs.settle(["inner.a"])
    for i, x in enumerate(batches):
        with outputs.of(i):
            block(x)
        outputs.read("inner.b", i, block.inner.a(block.norm(x)).relu())
    assert budget.left == kept.ON_CPU - sum(x.nbytes for x in batches)  # a's outputs are no longer of use
    before = runs["inner.a"], runs["inner.b"]
    outputs.settle(["inner.a", "inner.b"])
    for _ in range(2):
        for i, x in enumerate(batches):
            with outputs.of(i):
                assert torch.equal(block(x), expected[i])
    assert (runs["inner.a"], runs["inner.b"]) == (before[0], before[1] + 2)


def test_a_module_that_changes_its_linears_output_has_no_end() -> None:
    with torch.inference_mode():
        outer, x = nn.Sequential(Twice()), torch.randn(3, 4)
        assert ends_of(outer, lambda: outer(x)) == {}


def test_where_memory_ends_it_runs_as_before(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ON_CPU", 2 * 3 * 4 * 4)  # of one batch's output
    budget, batches = Budget(block), [torch.randn(2, 3, 4) for _ in range(2)]
    outputs = Outputs(block, budget)
    outputs.settle(["inner.a"])
    runs = counted(block)
    for _ in range(2):
        for i, x in enumerate(batches):
            with outputs.of(i):
                block(x)
    assert runs["inner.a"] == 3 and budget.left == 0
    outputs.forget("inner.a")
    assert budget.left == kept.ON_CPU
    inputs = Passing(block, ["inner.a"], ["c"], budget)
    out, held = inputs.run(0, lambda: block(batches[0]))
    assert not held and torch.equal(out, block(batches[0])) and budget.left == kept.ON_CPU


def test_what_passes_in_one_run(block: Block) -> None:
    budget, x = Budget(block), torch.randn(2, 3, 4)
    inputs = Passing(block, ["inner.a", "inner.b"], ["c"], budget)
    out, held = inputs.run(0, lambda: block(x))
    assert held and torch.equal(out, block(x))
    assert torch.equal(inputs.get("inner.a", 0), block.norm(x))
    assert torch.equal(inputs.get("inner.b", 0), block.inner.a(block.norm(x)).relu())
    assert torch.equal(inputs.get("c", 0) + x, out)
    before = budget.left
    inputs.release(["inner.a"])
    assert budget.left == before + x.nbytes


@pytest.mark.parametrize("name", ARCHITECTURES | TUPLES)
def test_moments_are_the_same_bits_with_nothing_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(*(ARCHITECTURES | TUPLES)[name], tmp_path)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    found: list[list[Tensor]] = []
    for limit in (kept.ON_CPU, 5000, 0):
        monkeypatch.setattr(kept, "ON_CPU", limit)
        found.append([])
        for pair in Streams(tmp_path, sequences, "cpu", torch.float32, 26).pairs():
            for group in pair.groups:
                moment, cross = pair.moments(group[0], True)
                assert list(cross) == list(group)
                found[-1] += [moment, *cross.values()]
                pair.put(changed(model, [f"{pair.name}.{linear}" for linear in group]))
            pair.advance(True)
    assert len(found[0]) > 8
    assert all(torch.equal(*both) for other in found[1:] for both in zip(found[0], other, strict=True))
