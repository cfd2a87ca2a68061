"""Perplexity of a checkpoint with and without the inverse scale: real_awq.py MODEL_RESULTS METHOD DATASET.

Multiplies each linear's weight by the scale s = salience^α that its recipe found, which undoes the division.
"""

import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow_scripts"))

from quant.calibration.channels import channels_of
from quant.data import tokens
from quant.evaluation.perplexity import evaluate, load_model
from quant.files import tensorfile
from quant.models.structure.names import kind_of
from quant.recipe.functions import function_of
from quant.recipe.search import scale_for


def perplexity(model: torch.nn.Module, sequences: tokens.Tokens) -> float:
    rows, _ = evaluate(model, sequences, "cpu", 1024)
    return math.exp(sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows))


def forget_inverse(model: torch.nn.Module, results: Path, record: dict) -> None:
    """Multiplies the weights by the scales that they were divided by."""
    recipe = record["provenance"]["recipe"]
    calibration = results / f"calibration/n{recipe['n_calib']}-s{recipe['seed']}/channels.safetensors"
    patterns = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": []}
    weights = results / "original/checkpoint/model.safetensors"
    with tensorfile.opened(calibration) as file, tensorfile.opened(weights) as original:
        for row in record["linears"]:
            linear = model.get_submodule(row["linear"])
            kind = kind_of(row["linear"], patterns)
            channels = channels_of(file, row["linear"], file.info("reads"), kind)
            w = original.get(f"{row['linear']}.weight", dtype=torch.float32)
            salience = function_of("saliences", recipe["salience"], recipe)(w, channels)
            linear.weight.data *= scale_for(salience, row["alpha"])


def main(results: Path, method: str, dataset: str) -> None:
    heldout = tokens.load(results / f"datasets/{dataset}/tokens.safetensors")
    heldout = heldout._replace(sequences=heldout.sequences[:16])
    model = load_model(results / method / "checkpoint", "cpu", torch.float32)
    print(f"with the inverse scale     perplexity {perplexity(model, heldout):.2f}")
    forget_inverse(model, results, json.loads((results / method / "quantize.json").read_text()))
    print(f"without the inverse scale  perplexity {perplexity(model, heldout):.3g}")


main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
