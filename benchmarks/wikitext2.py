"""Recipes on WikiText-2 test, as the papers measure: wikitext2.py CONVERTED TEXT [--bits 4 3] [--methods NAME …].

CONVERTED is results/{model}/original of a finished conversion, TEXT the raw test split. Calibrates on the first
128×512 tokens and evaluates the rest in windows of 2,048, in float32, groups of 64, asymmetric. Needs a GPU to be
quick. Prints perplexity and delta_nll with its paired 95 % interval, and writes them to wikitext2.csv.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.calibration.jacobian import collect_jacobian
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.statistics import collect
from quant.comparison.paired import paired_difference
from quant.data import tokens
from quant.evaluation import perplexity
from quant.files.artifacts import read_json
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute, batch_tokens, device
from study import PATTERNS, methods

METHODS = [
    *("rtn_g", "rtn_clip", "gw_awq", "gw_awq_asym_l2", "gw_praq", "gptq", "gptq_clip"),
    *("awq_clip", "awq_gptq", "awq_clip_gptq", "awq_clip_gptq_shared"),
    *("praq_jacobian", "praq_jacobian_gptq", "praq_residual_gptq"),
]


def read_tokens(checkpoint: Path, text: Path, folder: Path) -> tuple[tokens.Tokens, tokens.Tokens]:
    """Calibration and evaluation sequences, cut from one text."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint)(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    head = 128 * 512
    parts = {"calibration": (ids[:head], 512), "heldout": (ids[head:], 2048)}
    for name, (part, width) in parts.items():
        tokens.save(folder / name, tokens.windows(torch.tensor(part), width), {})
    return tokens.load(folder / "calibration"), tokens.load(folder / "heldout")


def nll(checkpoint: Path, heldout: tokens.Tokens, where: str) -> np.ndarray:
    """Sum over each sequence, nats."""
    model = perplexity.load_model(checkpoint, where, torch.float32)
    size = batch_tokens("auto", where)
    rows, _ = perplexity.evaluate(model, heldout, where, size)
    return np.array([row["nll"] for row in rows])


def recipes(names: list[str], bits: int) -> dict[str, dict[str, Any]]:
    """Recipes of config.yaml at another width; asymmetric throughout."""
    known = methods()
    return {name: known[name] | {"bits": bits, "symmetric": False} for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    where, checkpoint = device("auto"), options.converted / "checkpoint"
    model = read_json(options.converted / "convert.json")
    made = {"model_fingerprint": model["fingerprint"]}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration, heldout = read_tokens(checkpoint, options.text, folder)
        material = Material(checkpoint, calibration, made)
        compute = Compute(where, torch.float32, batch_tokens("auto", where))
        files = {key: folder / key for key in ("channels", "moments", "jacobian", "jacobian_residual")}
        collect(material, files["channels"], files["moments"], compute)
        for key in ("jacobian", "jacobian_residual"):
            collect_jacobian(material, str(files[key]), key.endswith("residual"), compute)
        original = nll(checkpoint, heldout, where)
        weights = np.array([len(sequence) - 1 for sequence in heldout.sequences], float)
        print(f"original perplexity {np.exp(original.sum() / weights.sum()):.3f}", flush=True)
        for bits in options.bits:
            found = {}
            for method, recipe in recipes(options.methods, bits).items():
                begun = time.perf_counter()
                wanted = {
                    key: files[Path(path).stem if "jacobian" in path else key]
                    for key, path in keys.statistics_files(recipe).items()
                }
                statistics = Statistics(wanted, model["fingerprint"], PATTERNS, plain_share=recipe["plain_share"])
                target = folder / "quantised"
                quantize_checkpoint(
                    Source(checkpoint, model["linears"]),
                    Output(target, folder / "folds"),
                    statistics,
                    Recipe.of(recipe),
                    where,
                    made,
                )
                seconds = time.perf_counter() - begun
                found[method] = nll(target, heldout, where)
                delta = paired_difference(found[method], original, weights, 9999, 42)
                rows.append({"bits": bits, "method": method, "ppl": np.exp(found[method].sum() / weights.sum())})
                rows[-1] |= {"delta_nll": delta.mean, "low": delta.low, "high": delta.high, "quantize_s": seconds}
                words = (
                    f"{key} {value:.4f}" if isinstance(value, float) else str(value) for key, value in rows[-1].items()
                )
                print(", ".join(words), flush=True)
            if {"praq_jacobian_gptq", "awq_clip_gptq"} <= found.keys():
                between = found["praq_jacobian_gptq"], found["awq_clip_gptq"]
                print(
                    f"{bits} bits: praq_jacobian_gptq - awq_clip_gptq", paired_difference(*between, weights, 9999, 42)
                )
    pd.DataFrame(rows).to_csv("wikitext2.csv", index=False)


if __name__ == "__main__":
    main()
