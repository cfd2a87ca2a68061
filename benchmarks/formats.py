"""Number formats at equal bits on WikiText-2 test: formats.py CONVERTED TEXT [--roundings nearest gptq] [--cells …].

CONVERTED is results/{model}/original of a finished conversion, TEXT the raw test split. Calibrates on the first 128×512
tokens and evaluates the rest in windows of 2,048, in float32. Every format is rounded to nearest, and clipped and fed
back (gptq); those of 8 bits also with inputs rounded as they run. Prints delta_nll and KL(original ‖ method) with their
95 % intervals, the bits of a weight as stored, and for every two formats whose bits are within 2 % of each other the
paired difference in KL; writes OUT.
"""

import argparse
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from frontier import RESAMPLES, SEED, Study, judge, summary, texts

from quant.comparison.paired import paired_difference
from quant.evaluation import perplexity
from quant.recipe import keys
from quant.recipe.formats import fixed
from quant.runtime.compute import device

# by name: the grid; whole numbers of about the same bits stand behind each float
GRIDS: dict[str, dict[str, Any]] = {
    "nvfp4": {"format": "nvfp4"},
    "int4_32": {"bits": 4, "group_size": 32, "symmetric": True},
    "mxfp4": {"format": "mxfp4"},
    "nf4_64": {"format": "nf4", "group_size": 64},
    "int4_64": {"bits": 4, "group_size": 64, "symmetric": True},
    "int4_64_zero": {"bits": 4, "group_size": 64, "symmetric": False},
    "fp8": {"format": "fp8"},
    "int8": {"format": "int8"},
    "fp8_inputs": {"format": "fp8", "activations": "dynamic"},
    "int8_inputs": {"format": "int8", "activations": "dynamic"},
}
ROUNDINGS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "gptq": {"clip": True, "rounding": "gptq"},
    "refined": {"clip": True, "rounding": "gptq", "refine": 3},
    "flips": {"clip": True, "rounding": "greedy_flip"},
}
EQUAL = 0.02  # relative difference in bits


def recipe(grid: str, rounding: str) -> dict[str, Any]:
    known = keys.defaults() | {"n_calib": 128, "seed": SEED} | GRIDS[grid] | ROUNDINGS[rounding]
    return known | {key: values[0] for key, values in fixed(known["format"]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--roundings", nargs="+", default=["nearest", "gptq"])
    parser.add_argument("--cells", nargs="+", help="ROUNDING/GRID each, in place of every grid in every rounding")
    parser.add_argument("--every", type=int, default=1, help="windows that are judged: every so many")
    parser.add_argument("--calibration", type=int, default=128, help="sequences of 512 tokens")
    parser.add_argument("--out", type=Path, default=Path("formats.csv"))
    options = parser.parse_args()
    where = device("auto")
    torch.backends.cuda.matmul.allow_tf32 = False
    sequences, judged = texts(options.converted / "checkpoint", options.text, options.calibration)
    judged = {"wikitext": judged["wikitext"][:: options.every]}
    weights = {name: np.array([len(each) - 1 for each in part], float) for name, part in judged.items()}
    original = perplexity.load_model(options.converted / "checkpoint", where, torch.float32)
    rows: list[dict[str, Any]] = []
    sums: dict[tuple[str, str], np.ndarray] = {}
    cells = options.cells or [f"{rounding}/{grid}" for rounding in options.roundings for grid in options.grids]
    with tempfile.TemporaryDirectory() as name:
        study = Study(options.converted, sequences, Path(name), where)
        study.statistics()
        for rounding, grid in (cell.split("/") for cell in cells):
            seconds, _, record = study.quantise(recipe(grid, rounding))
            quantised = perplexity.load_model(study.quantised, where, torch.float32)
            found = {text: judge(original, quantised, part, where) for text, part in judged.items()}
            del quantised
            sums[rounding, grid] = found["wikitext"]
            bits, storage = (record["summary"][key] for key in ("bits_per_weight", "storage"))
            rows.append({"rounding": rounding, "grid": grid, "bits": bits, "storage": storage, "seconds": seconds})
            rows[-1] |= summary(found, weights)
            words = (f"{key} {v:.4f}" if isinstance(v, float) else f"{key} {v}" for key, v in rows[-1].items())
            print(", ".join(words), flush=True)
            pd.DataFrame(rows).to_csv(options.out, index=False)
    for one, other in combinations(rows, 2):
        if one["rounding"] == other["rounding"] and abs(one["bits"] / other["bits"] - 1) < EQUAL:
            pair = (sums[row["rounding"], row["grid"]][:, 2] for row in (one, other))
            between = paired_difference(*pair, weights["wikitext"], RESAMPLES, SEED)
            print(
                f"{one['rounding']}: KL {one['grid']} ({one['bits']:.3f} bits) - {other['grid']} ({other['bits']:.3f}) "
                f"{between.mean:.5f} [{between.low:.5f}, {between.high:.5f}], p {between.p:.4f}"
            )


if __name__ == "__main__":
    main()
