"""Hand-made studies and the pages of them; a page in a headless browser."""

import json
import math
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quant.analysis import sensitivity
from quant.comparison import answers, questions
from quant.comparison.pick import Choice, choose
from quant.comparison.summary import recipes_of
from quant.report.build import build
from quant.report.figures import questions as question_figures
from quant.report.figures import style
from quant.report.figures.draw import draw
from quant.report.study import Study

HOSTILE = "<script>alert(1)</script>"
RECIPE = {"salience": "none", "bits": 4, "group_size": 64, "symmetric": True, "n_grid": 20, "rounding": "nearest"}
RECIPES = {
    "rtn": RECIPE,
    "gw_awq": {**RECIPE, "salience": "l1"},
    "gw_praq": {**RECIPE, "salience": "praq"},
}


def summary(deltas: dict[str, float], model: str = "m", dataset: str = "d", half: float = 0.01) -> pd.DataFrame:
    """Rows of one model and data set; deltas in nats by method, intervals of that half width."""
    rows = []
    for method, delta in {"original": 0.0, **deltas}.items():
        quantised = method != "original"
        rows.append(
            {"model": model, "method": method, "dataset": dataset, "bits_per_weight": 4.25 if quantised else 16.0,
             "size_mb": 269.05, "embeddings_mb": 9.0,
             "ppl": math.exp(3 + delta), "nll": 3 + delta, "nll_low": 2.9 + delta,
             "nll_high": 3.1 + delta, "delta_nll": delta,
             "delta_nll_low": delta - half * quantised, "delta_nll_high": delta + half * quantised, "kl": delta,
             "kl_low": delta - half * quantised, "kl_high": delta + half * quantised,
             "top1_agreement": 0.9, "tokens_per_s": 350.0, "quantize_s": 3.0, "storage": "simulated",
             "storage_reason": "keep: awq" if method != "original" else math.nan,
             "tokens": 5120, "sequences": 10, "protocol": "windows", "seq_len": 512, "kl_tokens": 2044,
             "recipe": json.dumps(RECIPES.get(method, RECIPE)) if quantised else "{}", "seed": 42, "versions": "{}",
             "token_fingerprint": "ab", "seen_share": 0.0, "calibration_sequences": 64.0 if quantised else math.nan,
             "calibration_tokens": 32768.0 if quantised else math.nan, "quantized_share": 0.95 * quantised,
             "tensors": method, "no_kernels": math.nan}
        )  # fmt: skip
    return pd.DataFrame(rows)


def comparisons(*rows: tuple[str, str, float, float, float], model: str = "m", dataset: str = "d") -> pd.DataFrame:
    """(method_a, method_b, delta_nll, low, high) by row."""
    names = ["model", "dataset", "method_a", "method_b", "delta_nll", "delta_nll_low", "delta_nll_high", "sequences",
             "p", "p_holm", "detectable"]  # fmt: skip
    small = [0.001 if row[3] > 0 or row[4] < 0 else 0.4 for row in rows]
    made = [(model, dataset, *row, 10, p, p, 0.05) for row, p in zip(rows, small, strict=True)]
    return pd.DataFrame(made, columns=names)


def layers(method: str = "rtn", model: str = "m") -> pd.DataFrame:
    row = {"model": model, "method": method, "linear": "model.layers.0.mlp.up_proj", "layer": 0, "kind": "mlp",
           "alpha": math.nan, "objective": math.nan, "mse": 1e-3, "relative_error": 0.01,
           "damp": math.nan, "milliseconds": 3.0}  # fmt: skip
    return pd.DataFrame([row])


def profiles(frame: pd.DataFrame) -> pd.DataFrame:
    """profiles.csv of a summary: each method's rise in three octaves of either kind."""
    return pd.DataFrame(
        [
            {"model": row.model, "dataset": row.dataset, "method": row.method, "by": by, "first": 2**i,
             "last": 2 ** (i + 1) - 1, "tokens": 9, "nll": 3.0, "delta_nll": row.delta_nll * (2 - i / 2),
             "delta_nll_low": row.delta_nll * (1 - i / 2), "delta_nll_high": row.delta_nll * 3}
            for row in frame[frame.method != "original"].itertuples()
            for by in ("frequency", "position")
            for i in range(3)
        ]
    )  # fmt: skip


def check(*intervals: tuple[float, float]) -> dict:
    linears = [
        {"linear": f"model.layers.28.mlp.l{i}", "kind": "mlp", "mse_awq": 1.0, "mse_praq": 1 + (low + high) / 2,
         "difference": (low + high) / 2, "low": low, "high": high, "p_holm": 0.01 if low > 0 or high < 0 else 0.5}
        for i, (low, high) in enumerate(intervals)
    ]  # fmt: skip
    return {"layer": 28, "words": "Layer 28", "keep_ratio": 0.5, "dataset": "d", "tokens": 8192, "linears": linears,
            "left_out": 0}  # fmt: skip


PAIRS = comparisons(
    ("rtn", "gw_awq", 0.2, 0.1, 0.3), ("rtn", "gw_praq", 0.19, 0.1, 0.3), ("gw_awq", "gw_praq", -0.01, -0.03, 0.01)
)
DELTAS = {"rtn": 0.3, "gw_awq": 0.1, "gw_praq": 0.11}


def evidence(frame: pd.DataFrame, compared: pd.DataFrame, table: pd.DataFrame, recipes: dict, model: str):
    """A study without sensitivity."""
    own = [rows[rows.model == model] for rows in (frame, compared, table)]
    none = pd.DataFrame(columns=sensitivity.COLUMNS)
    return answers.Evidence(model, list(dict.fromkeys(own[0].dataset)), recipes, *own, pd.DataFrame(), none, {})


def page(frame: pd.DataFrame, compared: pd.DataFrame, **more) -> str:
    methods = [name for name in dict.fromkeys(frame.method) if name != "original"]
    colours = style.method_colours(methods)
    table = more.pop("layers", layers(methods[0], frame.model[0]))
    drawn = draw(frame, compared, table, more.get("checks", {}), colours, profiles=more.pop("profiles", None))
    recipes = {name: recipe for name, recipe in recipes_of(frame).items() if name != "original"}
    answers = {
        model: [asdict(one) for one in questions.ask(evidence(frame, compared, table, recipes, model))]
        for model in dict.fromkeys(frame.model)
    }
    drawn |= question_figures.draw(answers, colours)
    svgs = {key: style.to_svg(fig, {}) for key, fig in drawn.items()}
    config = {"study": {"datasets": "all"}, "models": {frame.model[0]: {"caveat": more.pop("caveat", "")}}}
    provenance = {"versions": {"torch": "2.13.0"}, "fingerprint": {"summary": "ab"}}
    return build(Study(frame, compared, table, svgs, colours, config, provenance, "snakemake report",
                       "snakemake --configfile more.yaml", answers=answers,
                       written={"study": {"models": [HOSTILE]}}, **more))  # fmt: skip


BY_KL = {"delta_kl": [-0.1, -0.1, 0.02], "delta_kl_low": [-0.2, -0.2, 0.01], "delta_kl_high": [-0.05, -0.05, 0.03],
         "kl_sequences": 9, "p_kl": 0.001, "p_holm_kl": 0.002, "detectable_kl": 0.04}  # fmt: skip


needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="needs the chromium browser, which is not on the PATH: apt install chromium",
)


def chromium(tmp_path: Path, text: str, width: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Opens a page from a file in a headless browser of that width, with a profile of its own."""
    (tmp_path / "report.html").write_text(text)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-component-update", "--disable-background-networking", "--disable-sync",
               f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", f"--window-size={width},900",
               "--virtual-time-budget=8000", *arguments, (tmp_path / "report.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


OPTIONS = {"model": "m", "dataset": "d", "by": "delta_nll", "max_bits_per_weight": 4.5, "max_size_mb": None}


def choice_of(frame, **options: Any) -> Choice:
    return choose(frame, PAIRS, OPTIONS | {"model": frame.model[0]} | options)
