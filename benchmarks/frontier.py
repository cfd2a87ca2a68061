"""The frontier's recipes on WikiText-2 test and on a text of another kind: frontier.py CONVERTED TEXT [--bits 4 3 2].

CONVERTED is results/{model}/original of a finished conversion, TEXT the raw test split. Calibrates on the first 128×512
tokens (--calibration and --mix: on more, and on those of another text), evaluates the rest and 65,536 tokens of the
Python language reference (Python's own pydoc_data, which no calibration saw) in windows of --width, in float32, groups
of 64, asymmetric. Needs a GPU to be quick. Prints delta_nll and KL(original ‖ method) over every token with their 95 %
intervals, seconds with the statistics among them and the GPU's peak memory; writes them to OUT after each method, and
each window's sums to a folder beside it, where a later run finds those of methods that it does not measure. At the end
what each has learnt of the texts, beside the same method that is fitted less (docs/methods.md, Has a method learnt the
text?), and each beside AutoRound, or the method that --beside names: differences with their 95 % intervals, p corrected
over all of them. `--methods autoround --environment PATH` measures AutoRound; PATH is a folder that build_library made.
"""

import argparse
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.calibration.attention_moments import collect_attention_rows
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.row_moments import collect_row_moments
from quant.calibration.statistics import collect
from quant.comparison.learnt import learnt_terms
from quant.comparison.paired import holm, paired_difference
from quant.comparison.pairs import Recipes, fitted_further
from quant.data import tokens
from quant.data.texts import in_turns, shares
from quant.evaluation import perplexity
from quant.evaluation.divergence import kl_divergence
from quant.files.artifacts import read_json
from quant.methods.library import quantize_library
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source, provenance_of
from quant.methods.with_model.quantize import quantize_with_model
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute, batch_tokens, device
from study import PATTERNS, methods

METHODS = ["frontier", "frontier_fast", "awq_clip_gptq_shared"]
LIBRARY = "autoround"
CALIBRATION, WIDTH = (128, 512), 2048
PYTHON_TOKENS = 2**16
RESAMPLES, SEED = 9999, 42
WARM_UP = 8  # sequences that a first, untimed run compiles its kernels on


def texts(
    checkpoint: Path, text: Path, calibration: int, name: str = "wikitext", width: int = WIDTH, mix: Path | None = None
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Calibration sequences, those of `mix` in turns with the text's, and the windows to evaluate by text: of the one
    that calibrates, called `name`, those behind them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def read(words: str) -> Tensor:
        return torch.tensor(tokenizer(words, verbose=False)["input_ids"])

    topics = pydoc_data.topics.topics
    ids, python = read(text.read_text(encoding="utf-8")), read("\n\n".join(topics[name] for name in sorted(topics)))
    sources = [ids] if mix is None else [ids, read(mix.read_text(encoding="utf-8"))]
    counts = shares(calibration, len(sources))
    head = max(CALIBRATION[0], counts[0]) * CALIBRATION[1]
    judged = {name: ids[head:], "python": python[:PYTHON_TOKENS]}
    parts = [
        tokens.windows(each[: n * CALIBRATION[1]], CALIBRATION[1]) for each, n in zip(sources, counts, strict=True)
    ]
    return in_turns(parts), {key: tokens.windows(each, width) for key, each in judged.items()}


@torch.inference_mode()
def judge(original: nn.Module, quantised: nn.Module, sequences: list[Tensor], where: str) -> np.ndarray:
    """Each sequence's sums over its predictions [n, 3], nats: NLL of the original, NLL of the quantised model, KL."""
    rows = []
    for sequence in sequences:
        ids = sequence[None].to(where)
        log_p, log_q = (
            model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1) for model in (original, quantised)
        )
        wanted = ids[0, 1:, None]
        losses = [-each.gather(1, wanted).sum(dtype=torch.float64).item() for each in (log_p, log_q)]
        rows.append([*losses, kl_divergence(log_p, log_q).sum().item()])
    return np.array(rows)


def summary(found: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, float]:
    """Means and ends of their 95 % intervals by text."""
    row: dict[str, float] = {}
    for name, sums in found.items():
        pairs = {"delta_nll": (sums[:, 1], sums[:, 0]), "kl": (sums[:, 2], np.zeros(len(sums)))}
        for key, (ours, theirs) in pairs.items():
            each = paired_difference(ours, theirs, weights[name], RESAMPLES, SEED)
            row |= {f"{name}_{key}": each.mean, f"{name}_{key}_low": each.low, f"{name}_{key}_high": each.high}
    return row


Sums = dict[str, np.ndarray]


def learnt_lines(found: dict[tuple[str, int], Sums], weights: dict[str, np.ndarray], known: Recipes) -> Iterator[str]:
    """found: of `judge` by method and bits."""
    recipes = {method: known[method] | {"bits": 0} for method, _ in found}
    for _, method, before in fitted_further(recipes):
        for bits in [bits for name, bits in found if name == method and (before, bits) in found]:
            for text, own in found[method, bits].items():
                other = found[before, bits][text]
                d_a, d_b = (sums[:, 1] - sums[:, 0] for sums in (own, other))
                terms = learnt_terms(d_a, d_b, own[:, 2], other[:, 2])
                one = paired_difference(terms, np.zeros(len(terms)), weights[text], RESAMPLES, SEED)
                yield (
                    f"{method} after {before}, {bits} bits, {text}: leaves {d_a.sum() / d_b.sum():.3f} of delta_nll "
                    f"and {own[:, 2].sum() / other[:, 2].sum():.3f} of KL; learnt {one.mean:.4f} [{one.low:.4f}, "
                    f"{one.high:.4f}] nats per token, p {one.p:.4f}"
                )


def beside(name: str, found: dict[tuple[str, int], Sums], weights: dict[str, np.ndarray]) -> Iterator[str]:
    """Each method less the one of that name; found: of `judge` by method and bits."""
    differences = {
        (method, bits, text, measure): paired_difference(own[:, at], other[text][:, at], weights[text], RESAMPLES, SEED)
        for (method, bits), sums in found.items()
        if method != name and (other := found.get((name, bits))) is not None
        for text, own in sums.items()
        for measure, at in (("NLL", 1), ("KL", 2))
    }
    corrected = holm([each.p for each in differences.values()])
    for (key, each), p in zip(differences.items(), corrected, strict=True):
        method, bits, text, measure = key
        yield (
            f"{method} less {name}, {bits} bits, {text}: {measure} {each.mean:+.4f} [{each.low:+.4f}, "
            f"{each.high:+.4f}], p {p:.4f}"
        )


def kept_sums(folder: Path, names: Iterable[str]) -> dict[tuple[str, int], Sums]:
    """Of all runs that left theirs there, `METHOD-BITS-TEXT.npy`."""
    found: dict[tuple[str, int], Sums] = {}
    for path in sorted(folder.glob("*.npy")):
        method, bits, text = path.stem.rsplit("-", 2)
        if text in names:
            found.setdefault((method, int(bits)), {})[text] = np.load(path)
    return found


class Study:
    """One model and its statistics, quantised by one recipe after the other."""

    def __init__(
        self, converted: Path, sequences: list[Tensor], folder: Path, where: str, environment: Path | None = None
    ) -> None:
        self._environment = environment
        self._checkpoint, self._where, self._folder = converted / "checkpoint", where, folder
        self._model = read_json(converted / "convert.json")
        self._made = {"model_fingerprint": self._model["fingerprint"]}
        self._files = {key: folder / key for key in ("channels", "moments")}
        self._seconds_of_rows: dict[str, float] = {}
        tokens.save(folder / "calibration", sequences, self._made)
        self._material = Material(self._checkpoint, tokens.load(folder / "calibration"), self._made)
        self._compute = Compute(where, torch.float32, batch_tokens("auto", where))

    def _watched(self, run: Any) -> tuple[float, float, Any]:
        """Seconds, peak GB on the GPU, and what it returned."""
        if self._where == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - begun
        return seconds, torch.cuda.max_memory_allocated() / 1e9 if self._where == "cuda" else 0.0, found

    def statistics(self) -> float:
        """Collects them; seconds."""
        files = self._files["channels"], self._files["moments"]
        return self._watched(lambda: collect(self._material, *files, self._compute))[0]

    def _rows(self, way: str) -> float:
        """Moments of outputs, which few recipes read, by a way of `row_moment`; the seconds that they took."""
        path = self._files["rows"] = self._folder / f"{way}-rows"
        if not path.exists():
            collect = {"end_loss": collect_row_moments, "attention": collect_attention_rows}[way]
            work = (self._material, str(path), SEED, self._compute)
            self._seconds_of_rows[way] = self._watched(lambda: collect(*work))[0]
        return self._seconds_of_rows[way]

    def quantise(self, recipe: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
        """The checkpoint is in `quantised`; seconds, peak GB, and the record."""
        if "algorithm" in recipe:
            return self._watched(lambda: self._library(recipe))
        more = self._rows(recipe["row_moment"]) if "rows" in keys.statistics_files(recipe) else 0.0
        seconds, peak, record = self._quantised(recipe)
        return more + seconds, peak, record

    def _quantised(self, recipe: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
        files = {key: str(self._files[key]) for key in keys.statistics_files(recipe)}
        statistics = Statistics(files, self._model["fingerprint"], PATTERNS, plain_share=recipe["plain_share"])
        source = Source(self._checkpoint, self._model["linears"])
        paths = source, Output(self.quantised, self._folder / "folds"), statistics
        if recipe["inputs"] == "sequential" or recipe["tune"]:
            way = (recipe, self._material.tokens, self._compute, self._made)
            return self._watched(lambda: quantize_with_model(*paths, *way))
        return self._watched(lambda: quantize_checkpoint(*paths, Recipe.of(recipe), self._where, self._made))

    def _library(self, recipe: dict[str, Any]) -> dict[str, Any]:
        assert self._environment is not None, "--environment says where the library is"
        self.quantised.mkdir(exist_ok=True)
        names = SimpleNamespace(model="benchmark", method=recipe["algorithm"])
        made = provenance_of(self._model, recipe, names)
        source, out = Source.of(self._checkpoint, self._model), Output(self.quantised, self._folder / "folds")
        given = self._folder / "calibration", self._environment, made, self._where, batch_tokens("auto", self._where)
        return dict(quantize_library(source, out, *given))

    @property
    def quantised(self) -> Path:
        return self._folder / "quantised"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--mix", type=Path, help="a text that gives half of them, in turns with TEXT")
    parser.add_argument("--name", default="wikitext", help="what TEXT is called in the figures")
    parser.add_argument("--width", type=int, default=WIDTH, help="tokens of a window that is evaluated")
    parser.add_argument("--beside", default=LIBRARY, help="the method that the others' differences are from")
    parser.add_argument("--environment", type=Path, help="AutoRound's")
    parser.add_argument("--out", type=Path, default=Path("frontier.csv"))
    options = parser.parse_args()
    where, known = device("auto"), methods()
    torch.backends.cuda.matmul.allow_tf32 = False
    way = options.text, options.calibration, options.name, options.width, options.mix
    sequences, judged = texts(options.converted / "checkpoint", *way)
    weights = {name: np.array([len(each) - 1 for each in part], float) for name, part in judged.items()}
    original = perplexity.load_model(options.converted / "checkpoint", where, torch.float32)
    rows: list[dict[str, Any]] = []
    left = options.out.with_suffix(".sums")
    left.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if where == "cuda":
            (folder / "warm").mkdir()
            warm = Study(options.converted, sequences[:WARM_UP], folder / "warm", where)
            warm.statistics()
            tunes = any(known[method].get("tune") for method in options.methods)
            warm.quantise(known["frontier" if tunes else "frontier_fast"])
        study = Study(options.converted, sequences, folder, where, options.environment)
        before = study.statistics()
        for method in options.methods:
            for bits in options.bits:
                seconds, peak, record = study.quantise(known[method] | {"bits": bits})
                quantised = perplexity.load_model(study.quantised, where, torch.float32)
                found = {text: judge(original, quantised, part, where) for text, part in judged.items()}
                del quantised
                for text, each in found.items():
                    np.save(left / f"{method}-{bits}-{text}.npy", each)
                whole = seconds if "algorithm" in known[method] else before + seconds
                rows.append({"method": method, "bits": bits, "seconds": whole, "peak_gb": peak})
                rows[-1] |= summary(found, weights) | record.get("tuning", {})
                words = (f"{key} {v:.4f}" if isinstance(v, float) else f"{key} {v}" for key, v in rows[-1].items())
                print(", ".join(words), flush=True)
                pd.DataFrame(rows).to_csv(options.out, index=False)
    sums = kept_sums(left, judged)
    print("\n".join([*learnt_lines(sums, weights, known), *beside(options.beside, sums, weights)]))


if __name__ == "__main__":
    main()
