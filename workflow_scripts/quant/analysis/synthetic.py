"""The "loud silence" benchmark: data on which a score that looks before the activation is drawn to what it silences.

Made anew from each seed, for n_in inputs and 2·n outputs:
  X [tokens, n_in] ~ N(0, 1).
  Group A, the first half of the outputs: W_kj ~ N(0, 1/n_in), bias +1, so z ~ N(1, 1): SiLU lets it through.
  Group B, the other half: W_kj ~ N(0, weight_scale²/n_in) and bias -15 (the configuration's), so z ~ N(-15,
  weight_scale²): loud before SiLU, and with a small weight_scale silent after it.
Quantisation is stood in for by noise on the rows that are not kept: δW_kj ~ N(0, (noise·rms(W_k))²), since a step grows
with the weights of its row. The error is E[(SiLU(z) - SiLU(ẑ))²] over tokens and outputs, kept rows having none. AWQ
keeps the rows of highest E|z|, PRAQ v3 those of highest score, random any, and the oracle those whose error it saves:
the rows err independently of one another, so no other choice of as many rows errs less.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import silu
from tqdm import tqdm

from quant.calibration.channels import Channels
from quant.comparison.paired import paired_difference
from quant.recipe.protection import top
from quant.recipe.scores.awq import awq as awq_score
from quant.recipe.scores.praq import praq_score

METHODS = ("awq", "praq", "random", "oracle")
BIAS_A = 1.0


class Draw:
    """One seed's data; group B's weights before they are scaled."""

    def __init__(self, options: dict[str, Any], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        n_in, n_out = options["inputs"], options["outputs"]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.x = normal(options["tokens"], n_in)
        self.w = normal(n_out, n_in) / n_in**0.5
        noise = options["noise"] * self.w.square().mean(1, keepdim=True).sqrt() * normal(n_out, n_in)
        self.order = torch.rand(n_out, generator=generator)  # random's score
        self.in_b = torch.arange(n_out) >= n_out // 2
        self.bias = torch.where(self.in_b, float(options["bias"]), BIAS_A)
        # scaling a row scales what it puts out, and its noise
        self.wx, self.nx = self.x @ self.w.T, self.x @ noise.T

    def scaled(self, weight_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """w [out, in], z and its noise [tokens, out] with group B's weights weight_scale times those of group A."""
        factor = torch.where(self.in_b, weight_scale, 1.0)
        return self.w * factor[:, None], self.wx * factor + self.bias, self.nx * factor


def channels_of_z(x: Tensor, z: Tensor, activated: Tensor) -> Channels:
    """The per-channel means that scores read."""
    means = (z.mean(0), z.std(0, correction=0), z.abs().mean(0), activated.abs().mean(0))
    return Channels(x.abs().mean(0), x.square().mean(0), x.mean(0), *means, is_mlp=True)


def trial(
    draw: Draw, weight_scale: float, keep_ratio: float, parameters: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """By method: the mean squared error after SiLU, and the share of its kept rows that are of group B."""
    w, z, noise = draw.scaled(weight_scale)
    activated = silu(z)
    errors = (silu(z + noise) - activated).square().mean(0)
    known = channels_of_z(draw.x, z, activated)
    scores = {
        "awq": awq_score(w, known),
        "praq": praq_score(w, known, **parameters),
        "random": draw.order,
        "oracle": errors,
    }
    found = {}
    for name in METHODS:
        kept = top(scores[name], keep_ratio)
        found[name] = (errors[~kept].double().sum().item() / len(errors), draw.in_b[kept].float().mean().item())
    return found


def benchmark(options: dict[str, Any], parameters: dict[str, float]) -> pd.DataFrame:
    """weight_scale, seed, method, mse, kept_b of every trial; parameters: PRAQ's beta, tau, noise_factor."""
    rows = []
    for seed in tqdm(range(options["seed"], options["seed"] + options["seeds"]), desc="synthetic", unit="seed"):
        draw = Draw(options, seed)
        for scale in options["weight_scales"]:
            for name, (mse, kept_b) in trial(draw, scale, options["keep_ratio"], parameters).items():
                rows.append({"weight_scale": scale, "seed": seed, "method": name, "mse": mse, "kept_b": kept_b})
    return pd.DataFrame(rows)


def summarise(trials: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Per weight_scale: each method's mean error over seeds, and PRAQ's minus AWQ's paired by seed, with 95 % BCa
    intervals."""
    rows = []
    for scale, group in trials.groupby("weight_scale"):
        errors = group.pivot_table(index="seed", columns="method", values="mse")
        ones, zeros = np.ones(len(errors)), np.zeros(len(errors))

        def over_seeds(a: np.ndarray, b: np.ndarray, ones: np.ndarray = ones) -> dict[str, float]:
            return paired_difference(a, b, ones, resamples, seed)._asdict()

        kept = group.groupby("method").kept_b.mean()
        rows.append(
            {
                "weight_scale": float(scale),
                "methods": {
                    name: over_seeds(errors[name].to_numpy(), zeros) | {"kept_b": float(kept[name])} for name in METHODS
                },
                "praq_minus_awq": over_seeds(errors.praq.to_numpy(), errors.awq.to_numpy()),
                "praq_minus_oracle": over_seeds(errors.praq.to_numpy(), errors.oracle.to_numpy()),
            }
        )
    return rows
