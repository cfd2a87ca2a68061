"""Widths mixed within budgets on WikiText-2 test: budget.py CONVERTED TEXT [--bits 3.5 …] [--draws 30].

CONVERTED and TEXT as frontier.py takes them, calibrated on the same 128×512 tokens. Each width of `mixed` is quantised
once; then a mix for each budget beside every one width, `--draws` random assignments, predicted and measured KL beside
each other, what swaps measured on the calibration text make of the prediction (docs/methods.md, Budgets), and what the
embedding costs at 8 and 4 bits. Needs a GPU to be quick; prints lines as it goes and writes rows to OUT.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from frontier import CALIBRATION, RESAMPLES, SEED, texts

from quant.calibration.end_loss import collect_end_loss
from quant.calibration.material import Material
from quant.calibration.parts import row_parts
from quant.calibration.reader import Statistics
from quant.calibration.second_moments import from_triangle, layer_error
from quant.calibration.statistics import collect
from quant.checkpoints import stored
from quant.checkpoints.embeddings import embeddings_of, grid_of
from quant.comparison.paired import paired_difference
from quant.data import tokens
from quant.evaluation import perplexity
from quant.evaluation.divergence import kl_divergence
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.methods.budgets.allocation import allocate, tied_groups
from quant.methods.budgets.swaps import corrected, parts_of
from quant.methods.embeddings import RoundedEmbedding, rounded
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.structure.linears import embeddings_in, skeleton
from quant.recipe import keys
from quant.recipe.recipe import Recipe, Widths
from quant.recipe.widths import CANDIDATES, UNTOUCHED
from quant.records.method import MethodRecord
from quant.runtime.compute import Compute, batch_tokens, device
from study import PATTERNS, methods

WIDTHS = [bits for bits in CANDIDATES if bits != UNTOUCHED]
WINDOWS = 32  # of 2,048 tokens, that draws are measured on; mixes and widths on all
SECTIONS, SWAP_SEQUENCES = 4, 16  # of the depth, and of the calibration text: what swaps are measured on
EMBEDDINGS = [(8, -1), (4, 64), (4, 32)]
WHOLE: list[tuple[str, dict[str, int] | None]] = [  # as checkpoints
    ("awq_clip_gptq_shared", None),
    ("awq_clip_gptq_shared", {"bits": 8, "group_size": -1}),
    ("frontier_fast", {"bits": 8, "group_size": -1}),
    ("frontier_fast", {"bits": 4, "group_size": 64}),
    ("frontier", {"bits": 4, "group_size": 32}),
]


class Judge:
    """The original's last states of some sequences, and any other model's KL and NLL against it."""

    def __init__(self, original: nn.Module, sequences: Sequence[Tensor], where: str) -> None:
        self._ids = [each[None].to(where) for each in sequences]
        self._head = original.get_output_embeddings().weight.detach().clone()
        with torch.inference_mode():
            self._states = [original.base_model(ids, use_cache=False).last_hidden_state[0, :-1] for ids in self._ids]
        self.weights = np.array([ids.shape[1] - 1 for ids in self._ids], float)

    @torch.inference_mode()
    def sums(self, model: nn.Module) -> np.ndarray:
        """Each sequence's KL and delta_nll, nats [n, 2]."""
        rows = []
        for ids, states in zip(self._ids, self._states, strict=True):
            log_p = (states @ self._head.T).log_softmax(-1)
            log_q = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            more = (log_p - log_q).gather(1, ids[0, 1:, None]).sum(dtype=torch.float64)
            rows.append([kl_divergence(log_p, log_q).sum().item(), more.item()])
        return np.array(rows)

    def kl(self, model: nn.Module) -> float:
        return float(self.sums(model)[:, 0].sum() / self.weights.sum())


class Mixer:
    """A model whose linears take any candidate's weights; costs: nats [linears, candidates + 1], the last as it is."""

    def __init__(
        self,
        converted: Path,
        sequences: list[Tensor],
        folder: Path,
        where: str,
        recipe: dict[str, Any],
        grids: Sequence[tuple[int, int]],
    ) -> None:
        """grids: bits and group_size of each candidate."""
        self.checkpoint, self.folder, self.where, self.recipe = converted / "checkpoint", folder, where, recipe
        self.record = read_json(converted / "convert.json")
        self.names, fingerprint = list(self.record["linears"]), self.record["fingerprint"]
        made = {"model_fingerprint": fingerprint}
        self.files = {key: str(folder / key) for key in ("channels", "moments", "end_loss")}
        tokens.save(folder / "calibration", sequences, {})
        material = self.material = Material(self.checkpoint, tokens.load(folder / "calibration"), made)
        compute = self.compute = Compute(where, torch.float32, batch_tokens("auto", where))
        begun = time.perf_counter()
        collect(material, self.files["channels"], self.files["moments"], compute)
        middle = time.perf_counter()
        collect_end_loss(material, self.files["end_loss"], 1, SEED, compute)
        print(f"statistics {middle - begun:.1f} s, end loss {time.perf_counter() - middle:.1f} s", flush=True)
        self.made = made
        self.model = perplexity.load_model(self.checkpoint, where, torch.float32)
        self.weights = [{name: self.model.get_submodule(name).weight.detach().clone() for name in self.names}]
        columns, sizes = [np.zeros(len(self.names))], [np.array([16 * w.numel() for w in self.weights[0].values()])]
        for grid in reversed(grids):
            own, cost, size = self.candidate(*grid)
            self.weights.insert(0, own)
            columns.insert(0, cost)
            sizes.insert(0, size)
        self.costs, self.sizes = np.stack(columns, 1), np.stack(sizes, 1)
        with tensorfile.opened(self.files["moments"]) as file:
            self.groups = [
                [self.names.index(n) for n in group] for group in tied_groups(self.names, file.info("reads"))
            ]
        self.numbers = sum(w.numel() for w in self.weights[-1].values())

    def candidate(self, bits: int, group_size: int) -> tuple[dict[str, Tensor], np.ndarray, np.ndarray]:
        """Its weights, and each linear's predicted nats and bits on disk."""
        begun, recipe = time.perf_counter(), self.recipe | {"bits": bits, "group_size": group_size}
        read = {key: self.files[key] for key in keys.statistics_files(recipe) if key in self.files}
        statistics = Statistics(read, self.record["fingerprint"], PATTERNS)
        out, linears = self.folder / "candidate", self.record["linears"]
        record = quantize_checkpoint(
            Source(self.checkpoint, linears),
            Output(out, self.folder / "folds"),
            statistics,
            Recipe.of(recipe),
            self.where,
            self.made,
        )
        costs, own = [], {}
        with (
            stored.opened(out) as file,
            tensorfile.opened(self.files["end_loss"]) as known,
            tensorfile.opened(self.folder / "folds") as folds,
        ):
            for name in self.names:
                own[name] = file.weight(name, self.where)
                for side, shape in (("input", (1, -1)), ("output", (-1, 1))):
                    if f"{name}.{side}" in folds.names:
                        own[name] /= folds.get(f"{name}.{side}", self.where).view(shape)
                difference = self.weights[-1][name] - own[name]
                moments = [from_triangle(each) for each in known.get(f"{name}.moment", self.where)]
                parts = zip(
                    known.get(f"{name}.fisher").tolist(), row_parts(len(difference), len(moments)), moments, strict=True
                )
                costs.append(0.5 * sum(w * layer_error(difference[rows], h) for w, rows, h in parts))
        print(f"{bits} bits in groups of {group_size}: {time.perf_counter() - begun:.1f} s", flush=True)
        return own, np.array(costs), np.array([row["storage_bits"] for row in record["linears"]])

    def load(self, chosen: np.ndarray | Mapping[int, int]) -> nn.Module:
        """The model with each linear from its candidate; of a mapping, as it is where it says nothing."""
        picked = chosen if isinstance(chosen, Mapping) else dict(enumerate(chosen.tolist()))
        for i, name in enumerate(self.names):
            self.model.get_submodule(name).weight.data = self.weights[picked.get(i, len(self.weights) - 1)][name]
        return self.model

    def bits(self, chosen: np.ndarray) -> float:
        return float(self.sizes[np.arange(len(chosen)), chosen].sum() / self.numbers)

    def predicted(self, chosen: np.ndarray, costs: np.ndarray) -> float:
        return float(costs[np.arange(len(chosen)), chosen].sum())

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """A random assignment: shares of the widths, then each group's width by them."""
        shares, chosen = rng.dirichlet(np.ones(len(self.weights))), np.empty(len(self.names), dtype=int)
        for group in self.groups:
            chosen[group] = rng.choice(len(self.weights), p=shares)
        return chosen

    def best(self, bits: float, costs: np.ndarray) -> np.ndarray:
        of_groups, sizes = (np.stack([each[group].sum(0) for group in self.groups]) for each in (costs, self.sizes))
        chosen, found = (
            np.empty(len(self.names), dtype=int),
            allocate(of_groups, sizes[None], np.array([int(bits * self.numbers)])),
        )
        for group, candidate in zip(self.groups, found, strict=True):
            chosen[group] = candidate
        return chosen

    def embedding(self, entry: dict[str, Any]) -> list[RoundedEmbedding]:
        """RoundedEmbedding by the end loss's moments."""
        known = self.record.get("embeddings") or self.described()
        with tensorfile.opened(self.checkpoint / "model.safetensors") as file:
            recipe = Recipe.of(self.recipe | entry)
            ends = embeddings_of(known, grid_of(entry["embeddings"]))
            return list(rounded(file, ends, recipe, self.files["end_loss"], self.where, self.made))

    def whole(
        self, recipe: dict[str, Any], widths: Widths = MappingProxyType({})
    ) -> tuple[float, MethodRecord, float, nn.Module]:
        """Seconds, the record, 10⁶ bytes on disk, and the model as plain transformers loads it."""
        begun, out = time.perf_counter(), self.folder / "whole"
        read = {key: self.files[key] for key in keys.statistics_files(recipe) if key in self.files}
        statistics = Statistics(read, self.record["fingerprint"], PATTERNS)
        known = self.record.get("embeddings") or self.described()
        source = Source(self.checkpoint, self.record["linears"], embeddings=known)
        paths = source, Output(out, self.folder / "folds"), statistics
        more = {"end_loss": self.files["end_loss"]}
        if keys.way_of(recipe) == "model":
            tokens_of = self.material.tokens
            record = quantize_with_model(*paths, recipe, tokens_of, self.compute, self.made, **more, widths=widths)
        else:
            record = quantize_checkpoint(*paths, Recipe.of(recipe), self.where, self.made, **more)
        seconds = time.perf_counter() - begun
        model = perplexity.load_model(out, self.where, torch.float32)
        return seconds, record, (out / "model.safetensors").stat().st_size / 1e6, model

    def described(self) -> Any:
        """Of a model that was converted before its record said so."""
        empty = skeleton(self.checkpoint)
        with tensorfile.opened(self.checkpoint / "model.safetensors") as file:
            return embeddings_in(empty, file.names, empty.get_expanded_tied_weights_keys(all_submodels=True))


def interval(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> str:
    found = paired_difference(ours, theirs, weights, RESAMPLES, SEED)
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


def fit_words(name: str, predicted: np.ndarray, measured: np.ndarray) -> str:
    rho = pd.Series(predicted).corr(pd.Series(measured), method="spearman")
    return f"{name}: Spearman {rho:.3f}, median relative error {np.median(np.abs(predicted / measured - 1)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.5])
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--limit", type=int, default=None, help="windows that mixes are measured on")
    parser.add_argument("--out", type=Path, default=Path("budget.csv"))
    options = parser.parse_args()
    where, known = device("auto"), methods()
    torch.backends.cuda.matmul.allow_tf32 = False
    sequences, judged = texts(options.converted / "checkpoint", options.text, options.calibration)
    every = judged["wikitext"][: options.limit]
    recipe = known["awq_clip_gptq_shared"] | {"search_bits": 4, "search_group_size": 64, "refine": 3}
    rows: list[dict[str, Any]] = []

    def note(**row: Any) -> None:
        rows.append(row)
        print(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)

    with tempfile.TemporaryDirectory() as name:
        mixer = Mixer(
            options.converted, sequences, Path(name), where, recipe, [(bits, recipe["group_size"]) for bits in WIDTHS]
        )
        mixer.load({})
        judge, few = Judge(mixer.model, every, where), Judge(mixer.model, every[: options.windows], where)
        own = Judge(mixer.model, sequences[:SWAP_SEQUENCES], where)

        begun = time.perf_counter()
        parts = parts_of(mixer.record["linears"], SECTIONS)
        swaps = {}
        for part, linears in parts.items():
            for k in range(len(WIDTHS)):
                at = [mixer.names.index(each) for each in linears]
                swaps[part, k] = own.kl(mixer.load(dict.fromkeys(at, k)))
        uniform = {k: own.kl(mixer.load(np.full(len(mixer.names), k))) for k in range(len(WIDTHS))}
        fitted = corrected(mixer.costs, mixer.names, parts, swaps, uniform)
        print(
            f"{len(swaps)} swaps and {len(uniform)} widths on the calibration text: {time.perf_counter() - begun:.1f} s"
        )

        sums: dict[str, np.ndarray] = {}

        def beside(ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
            kl, delta = (interval(ours[:, i], theirs[:, i], judge.weights) for i in (0, 1))
            return {"kl": kl, "delta_nll": delta}

        def absolute(ours: np.ndarray) -> dict[str, str]:
            return beside(ours, np.zeros_like(ours))

        def measured(label: str, chosen: np.ndarray) -> None:
            sums[label] = judge.sums(mixer.load(chosen))
            nats = {"predicted": mixer.predicted(chosen, mixer.costs), "corrected": float(fitted.of(chosen).sum())}
            note(what=label, bits=mixer.bits(chosen), **absolute(sums[label]), **nats)

        for k, bits in enumerate(WIDTHS):
            measured(f"{bits} bits", np.full(len(mixer.names), k))
        for budget in options.bits:
            for label, costs in (("mix", mixer.costs), ("mix, corrected", fitted.costs)):
                own_label = f"{label}, {budget:g}"
                measured(own_label, mixer.best(budget, costs))
                for bits in WIDTHS:
                    note(what=f"{own_label} minus {bits} bits", **beside(sums[own_label], sums[f"{bits} bits"]))

        rng = np.random.default_rng(SEED)
        draws = [mixer.drawn(rng) for _ in range(options.draws)]
        found = np.array([few.kl(mixer.load(chosen)) for chosen in draws])
        raw = np.array([mixer.predicted(chosen, mixer.costs) for chosen in draws])
        better = np.array([fitted.of(chosen).sum() for chosen in draws])
        for chosen, one, two, kl in zip(draws, raw, better, found, strict=True):
            note(what="draw", bits=mixer.bits(chosen), predicted=one, corrected=two, measured=kl)
        for label, values in (("predicted", raw), ("corrected", better)):
            print(fit_words(label, values, found), flush=True)
        print(f"corrections {fitted.words()}", flush=True)

        modules = (mixer.model.get_input_embeddings(), mixer.model.get_output_embeddings())
        before = [module.weight.data for module in modules]
        for rounding, entry in [("nearest", each) for each in EMBEDDINGS[1:]] + [("gptq", each) for each in EMBEDDINGS]:
            bits, size = entry
            mixer.load({})
            for module, w in zip(modules, before, strict=True):
                module.weight.data = w
            for end in mixer.embedding({"rounding": rounding, "embeddings": {"bits": bits, "group_size": size}}):
                for owner in end.owners:
                    mixer.model.get_submodule(owner).weight.data = end.codes.dequantize().to(where)
                nats = end.predicted_nats
            label = f"embedding {bits} bits, group_size {size}, {rounding}"
            note(what=label, **absolute(judge.sums(mixer.model)), predicted=nats)
            if rounding == "gptq":  # what a file of 75 MB has left for the linears of SmolLM2-135M
                least = {8: 3.48, 4: 4.5 if size == 64 else 4.42}[bits]
                chosen = mixer.best(least, fitted.costs)
                sums[label] = judge.sums(mixer.load(chosen))
                note(what=f"{label}, and a mix", bits=mixer.bits(chosen), **absolute(sums[label]))
        for method, more in WHOLE:
            label = " ".join([method, *([f"{more['bits']}/{more['group_size']}"] if more else [])])
            seconds, _, size_mb, model = mixer.whole(known[method] | {"embeddings": more})
            sums[label] = judge.sums(model)
            note(what=label, size_mb=size_mb, seconds=seconds, **absolute(sums[label]))
            del model
        for label in (
            *(each for each in sums if each.startswith(("embedding", "frontier"))),
            "awq_clip_gptq_shared 8/-1",
        ):
            note(what=f"{label} minus {WHOLE[0][0]}", **beside(sums[label], sums[WHOLE[0][0]]))


if __name__ == "__main__":
    main()
