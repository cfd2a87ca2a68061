"""Each rule's memory is its own while it works and nobody's afterwards: no tensor waits for the cyclic collector, and
what is held at once does not grow with depth, but where a whole model or its statistics are held on purpose."""

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quant.analysis import parts
from quant.analysis.layer_mse import check
from quant.calibration.attention_moments import collect_attention_rows
from quant.calibration.blocks import Run
from quant.calibration.end_loss import collect_end_loss
from quant.calibration.jacobian import collect_jacobian
from quant.calibration.material import Material
from quant.calibration.noisy import collect_noisy
from quant.calibration.reader import Statistics
from quant.calibration.row_moments import collect_row_moments
from quant.calibration.statistics import collect
from quant.checkpoints.export import export
from quant.data.tokens import Tokens, fingerprint
from quant.evaluation.divergence import keeping, reading
from quant.evaluation.exact_error import measure as measure_error
from quant.evaluation.perplexity import measure
from quant.evaluation.record import opened_head
from quant.files import behind
from quant.methods.budgets.choice import Budget, Candidate, Given
from quant.methods.budgets.mixed import mix_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.conversion.convert import convert
from quant.models.structure.linears import all_linears, skeleton
from quant.recipe import keys
from quant.runtime.compute import Compute
from tests.tiny import save_model
from tests.unit.calibration.architectures import COMMON, saved
from tests.unit.recipe.cases import PATTERNS

CPU = Compute("cpu", torch.float32, 128)
SHALLOW, DEEP = 2, 4
HIDDEN, INNER = 32, 48
BLOCK = 4 * (3 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)  # bytes of a block's linears
MADE: Any = {"model_fingerprint": "tiny", "token_fingerprint": "text"}
TUNE = {"epochs": 1, "rate": 0.01, "batch": 2, "held_out": 0.3}
RECONSTRUCT = {"iterations": 2, "batch": 2, "code_rate": 0.25, "step_rate": 0.005}
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {},
    "two_bits": {"bits": 2},
    "l1": {"salience": "l1", "symmetric": True, "n_grid": 2},
    "shared": {"salience": "l2", "scope": "shared"},
    "rows": {"row_feedback": 0.7, "row_linears": "k_proj", "rounding": "gptq"},
    "sequential": {"rounding": "gptq", "inputs": "sequential", "correction": 0.5},
    "reconstruct": {"inputs": "sequential", "reconstruct": RECONSTRUCT},
    "tune": {"inputs": "sequential", "tune": TUNE},
}
# of these a whole model, or every block's hidden states in a file that is mapped, is held on purpose
WHOLE = ["tune", "end_loss", "row_moments", "evaluate_whole", "sensitivity", "swaps", "convert"]


class Live(TorchDispatchMode):
    """Bytes of what operations within it made and is still there; and the most there was."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[int, int] = {}
        self._known: dict[int, Any] = {}  # weak references
        self._now = self.most = 0

    def _gone(self, address: int, _: object) -> None:
        self._now -= self._bytes.pop(address)
        del self._known[address]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor) and not each.is_meta:
                storage = each.untyped_storage()
                if (address := storage._cdata) not in self._bytes:
                    self._bytes[address] = storage.nbytes()
                    self._known[address] = weakref.ref(storage, partial(self._gone, address))
                    self._now += storage.nbytes()
                    self.most = max(self.most, self._now)
        return out


class Seen(NamedTuple):
    """Bytes at once, and shapes of what was left."""

    most: int
    left: list[tuple[int, ...]]


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """What is there before is not looked at, which takes long of all libraries."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def watched(call: Callable[[], object]) -> Seen:
    """Of a call."""
    with Live() as live:
        call()
    left = [tuple(t.shape) for t in gc.get_objects() if isinstance(t, torch.Tensor) and not t.is_meta]
    gc.collect()
    gc.freeze()
    return Seen(live.most, left)


class Study:
    """A tiny model of some depth, its tokens, and rules that are run on it, in an order in which each finds what it
    reads."""

    def __init__(self, folder: Path, depth: int) -> None:
        self.folder, self.depth = folder, depth
        sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_key_value_heads": 4}
        self.original = save_model(folder / "original", num_hidden_layers=depth, **sizes)
        self.linears = all_linears(skeleton(self.original))
        generator = torch.Generator().manual_seed(0)
        sequences = [torch.randint(3, 200, (n,), generator=generator) for n in (64, 40, 64, 56)]
        self.tokens = Tokens(sequences, fingerprint(sequences), {})
        self.material = Material(self.original, self.tokens, MADE)
        self.records: dict[str, Any] = {}

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.safetensors")

    def checkpoint(self, method: str) -> Path:
        return self.folder / method / "checkpoint"

    def quantize(self, method: str) -> None:
        recipe = keys.defaults() | {"seed": 0, "n_calib": None, "group_size": 16, "n_grid": 20} | RECIPES[method]
        files = {key: self.path(key) for key in keys.statistics_files(recipe) if key != "tokens"}
        known = Statistics(files, "tiny", PATTERNS)
        target = Output(self.checkpoint(method), self.folder / method / "folds.safetensors")
        made = MADE | {"method": method, "recipe": recipe}
        given = Source(self.original, self.linears), target, known, recipe, self.tokens, CPU, made
        self.records[method] = dict(quantize_with_model(*given))

    def error(self) -> None:
        folds = self.folder / "shared/folds.safetensors"
        given = self.checkpoint("shared"), folds, Path(self.path("moments")), self.records["shared"], PATTERNS, "cpu"
        measure_error(self.original / "model.safetensors", *given)

    @torch.inference_mode()
    def evaluate(self, by_block: bool) -> None:
        """The original, then a packed method beside it."""
        counts, path = [len(each) - 1 for each in self.tokens.sequences], self.folder / "reference"
        head = opened_head(self.original, CPU, by_block, self.tokens.sequences)
        with keeping(path, head, counts, MADE) as keep:
            measure(head, self.tokens, 32, keep=keep)
        head = opened_head(self.checkpoint("shared"), CPU, by_block, self.tokens.sequences)
        with reading(path, head, partial(opened_head, self.original, CPU, by_block, []), **MADE) as reference:
            measure(head, self.tokens, 32, reference)

    def swap(self, names: list[str], by_block: bool, compared: bool = False) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "too_large", lambda *given: by_block)
            part, folds = parts.Part("swap", "all", dict.fromkeys(names)), self.folder / "shared/folds.safetensors"
            given = self.original, self.checkpoint("shared"), "tiny", [part], self.tokens, CPU, folds, compared
            parts.measure(*given)

    def check(self) -> None:
        options = {"keep_ratio": 0.5, "beta": 3.0, "tau": -3.0, "noise_factor": 0.2}
        given = self.original, Path(self.path("channels")), self.tokens, self.depth - 1, options, PATTERNS, CPU
        check(*given, resamples=99, seed=0)

    def mix(self) -> None:
        candidates = [
            Candidate(
                *(method, self.folder / method, self.records[method], dict.fromkeys(self.linears, cost)),
                {row["linear"]: row["storage_bits"] for row in self.records[method]["linears"]},
            )
            for method, cost in (("rtn", 0.0), ("two_bits", 1.0))
        ]
        target = Output(self.folder / "mix/checkpoint", self.folder / "mix/folds.safetensors")
        budget = Budget({"bits_per_weight": 5.0, "size_mb": 0.0})
        made = MADE | {"recipe": self.records["rtn"]["provenance"]["recipe"]}
        mix_checkpoint(Source(self.original, self.linears), target, Given(candidates, False, {}, made), budget)

    def convert(self) -> None:
        convert({"directory": str(self.original)}, self.folder / "converted", self.folder / "convert.json")


NOISE = {"noise_std": 0.1, "n_noise_samples": 2, "seed": 0}
RULES: dict[str, Callable[[Study], object]] = {
    "statistics": lambda s: collect(s.material, s.path("channels"), s.path("moments"), CPU),
    "noisy": lambda s: collect_noisy(s.material, Path(s.path("channels")), s.path("noisy"), NOISE, CPU),
    "jacobian": lambda s: collect_jacobian(s.material, s.path("jacobian"), True, CPU),
    "end_loss": lambda s: collect_end_loss(s.material, s.path("weighted"), 1, 0, CPU),
    "row_moments": lambda s: collect_row_moments(s.material, s.path("rows"), 0, CPU),
    "attention": lambda s: collect_attention_rows(s.material, s.path("attention"), 0, CPU),
    **{method: lambda s, method=method: s.quantize(method) for method in RECIPES},
    "error": Study.error,
    "evaluate_whole": lambda s: s.evaluate(by_block=False),
    "evaluate_by_block": lambda s: s.evaluate(by_block=True),
    "sensitivity": lambda s: s.swap(list(s.linears)[:1], by_block=False),
    "sensitivity_by_block": lambda s: s.swap(list(s.linears)[:1], by_block=True),
    "swaps": lambda s: s.swap(list(s.linears), by_block=False, compared=True),
    "swaps_by_block": lambda s: s.swap(list(s.linears), by_block=True, compared=True),
    "check_mse": Study.check,
    "budget": Study.mix,
    "export": lambda s: export(s.checkpoint("rtn"), s.folder / "dense", "dense", "tiny"),
    "convert": Study.convert,
}  # in an order in which each finds what it reads


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Study]:
    return {depth: Study(tmp_path_factory.mktemp("study"), depth) for depth in (SHALLOW, DEEP)}


@pytest.fixture(scope="module", autouse=True)
def written_at_once() -> Iterator[None]:
    """A tensor is written before the next one is made: none waits for a thread, whose pace is its own."""
    put = behind.Behind.put

    def at_once(self: behind.Behind, *given: Any) -> None:
        put(self, *given)
        for pool in (self._thread, self._checker):
            pool.submit(int).result()  # once it has let go of what came before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behind, "CHECKERS", 1)
        patch.setattr(behind.Behind, "put", at_once)
        yield


@pytest.fixture(scope="module")
def seen(studies: dict[int, Study]) -> dict[str, dict[int, Seen]]:
    """By rule and depth."""
    with without_collector():
        return {
            name: {depth: watched(partial(rule, study)) for depth, study in studies.items()}
            for name, rule in RULES.items()
        }


@pytest.mark.parametrize("name", RULES)
def test_no_tensor_waits_for_the_collector(name: str, seen: dict[str, dict[int, Seen]]) -> None:
    assert seen[name][DEEP].left == []


@pytest.mark.parametrize("name", sorted(RULES.keys() - set(WHOLE)))
def test_memory_does_not_grow_with_depth(name: str, seen: dict[str, dict[int, Seen]]) -> None:
    """But by vectors of each block."""
    growth = (seen[name][DEEP].most - seen[name][SHALLOW].most) / (DEEP - SHALLOW)
    assert growth < BLOCK / 4


def test_which_tokens_an_expert_sees_is_known_while_it_runs_alone(tmp_path: Path) -> None:
    """Of one block after another."""
    shape = COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    saved("Qwen3MoeConfig", shape, tmp_path)
    ids, seen = [torch.arange(24)], list[int]()
    for _, _, block, advance in Run(tmp_path, ids, *CPU).each():
        for index in range(4):
            linear: Any = block.get_submodule(f"mlp.experts.{index}.up_proj")
            linear.register_forward_hook(lambda module, *given: seen.append(len(module.rows)))
        advance(lambda batch: None)
        assert not any("rows" in vars(module) for module in block.modules())
    assert sum(seen) == 24 * shape["num_hidden_layers"] * shape["num_experts_per_tok"]


def test_nothing_stays_that_is_written_before_its_checksum_is_there(
    studies: dict[int, Study], seen: dict[str, dict[int, Seen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """seen: so that statistics are there."""
    checksum = behind.checksum
    monkeypatch.setattr(behind, "checksum", lambda data: (time.sleep(0.002), checksum(data))[1])
    with without_collector():
        shallow, deep = (watched(partial(study.quantize, "l1")).most for study in studies.values())
    assert (deep - shallow) / (DEEP - SHALLOW) < BLOCK / 4
