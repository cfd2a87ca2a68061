"""The tiny study from a fresh clone: what it makes, and exactly what re-runs after each change."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests import tiny

CONTRACT = {
    *("model", "method", "dataset", "bits_per_weight", "size_mb", "ppl", "nll", "kl", "top1_agreement"),
    *("delta_nll", "delta_nll_low", "delta_nll_high", "tokens_per_s", "quantize_s", "storage"),
    *("storage_reason", "linears_mb", "embeddings_mb", "head_mb", "other_mb", "compression", "linears_compression"),
}
AGGREGATES = {"summarize": 1, "describe": 1, "plot": 1, "report": 1}


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


def test_the_best_packed_checkpoint_and_an_export_are_targets(copy: Path) -> None:
    import yaml

    target = "results/best/choice.json"
    done = tiny.snakemake(copy, target)  # a float32 model has 32-bit steps in its groups of 16
    assert done.returncode and "none has at most 4.5 bits per weight; the smallest, rtn_g, has 6.2" in done.stderr
    (copy / "wider.yaml").write_text(yaml.safe_dump(with_changes({"choose": {"max_bits_per_weight": 7}})))
    exported = copy / "results/tiny/rtn_g/export/dense"
    done = tiny.snakemake(copy, target, str((exported / "export.json").relative_to(copy)), config="wider.yaml")
    assert done.returncode == 0, done.stderr
    choice = tiny.read(copy / target)
    assert (choice["method"], choice["runner_up"]) == ("rtn_g", None)
    checkpoint = copy / "results/tiny/rtn_g/checkpoint"
    for name in ("model.safetensors", "config.json", "README.md", "tokenizer.json"):
        assert (copy / "results/best/checkpoint" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert (
        tiny.read(exported / "export.json")["provenance"]
        == tiny.read(copy / "results/tiny/rtn_g/quantize.json")["provenance"]
    )


def test_storage_and_cards(study: Path) -> None:
    summary = pd.read_csv(study / "results/summary.csv").set_index("method")
    assert summary["storage"].to_dict() == {
        **{"original": "original", "rtn_g": "packed"},
        **dict.fromkeys(["gw_awq", "gw_praq"], "simulated"),
    }
    assert summary.loc["gw_awq", "storage_reason"].startswith("scope: linear")
    parts = summary[["linears_mb", "embeddings_mb", "head_mb", "other_mb"]].sum(axis=1)
    assert (parts - summary["size_mb"]).abs().max() < 1e-9
    assert summary.loc["rtn_g", "linears_compression"] > 4 and summary.loc["gw_awq", "linears_compression"] == 1
    assert "scope: linear" in (study / "results/report.html").read_text()
    for method in ("rtn_g", "gw_awq"):
        card = (study / f"results/tiny/{method}/checkpoint/README.md").read_text()
        assert card.startswith("---\n") and "| heldout |" in card


def test_two_runs_give_the_same_bytes(copy: Path) -> None:
    weights = copy / "results/tiny/gw_awq/checkpoint/model.safetensors"
    before = weights.read_bytes()
    assert tiny.snakemake(copy, str(weights.relative_to(copy)), "--forcerun", "collect_statistics").returncode == 0
    assert weights.read_bytes() == before


def with_changes(change: dict[str, Any]) -> dict[str, Any]:
    """The overlay with sections updated."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    for section, values in change.items():
        overlay.setdefault(section, {}).update(values)
    return overlay


def one_method(n: int = 1) -> dict[str, int]:
    return {"quantize": n, "measure_error": n, "evaluate": n, **AGGREGATES}


TWO_KEYS_SWAPPED = {"gw_awq": {"bits": 3, "n_grid": 4}, "gw_praq": {"bits": 4, "n_grid": 3}}
FOUR = ["rtn_g", "gw_awq", "gw_praq", "mine"]
FEWER_KL_TOKENS = {"heldout": tiny.OVERLAY["datasets"]["heldout"] | {"kl_tokens": 32}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": {"gw_awq": {"n_grid": 4}}}, one_method()),
        ({"methods": {"rtn_g": {"symmetric": True}}}, one_method()),
        ({"methods": TWO_KEYS_SWAPPED}, one_method(2)),
        ({"methods": {"mine": {"salience": "l2"}}, "study": {"methods": FOUR}}, one_method()),
        ({"study": {"methods": ["rtn_g", "gw_awq"]}}, AGGREGATES),
        ({"methods": {"unused": {"bits": 2}}}, {"plot": 1, "report": 1}),
        ({"check_mse": {"keep_ratio": 0.25}}, {"check_mse": 1, "plot": 1, "report": 1}),
        ({"comparison": {"resamples": 1999}}, {"check_mse": 1, **AGGREGATES}),
        ({"datasets": FEWER_KL_TOKENS}, {"evaluate_original": 1, "evaluate": 3, **AGGREGATES}),
        ({"methods": {"rtn_g": {"seed": 7}}}, one_method()),
    ],
)
def test_a_changed_key_reruns_its_users(
    study: Path, tmp_path: Path, change: dict[str, Any], expected: dict[str, int]
) -> None:
    import yaml

    overlay = tmp_path / "changed.yaml"
    overlay.write_text(yaml.safe_dump(with_changes(change)))
    done = tiny.snakemake(study, "--dry-run", "results/report.html", config=str(overlay))
    assert done.returncode == 0, done.stdout + done.stderr
    found = tiny.pending_in(done.stdout + done.stderr)
    assert {rule: n for rule, n in found.items() if n} == expected


QUANTIZE_ALL = one_method(3)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("rounding.py", QUANTIZE_ALL),
        ("protection.py", {"check_mse": 1, **QUANTIZE_ALL}),
        ("grids.py", {"check_mse": 1, **QUANTIZE_ALL}),
        ("salience.py", QUANTIZE_ALL),
        ("referee.py", {"measure_error": 3, **AGGREGATES}),
        ("stored.py", {"measure_error": 3, "evaluate": 3, **AGGREGATES}),
        ("card.py", {"describe": 1, "report": 1}),
        ("layer_mse.py", {"check_mse": 1, "plot": 1, "report": 1}),
        ("compare.py", {"check_mse": 1, **AGGREGATES}),
        ("figures.py", {"plot": 1, "report": 1}),
        ("report.py", {"report": 1}),
        ("../templates/report.html.j2", {"report": 1}),
    ],
)
def test_an_edited_module_reruns_its_users(copy: Path, module: str, expected: dict[str, int]) -> None:
    path = copy / "workflow_scripts/quant" / module
    path.write_text(path.read_text() + "\n# edited\n")
    assert tiny.pending(copy) == expected


def test_a_fresh_clones_time_stamps_rerun_nothing(copy: Path) -> None:
    for name in ("Snakefile", "rules", "workflow_scripts", "config.yaml", "tiny.yaml"):
        for path in [copy / name, *(copy / name).rglob("*")]:
            os.utime(path)
    assert tiny.pending(copy) == {}
