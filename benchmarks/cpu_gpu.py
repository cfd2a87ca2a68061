"""Whether a GPU finds what a CPU finds: cpu_gpu.py CONVERTED TEXT [--methods NAME …].

CONVERTED is results/{model}/original of a finished conversion. On each of the two: statistics, recipes and evaluation
in float32, of the same tokens. Prints, for each recipe, how many linears got another α, how many of those are no ties
(their objectives differ by more than 1e-4), and by how much the perplexities differ.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.statistics import collect
from quant.data import tokens
from quant.evaluation import perplexity
from quant.files.artifacts import read_json
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute, batch_tokens
from study import PATTERNS, methods

METHODS = ["gw_awq", "gw_praq", "gw_awq_asym_l2", "full_awq", "full_praq", "awq_clip", "gptq", "awq_clip_gptq"]
CALIBRATION, HELDOUT = (64, 256), (16, 1024)  # sequences × tokens


def read_tokens(checkpoint: Path, text: Path, made: dict[str, str], folder: Path) -> list[tokens.Tokens]:
    """Calibration and evaluation sequences, from the text's beginning."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint)(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    found, at = [], 0
    for n, width in (CALIBRATION, HELDOUT):
        part = torch.tensor(ids[at : at + n * width])
        if len(part) < n * width:
            sys.exit(f"ERROR {text}: has {len(ids)} tokens; give a text of {at + n * width} or more")
        tokens.save(folder / "tokens", list(part.view(n, width)), made)
        found.append(tokens.load(folder / "tokens"))
        at += n * width
    return found


def run(where: str, converted: Path, text: Path, recipes: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """By method: its linears' records, and nats per token."""
    checkpoint, model = converted / "checkpoint", read_json(converted / "convert.json")
    made, size = {"model_fingerprint": model["fingerprint"]}, batch_tokens("auto", where)
    calibration, heldout = read_tokens(checkpoint, text, made, folder)
    files = {key: str(folder / f"{where}-{key}") for key in ("channels", "moments")}
    collect(Material(checkpoint, calibration, made), *files.values(), Compute(where, torch.float32, size))
    found = {}
    for name, recipe in recipes.items():
        known = {key: files[key] for key in keys.statistics_files(recipe)}
        target = folder / where
        record = quantize_checkpoint(
            Source(checkpoint, model["linears"]), Output(target, folder / "folds"),
            Statistics(known, model["fingerprint"], PATTERNS), Recipe.of(recipe), where, {},
        )  # fmt: skip
        quantised = perplexity.load_model(target, where, torch.float32)
        rows, _ = perplexity.evaluate(quantised, heldout, where, size)
        found[name] = record["linears"], sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--devices", nargs=2, default=["cpu", "cuda"])
    options = parser.parse_args()
    known = methods()
    chosen = {name: known[name] for name in options.methods}
    with tempfile.TemporaryDirectory() as folder:
        first, second = (run(where, options.converted, options.text, chosen, Path(folder)) for where in options.devices)
    for name in chosen:
        (rows, nll), (others, other_nll) = first[name], second[name]
        apart = [(a, b) for a, b in zip(rows, others, strict=True) if a["alpha"] != b["alpha"]]
        no_ties = [a["linear"] for a, b in apart if abs(b["objective"] / a["objective"] - 1) > 1e-4]
        print(
            f"{name}: {len(rows)} linears, another α {len(apart)}, no ties {len(no_ties)} {no_ties[:3]}; perplexity "
            f"{math.exp(nll):.4f} and {math.exp(other_nll):.4f}, apart by {100 * math.expm1(other_nll - nll):.4f} %"
        )


if __name__ == "__main__":
    main()
