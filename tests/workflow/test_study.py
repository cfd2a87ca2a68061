"""The tiny study from a fresh clone: what it makes."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import tiny

CONTRACT = {
    *("model", "method", "dataset", "bits_per_weight", "size_mb", "ppl", "nll", "kl", "top1_agreement"),
    *("delta_nll", "delta_nll_low", "delta_nll_high", "tokens_per_s", "quantize_s", "storage"),
}


def test_summary_keeps_its_contract(study: Path) -> None:
    summary = pd.read_csv(study / "results/summary.csv")
    assert set(summary.columns) >= CONTRACT
    assert list(summary["method"]) == ["original", "rtn_g", "gw_awq", "gw_praq"]
    original = summary[summary["method"] == "original"].iloc[0]
    assert original["delta_nll"] == 0 and original["kl"] == 0 and original["top1_agreement"] == 1
    assert (summary["delta_nll_low"] <= summary["delta_nll"]).all()
    assert (summary["delta_nll"] <= summary["delta_nll_high"]).all()


def test_nll_is_what_transformers_says_itself(study: Path) -> None:
    """One sequence at a time, no batches, the library's own loss."""
    from transformers import AutoModelForCausalLM

    from quant.tokens import load

    tokens = load(study / "results/tiny/datasets/heldout/tokens.safetensors")
    for method in ("original", "gw_awq"):
        model = AutoModelForCausalLM.from_pretrained(study / f"results/tiny/{method}/checkpoint", dtype=torch.float32)
        with torch.inference_mode():
            sums = [model(s[None], labels=s[None]).loss.item() * (len(s) - 1) for s in tokens.sequences]
        expected = sum(sums) / sum(len(s) - 1 for s in tokens.sequences)
        summary = pd.read_csv(study / "results/summary.csv").set_index("method")
        assert summary.loc[method, "nll"] == pytest.approx(expected, rel=1e-5)


def test_checkpoints_load_with_their_tokenizer(study: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for method in ("rtn_g", "gw_awq"):
        folder = study / f"results/tiny/{method}/checkpoint"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.generate(**tokenizer("w1 w2 w3", return_tensors="pt"), max_new_tokens=3, do_sample=False)


def test_every_result_says_what_made_it(study: Path) -> None:
    from quant.tensorfile import opened

    results = study / "results/tiny"
    record = tiny.read(results / "gw_awq/quantize.json")["provenance"]
    assert record["recipe"]["salience"] == "l1" and record["seed"] == 42
    assert record["versions"]["torch"] and record["token_fingerprint"] and record["model_fingerprint"]
    with opened(results / "gw_awq/checkpoint/model.safetensors") as file:
        assert file.info("provenance") == record
    with opened(results / "calibration/n12-s42/second_moments.safetensors") as file:
        assert file.info("provenance")["token_fingerprint"] == record["token_fingerprint"]
    evaluation = tiny.read(results / "gw_awq/evaluation/heldout.json")["provenance"]
    assert evaluation["recipe"] == record["recipe"] and evaluation["evaluated_tokens"]
    row = pd.read_csv(study / "results/summary.csv").set_index("method").loc["gw_awq"]
    assert json.loads(row["recipe"]) == record["recipe"] and row["token_fingerprint"] == evaluation["evaluated_tokens"]


def test_report_stands_alone(study: Path) -> None:
    page = (study / "results/report.html").read_text()
    assert "gw_praq" in page and "http-equiv" not in page
    assert 'src="http' not in page and 'href="http' not in page


def test_snakemakes_own_report_builds_with_captions(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "snakemake.html"
    done = tiny.snakemake(study, "results/report.html", "--report", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "paired over the same sequences" in page.read_text()


def test_nothing_to_do_the_second_time(study: Path) -> None:
    assert tiny.pending(study) == {}


def test_two_runs_give_the_same_bytes(copy: Path) -> None:
    weights = copy / "results/tiny/gw_awq/checkpoint/model.safetensors"
    before = weights.read_bytes()
    assert tiny.snakemake(copy, str(weights.relative_to(copy)), "--forcerun", "collect_statistics").returncode == 0
    assert weights.read_bytes() == before
