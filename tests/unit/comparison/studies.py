"""What studies might have measured."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.answers import Answered, Evidence
from quant.comparison.learnt import COLUMNS
from quant.comparison.pairs import fitted_further
from quant.comparison.questions import QUESTIONS, ask
from quant.comparison.tasks import task_tables
from tests.unit.comparison.items import answers as given
from tests.unit.comparison.items import likelihoods

BY_ANCHOR = {question.anchor: question for question in QUESTIONS}


def evidence(config: dict[str, Any], delta: float = 0.0, p: float = 1.0, delta_kl: float | None = None) -> Evidence:
    """What a study of this configuration might have measured: every pair differs by `delta` with that corrected p, and
    so by KL, if not otherwise."""
    methods, datasets = config["study"]["methods"], config["study"]["datasets"]
    recipes = {method: config["methods"][method] for method in methods}
    numbers = {"delta_nll": delta, "delta_nll_low": delta - 0.01, "delta_nll_high": delta + 0.01,
               "p_holm": p, "detectable": 0.02, "sequences": 32}  # fmt: skip
    by_kl = delta if delta_kl is None else delta_kl
    numbers |= {"delta_kl": by_kl, "delta_kl_low": by_kl - 0.01, "delta_kl_high": by_kl + 0.01,
                "p_holm_kl": p, "detectable_kl": 0.03, "kl_sequences": 30}  # fmt: skip
    pairs = [
        {"model": "m", "dataset": dataset, "method_a": a, "method_b": b, **numbers}
        for dataset in datasets
        for a, b in itertools.combinations(methods, 2)
    ]
    summary = [
        {"model": "m", "dataset": dataset, "method": method, "ppl": 20 + i, "size_mb": 1.0, "bits_per_weight": 4.0,
         "quantize_s": 2.0, "storage": "simulated", **numbers, "delta_nll": 0.1 * i, "kl": 0.09 * i}
        for dataset in datasets
        for i, method in enumerate(["original", *methods])
    ]  # fmt: skip
    linears = [
        {"model": "m", "method": method, "linear": "model.layers.0.mlp.up_proj", "layer": 0, "mse": 0.1 * (i + 1),
         "relative_error": 0.01 * (i + 1), "rounded_up": 0.5, "rounded_down": 0.45, "unchanged": 0.05,
         "flipped": 0.02 * i, "distance_median": 0.25, "predicted_nats": 0.05 * (len(methods) - i)}
        for i, method in enumerate(methods)
    ]  # fmt: skip
    options, parts = config["sensitivity"], []
    names = {"kind": ["up_proj", "down_proj"], "layer": ["0", "1"], "risk": ["risky rows", "other rows 1"]}
    for by, method in itertools.product(options["by"], options["methods"]):
        against = ["original", *(other for other in options["methods"] if other != method and method == "rtn_g")]
        common = {"model": "m", "dataset": datasets[0], "by": by, "method": method, "rows": 4, "weights": 100}
        parts += [{**common, "part": part, "against": a, **numbers} for part in names[by] for a in against]
        parts += [{**common, "part": "risky rows", "against": "other rows", **numbers}] if by == "risk" else []
    counts = {"up_proj": {"rows": 80, "dead": 5, "risky": 3}} if "risk" in options["by"] and parts else {}
    frame = pd.DataFrame(linears)
    columns = ["model", "dataset", "by", "part", "method", "against", "rows", "weights", *numbers]
    comparisons = pd.DataFrame(pairs, columns=["model", "dataset", "method_a", "method_b", *numbers])
    told = [
        ("m", dataset, *names, 32, 0.1, 0.2, 0.1, 0.15, 0.02, 0.01, 0.03, p, 0.005, 0.5, 0.02)
        for dataset in datasets
        for names in fitted_further(recipes)
    ]
    places = [
        {"model": "m", "dataset": dataset, "method": method, "by": by, "part": f"a part by {by}", "share": 0.4,
         "delta_nll": 0.2, "delta_nll_rest": 0.1, "damage_share": 0.5 + 0.01 * i, "contrast": 0.1, "contrast_low": 0.05,
         "contrast_high": 0.15, "p": p, "error": 0.02, "sequences": 32, "p_holm": p, "detectable": 0.1}
        for dataset in datasets
        for i, method in enumerate(methods)
        for by in ("frequency", "position")
    ]  # fmt: skip
    items, pairs_of_items = asked(config["study"]) if config["study"]["tasks"] else (None, None)
    return Evidence("m", datasets, recipes, pd.DataFrame(summary), comparisons, frame, frame,
                    pd.DataFrame(parts, columns=columns), counts, learnt=pd.DataFrame(told, columns=COLUMNS),
                    kinds={name: name == datasets[0] for name in datasets}, contrasts=pd.DataFrame(places),
                    tasks=items, task_pairs=pairs_of_items)  # fmt: skip


def asked(study: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """tasks.csv and task_pairs.csv of a study's tasks: of its methods each later one loses more."""
    rng, methods = np.random.default_rng(0), ["original", *study["task_methods"]]
    groups = {}
    for task in study["tasks"]:
        log_p = likelihoods(rng, 0.2 * np.arange(len(methods)), 60)
        groups["m", task] = {
            method: given(method, one > -1, one, task) for method, one in zip(methods, log_p, strict=True)
        }
    return task_tables(groups, 99, 0)


def answers(found: Evidence) -> dict[str, Answered]:
    return {answered.anchor: answered for answered in ask(found)}


def row(method: str, delta: float, bits: float, storage: str = "packed", **more: Any) -> dict[str, Any]:
    return {
        **{"model": "m", "dataset": "d", "method": method, "delta_nll": delta, "bits_per_weight": bits, "kl": delta},
        **{"delta_nll_low": delta - 0.01, "delta_nll_high": delta + 0.01, "top1_agreement": 0.9},
        **{"ppl": 20 * math.exp(delta), "size_mb": 20 * bits, "compression": 16 / bits, "storage": storage},
        **{"storage_reason": "scope: linear" if storage == "simulated" else math.nan, "tokens": 99, "sequences": 9},
        **{
            "nll": 3 + delta,
            "seq_len": 32,
            "protocol": "windows",
            "linears_mb": 10.0,
            "embeddings_mb": 5.0,
            "head_mb": 0.0,
        },
        **{"other_mb": 0.1, "linears_compression": 3.7, "seen_share": 0.0},
        **{"calibration_sequences": 9.0, "calibration_tokens": 288.0},
        **{"quantized_share": 0.95, "file_bits_per_weight": bits + 1},
    } | more


CALIBRATION = {
    "seq_len": 32,
    "mix": [],
    "text": {"hub": {"path": "Salesforce/wikitext", "name": "raw", "split": "train"}},
}
ABOUT: dict[str, Any] = {"license": "apache-2.0", "base_model": None, "caveat": None, "source": {"hub": {"id": "o/n"}}}


def text_lengths(n: int, ragged: bool) -> np.ndarray:
    """Tokens of n sequences: 255 each, or from 8 to 511 as the lines of a text have them."""
    if not ragged:
        return np.full(n, 255.0)
    return np.random.default_rng(5).gamma(2, 60, n).clip(8, 511).round()
