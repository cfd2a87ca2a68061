"""Seconds that one budget more takes once candidates are finished: another_budget.py RESULTS, as results/smollm2-135m.

RESULTS holds a converted model and its second moments. Candidates of 2, 3, 4 and 8 bits are rounded to nearest there
first, in a folder that goes again, and their costs drawn, which no time depends on. Times choosing and writing under
three budgets, and the solver on 100 blocks of 4 groups with 8 candidates.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow_scripts"))

from quant.calibration.reader import Statistics
from quant.files import tensorfile
from quant.files.artifacts import read_json
from quant.methods.budgets.allocation import allocate
from quant.methods.budgets.choice import Budget, Candidate, Given
from quant.methods.budgets.mixed import mix_checkpoint
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe.recipe import Recipe
from study import methods

WIDTHS = (2, 3, 4, 8)
LIMITS = [{"bits_per_weight": 3.5, "size_mb": 0.0}, {"bits_per_weight": 4.0, "size_mb": 0.0}]
BITS = np.array([2, 2.5, 3, 3.25, 4, 5, 6, 8])  # of the solver's candidates
SHAPES = [4096 * 6144, 4096 * 4096, 4096 * 22016, 4096 * 11008]  # of a block's groups


def candidate(results: Path, folder: Path, bits: int, costs: Mapping[str, float]) -> Candidate:
    record, recipe = read_json(results / "original/convert.json"), methods()["rtn_g"] | {"bits": bits}
    own = folder / f"{bits}"
    source = Source(results / "original/checkpoint", record["linears"])
    target = Output(own / "checkpoint", own / "folds.safetensors")
    made_from = {"recipe": recipe, "seed": 0, "versions": {}, "model_fingerprint": record["fingerprint"]}
    statistics = Statistics({}, record["fingerprint"], {})
    made = quantize_checkpoint(source, target, statistics, Recipe.of(recipe), "cpu", made_from)
    sizes = {row["linear"]: row["storage_bits"] for row in made["linears"]}
    return Candidate(f"{bits} bits", own, made, {name: cost * 4.0**-bits for name, cost in costs.items()}, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    record, rng = read_json(results / "original/convert.json"), np.random.default_rng(0)
    with tensorfile.opened(next(results.glob("calibration/*/second_moments.safetensors"))) as file:
        reads = file.info("reads")
    costs = dict(zip(record["linears"], np.exp(rng.normal(0, 1, len(record["linears"]))), strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidates = [candidate(results, folder, bits, costs) for bits in WIDTHS]
        known = Given(candidates, True, reads, candidates[0].record["provenance"])
        size = (candidates[-2].checkpoint / "model.safetensors").stat().st_size / 1e6
        for limits in [*LIMITS, {"bits_per_weight": 0.0, "size_mb": size}]:
            begun, used = time.perf_counter(), time.process_time()
            source = Source(results / "original/checkpoint", record["linears"], record["left"])
            target = Output(folder / "mix/checkpoint", folder / "mix/folds.safetensors")
            made = mix_checkpoint(source, target, known, Budget(limits))
            bits = made["summary"]["bits_per_weight"]
            took, used = time.perf_counter() - begun, time.process_time() - used
            print(f"{limits}: {took:.2f} s, {used:.2f} s of a core; {bits:.4f} bits per weight", flush=True)
    weights = np.tile(SHAPES, 100)
    damage = np.exp(rng.normal(0, 1, len(weights)))[:, None] * 4.0**-BITS
    damage *= np.exp(rng.normal(0, 0.1, damage.shape))
    sizes = (weights[:, None] * (BITS + 0.25)).astype(np.int64)[None]
    for budget in (2.6, 3.5, 4.1):
        begun = time.perf_counter()
        allocate(damage, sizes, np.array([int(weights.sum() * budget)]))
        print(f"{len(weights)} groups of {len(BITS)} within {budget}: {time.perf_counter() - begun:.2f} s")


if __name__ == "__main__":
    main()
