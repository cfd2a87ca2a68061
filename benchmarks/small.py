"""The smallest files with the least damage, as GGUF: small.py CONVERTED TEXT [--size-mb 75].

CONVERTED and TEXT as frontier.py takes them, calibrated on the same 128×512 tokens. Every linear and the tied
embedding is in IQ4_NL (4.5 bits), but those of ROOM in Q3_K (3.44 bits) that lose least by it, by the end loss, as many
as SIZE_MB asks for: the whole of model.gguf, tokenizer and all. The file is written and judged as transformers reads it
back, then the packed checkpoint that it was made of, each beside the checkpoint of BESIDE: KL(original ‖ method) and
delta_nll with their 95 % intervals and the paired difference. Needs a GPU to be quick; prints lines as it goes and
writes rows to OUT, each window's sums beside it.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from budget import Judge, interval
from frontier import CALIBRATION, SEED, Study, texts

from quant.calibration.end_loss import collect_end_loss
from quant.calibration.parts import row_parts
from quant.calibration.reader import Statistics
from quant.calibration.second_moments import from_triangle, layer_error
from quant.checkpoints.export import export
from quant.evaluation import perplexity
from quant.files import tensorfile
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.methods.with_model.quantize import quantize_with_model
from quant.models.structure.linears import embeddings_in, skeleton
from quant.recipe import grids, keys
from quant.recipe.grids import Grid
from quant.recipe.recipe import Recipe
from quant.runtime.compute import device
from study import PATTERNS, methods

BESIDE = "awq_clip_gptq_shared"
ROOM = "mlp.down_proj"
SMALL = {"bits": 3, "group_size": 16, "symmetric": True, "format": "q3_k"}
OTHER = {"format": "iq4_nl", "bits": 4, "group_size": 32, "symmetric": True}
EMBEDDING = {"bits": 4, "group_size": 32, "format": "iq4_nl"}
MEASURES = ("kl", "delta_nll")
WAYS: dict[str, dict[str, Any]] = {
    "fast": {},
    "reconstructed": {"reconstruct": {}},
    "tuned": {"reconstruct": {}, "tune": {"epochs": 2, "rate": 0.0005}},  # at 4 bits less serves the part held out
    "unscaled": {"salience": "none", "reconstruct": {}},
}


class Small(Study):
    """A study that quantises the embedding too, and writes a GGUF."""

    def begin(self, sequences: int | None) -> None:
        """Statistics, the end loss of the first sequences, and what each linear of ROOM loses in SMALL instead of
        OTHER, nats."""
        self.statistics()
        self._files["end_loss"] = self._folder / "end_loss"
        tokens = self._material.tokens
        few = self._material._replace(tokens=tokens._replace(sequences=tokens.sequences[:sequences]))
        collect_end_loss(few, self._files["end_loss"], 1, SEED, self._compute)
        empty = skeleton(self._checkpoint)
        self.losses: dict[str, float] = {}
        with tensorfile.opened(self._checkpoint / "model.safetensors") as file:
            tied = empty.get_expanded_tied_weights_keys(all_submodels=True)
            self._embeddings = self._model.get("embeddings") or embeddings_in(empty, file.names, tied)
            with tensorfile.opened(self._files["end_loss"]) as known:
                for name in (each for each in self._model["linears"] if each.endswith(ROOM)):
                    w = file.get(f"{name}.weight", self._where, torch.float32)
                    self._shape = w.shape
                    if w.shape[1] % 256 == 0:
                        costs = [self._cost(w, name, known, Grid(**grid)) for grid in (SMALL, OTHER)]
                        self.losses[name] = costs[0] - costs[1]

    def _cost(self, w: torch.Tensor, name: str, known: tensorfile.TensorFile, grid: Grid) -> float:
        moments = [from_triangle(each) for each in known.get(f"{name}.moment", self._where)]
        weighted = zip(known.get(f"{name}.fisher").tolist(), row_parts(len(w), len(moments)), moments, strict=True)
        difference = w - grids.nearest(w, grid, moments[0].diagonal())
        return 0.5 * sum(fisher * layer_error(difference[rows], h) for fisher, rows, h in weighted)

    def types(self, count: int) -> list[dict[str, Any]]:
        """The grids of the linears that lose least, so many."""
        least = sorted(self.losses, key=self.losses.__getitem__)[:count]
        names = "|".join(name.replace(".", r"\.") for name in sorted(least))
        return [SMALL | {"linears": f"^({names})$"}] if least else []

    def whole(self, recipe: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """The checkpoint is in `quantised`; seconds, and the record."""
        begun = time.perf_counter()
        read = {key: str(self._files[key]) for key in keys.statistics_files(recipe) if key in self._files}
        statistics = Statistics(read, self._model["fingerprint"], PATTERNS)
        source = Source(self._checkpoint, self._model["linears"], embeddings=self._embeddings)
        paths = source, Output(self.quantised, self._folder / "folds"), statistics
        learns = "embedding_moments" in keys.statistics_files(recipe)
        more = {"end_loss": str(self._files["end_loss"]) if learns else None}
        if keys.way_of(recipe) == "model":
            record = quantize_with_model(*paths, recipe, self._material.tokens, self._compute, self._made, **more)
        else:
            record = quantize_checkpoint(*paths, Recipe.of(recipe), self._where, self._made, **more)
        return time.perf_counter() - begun, record

    def count(self, size_mb: float) -> int:
        """How many linears must be in SMALL for a file of at most that."""
        recipe = keys.defaults() | OTHER | {"embeddings": EMBEDDING, "n_calib": 1, "seed": SEED, "tensor_types": []}
        self.whole(recipe)  # to the nearest: a file is as large however it is rounded
        _, made = self.gguf()
        saved = (4.5 - 3.4375) / 8e6 * np.prod(self._shape)
        return min(len(self.losses), max(0, int(np.ceil((made["size_mb"] - size_mb) / saved))))

    def gguf(self) -> tuple[Path, dict[str, Any]]:
        """The file, its types, its 10⁶ bytes and how many steps it is off."""
        made = export(self.quantised, self._folder / "gguf", "gguf", self._model["fingerprint"])
        return self._folder / "gguf/model.gguf", {key: made[key] for key in ("type", "size_mb", "largest_deviation")}


def loaded(path: Path, where: str) -> nn.Module:
    """A GGUF file as transformers reads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).to(where).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--size-mb", type=float, default=75.0)
    parser.add_argument("--small", type=int, help="linears in SMALL, if it is known how many")
    parser.add_argument("--ways", nargs="+", default=["reconstructed"], choices=list(WAYS))
    parser.add_argument("--calibration", type=int, default=CALIBRATION[0], help="sequences of 512 tokens")
    parser.add_argument("--end-loss", type=int, help="sequences that the end loss is taken of, if not all")
    parser.add_argument("--texts", nargs="+", default=["wikitext", "python"])
    parser.add_argument("--every", type=int, default=1, help="windows that are judged: every so many")
    parser.add_argument("--keep", type=Path, help="a folder that the file of each way is copied to, as WAY.gguf")
    parser.add_argument("--out", type=Path, default=Path("small.csv"))
    options = parser.parse_args()
    where, known = device("auto"), methods()
    torch.backends.cuda.matmul.allow_tf32 = False
    sequences, judged = texts(options.converted / "checkpoint", options.text, options.calibration)
    rows: list[dict[str, Any]] = []

    def note(**row: Any) -> None:
        rows.append(row)
        print(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        pd.DataFrame(rows).to_csv(options.out, index=False)

    original = perplexity.load_model(options.converted / "checkpoint", where, torch.float32)
    judges = {text: Judge(original, judged[text][:: options.every], where) for text in options.texts}
    found = {f"weights-{text}": each.weights for text, each in judges.items()}
    with tempfile.TemporaryDirectory() as name:
        study = Small(options.converted, sequences, Path(name), where)
        begun = time.perf_counter()
        study.begin(options.end_loss)
        note(what="statistics and end loss", seconds=time.perf_counter() - begun)

        def judge(what: str, model: nn.Module, **row: Any) -> dict[str, np.ndarray]:
            sums = {text: each.sums(model) for text, each in judges.items()}
            found.update({f"{what}-{text}": own for text, own in sums.items()})
            np.savez(options.out.with_suffix(".npz"), **found)
            for text, own in sums.items():
                other = np.zeros_like(own)
                pair = {key: interval(own[:, i], other[:, i], judges[text].weights) for i, key in enumerate(MEASURES)}
                note(what=what, text=text, **row, **pair)
            return sums

        seconds, _ = study.whole(known[BESIDE])
        size = (study.quantised / "model.safetensors").stat().st_size / 1e6
        beside = judge(BESIDE, perplexity.load_model(study.quantised, where, torch.float32), size_mb=size)
        for way in options.ways:
            recipe = keys.filled(known["frontier_fast"] | WAYS[way]) | OTHER | {"embeddings": EMBEDDING}
            count = study.count(options.size_mb) if options.small is None else options.small
            types = study.types(count)
            note(what="types", of=types[0]["linears"] if types else "")
            seconds, record = study.whole(recipe | {"tensor_types": types})
            path, made = study.gguf()
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, options.keep / f"{way}.gguf")
            own, file = perplexity.load_model(study.quantised, where, torch.float32), loaded(path, where)
            with torch.inference_mode():
                ids = judged["wikitext"][0][None].to(where)
                both = [model(ids, use_cache=False).logits for model in (own, file)]
            apart = (both[0] - both[1]).abs().max().item() / both[0].std().item()  # standard deviations of the logits
            of_file = {"small": count, "seconds": seconds, **made, "apart": apart, **record.get("tuning", {})}
            for what, model, row in ((f"{way}, its file", file, of_file), (f"{way}, its checkpoint", own, {})):
                for text, sums in judge(what, model, **row).items():
                    pair = {
                        key: interval(sums[:, i], beside[text][:, i], judges[text].weights)
                        for i, key in enumerate(MEASURES)
                    }
                    note(what=f"{what} minus {BESIDE}", text=text, **pair)


if __name__ == "__main__":
    main()
