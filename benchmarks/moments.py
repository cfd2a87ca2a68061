"""What second moments in bfloat16 cost: moments.py CONVERTED TEXT [--methods NAME …].

CONVERTED and TEXT as in frontier.py: calibrates on the first 128×512 tokens, evaluates the rest, in float32, groups of
64. Prints NLL by moments in float32 and in bfloat16, their difference with its 95 % interval, paired by window, and in
how many linears GPTQ needed more damping. Needs a GPU to be quick.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from frontier import CALIBRATION, RESAMPLES, SEED, texts  # which puts the library on the path

from quant.calibration.expert_moments import Keeping
from quant.calibration.material import Material
from quant.calibration.reader import Statistics
from quant.calibration.statistics import collect
from quant.comparison.paired import paired_difference
from quant.data.tokens import Tokens, fingerprint
from quant.evaluation.head import Head
from quant.evaluation.perplexity import load_model, measure
from quant.files.artifacts import read_json
from quant.methods.quantize import quantize_checkpoint
from quant.methods.source import Output, Source
from quant.recipe import keys
from quant.recipe.recipe import Recipe
from quant.runtime.compute import Compute, batch_tokens, device
from study import PATTERNS, methods

METHODS = ["gw_awq_asym_l2", "gptq", "awq_clip_gptq_shared"]


def tokens_of(sequences: list[torch.Tensor]) -> Tokens:
    return Tokens(sequences, fingerprint(sequences), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("converted", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sequences", type=int, default=CALIBRATION[0])
    parser.add_argument("--windows", type=int, help="to evaluate, at most")
    options = parser.parse_args()
    where, checkpoint = device("auto"), options.converted / "checkpoint"
    record = read_json(options.converted / "convert.json")
    calibration, windows = texts(checkpoint, options.text, options.sequences)
    heldout = tokens_of(next(iter(windows.values()))[: options.windows])
    compute = Compute(where, torch.float32, batch_tokens("auto", where))
    material = Material(checkpoint, tokens_of(calibration), {"model_fingerprint": record["fingerprint"]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for store in ("float32", "bfloat16"):
            collect(material, folder / "channels", folder / store, compute, keeping=Keeping(store))
        for method in options.methods:
            recipe, rows, damped = methods()[method], {}, {}
            for store in ("float32", "bfloat16"):
                known = {"channels": folder / "channels", "moments": folder / store}
                files = {key: str(known[key]) for key in keys.statistics_files(recipe) if key in known}
                made = quantize_checkpoint(
                    Source(checkpoint, record["linears"]), Output(folder / "made", folder / "folds"),
                    Statistics(files, record["fingerprint"], PATTERNS), Recipe.of(recipe), where, {},
                )  # fmt: skip
                damped[store] = sum((row["damp"] or 0) > recipe.get("damp", 0) for row in made["linears"])
                with torch.inference_mode():
                    head = Head(load_model(folder / "made", where, torch.float32), where)
                    rows[store], _ = measure(head, heldout, compute.batch_tokens)
            whole, half = (np.array([row["nll"] for row in rows[s]]) for s in ("float32", "bfloat16"))
            lengths = np.array([row["tokens"] for row in rows["float32"]], dtype=float)
            found = paired_difference(half, whole, lengths, RESAMPLES, SEED)
            print(
                f"{method}: NLL {whole.sum() / lengths.sum():.4f} by float32, bfloat16 minus that "
                f"{found.mean:+.5f} [{found.low:+.5f}, {found.high:+.5f}]; more damping in {damped['float32']} and "
                f"{damped['bfloat16']} of {len(record['linears'])} linears",
                flush=True,
            )


if __name__ == "__main__":
    main()
