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
}
ANSWERS = {"answer_questions": 1, "plot": 1, "report": 1}
AGGREGATES = {"summarize": 1, **ANSWERS}


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


def test_every_question_is_answered_in_a_file_of_its_own(study: Path) -> None:
    found = tiny.read(study / "results/comparison_results.json")
    assert {"recipes", "versions", "token_fingerprints"} <= found["provenance"].keys()
    answers = {one["anchor"]: one for one in found["models"]["tiny"]}
    assert len(answers) == 14 and answers["praq"]["pairs"][0]["first"] == "gw_praq"
    assert answers["sensitivity"]["outcome"] == "described" and answers["robust"]["yaml"].startswith("methods:")
    table = pd.read_csv(study / "results/sensitivity.csv")
    assert set(table["against"]) >= {"original", "rtn_g_sym"} and set(table["by"]) == {"kind", "risk"}
    comparisons = pd.read_csv(study / "results/comparisons.csv")
    assert (comparisons["p_holm"] >= comparisons["p"]).all() and (comparisons["detectable"] > 0).all()


def test_all_parts_together_are_the_method(study: Path) -> None:
    """Kinds of linear hold every quantised weight once; each alone moves the NLL."""
    record = tiny.read(study / "results/tiny/rtn_g/sensitivity/heldout.json")
    kinds = [part for part in record["parts"] if part["by"] == "kind"]
    rows = tiny.read(study / "results/tiny/rtn_g/quantize.json")["linears"]
    assert len(kinds) == len({row["linear"].rsplit(".", 1)[1] for row in rows}) == 7
    assert all(part["nll"] != record["original"] for part in kinds)
    assert record["provenance"]["evaluated_tokens"] and record["provenance"]["recipe"]["rounding"] == "nearest"


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


def with_changes(change: dict[str, Any]) -> dict[str, Any]:
    """The overlay with sections updated."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    for section, values in change.items():
        overlay.setdefault(section, {}).update(values)
    return overlay


def one_method(n: int = 1) -> dict[str, int]:
    return {"quantize": n, "measure_error": n, "measure_heldout": 1, "evaluate": n, **AGGREGATES}


def parts(n: int = 1) -> dict[str, int]:
    """Jobs of n methods whose parts are measured."""
    return {"measure_sensitivity": n, "summarize_sensitivity": 1}


CHECK = {"check_mse": 1, "measure_heldout": 1}
TWO_KEYS_SWAPPED = {"gw_awq": {"bits": 3, "n_grid": 4}, "gw_praq": {"bits": 4, "n_grid": 3}}
FOUR = ["rtn_g", "gw_awq", "gw_praq", "mine"]
FEWER_KL_TOKENS = {"heldout": tiny.OVERLAY["datasets"]["heldout"] | {"kl_tokens": 32}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": {"gw_awq": {"n_grid": 4}}}, one_method()),
        ({"methods": {"rtn_g": {"symmetric": True}}}, one_method() | parts()),
        ({"methods": TWO_KEYS_SWAPPED}, one_method(2)),
        ({"methods": {"mine": {"salience": "l2"}}, "study": {"methods": FOUR}}, one_method()),
        ({"study": {"methods": ["rtn_g", "gw_awq"]}}, {"measure_heldout": 1, **AGGREGATES}),
        ({"methods": {"unused": {"bits": 2}}}, {"plot": 1, "report": 1}),
        ({"check_mse": {"keep_ratio": 0.25}}, {**CHECK, **ANSWERS}),
        ({"comparison": {"resamples": 1999}}, {**CHECK, "summarize_sensitivity": 1, **AGGREGATES}),
        ({"datasets": FEWER_KL_TOKENS}, {"evaluate_original": 1, "evaluate": 3, **parts(2), **AGGREGATES}),
        ({"methods": {"rtn_g": {"seed": 7}}}, one_method() | parts()),
        ({"sensitivity": {"n_samples": 5}}, {**parts(2), **ANSWERS}),
        ({"sensitivity": {"by": ["layer"]}}, {**parts(2), **ANSWERS}),
        ({"sensitivity": {"methods": ["rtn_g"]}}, {"summarize_sensitivity": 1, **ANSWERS}),
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


# the study's three, and one whose parts alone are measured
QUANTIZE_ALL = one_method(3) | {"quantize": 4} | parts(2)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("rounding.py", QUANTIZE_ALL),
        ("protection.py", {"check_mse": 1, **QUANTIZE_ALL}),
        ("grids.py", {"check_mse": 1, **QUANTIZE_ALL}),
        ("salience.py", QUANTIZE_ALL),
        ("referee.py", {"measure_error": 3, "measure_heldout": 1, **AGGREGATES}),
        ("layer_mse.py", {**CHECK, **ANSWERS}),
        ("compare.py", {**CHECK, "summarize_sensitivity": 1, **AGGREGATES}),
        ("parts.py", {**parts(2), **ANSWERS}),
        ("sensitivity.py", {"summarize_sensitivity": 1, **ANSWERS}),
        ("questions.py", ANSWERS),
        ("question_figures.py", {"plot": 1, "report": 1}),
        ("figures.py", {"plot": 1, "report": 1}),
        ("report.py", {"report": 1}),
        ("sections.py", {"report": 1}),
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
