"""The tiny study from a fresh clone: what it makes."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from quant.comparison.numbers import LEVEL
from quant.comparison.questions import QUESTIONS
from tests import tiny

CONTRACT = {
    *("model", "method", "dataset", "bits_per_weight", "size_mb", "ppl", "nll", "kl", "top1_agreement"),
    *("delta_nll", "delta_nll_low", "delta_nll_high", "tokens_per_s", "quantize_s", "storage"),
    *("storage_reason", "linears_mb", "embeddings_mb", "head_mb", "other_mb", "compression", "linears_compression"),
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

    from quant.data.tokens import load

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
    from quant.files.tensorfile import opened

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


def test_analyses_are_artifacts_and_sections(study: Path) -> None:
    folder = study / "results/tiny/analysis"
    table = pd.read_csv(folder / "preactivations.csv")
    assert len(table) == 14 and (table.p5_low <= table.p5).all() and (table.p5 <= table.p95).all()
    assert tiny.read(folder / "preactivations.json")["provenance"]["token_fingerprint"]
    for entry in tiny.read(folder / "layers.json"):
        assert (folder / entry["file"]).read_bytes()[8:12] == b"WEBP"
    for name in ("correlation_awq_praq.png", "negative_channels_detailed.png"):
        assert (folder / "layer-auto" / name).read_bytes().startswith(b"\x89PNG")
    channels = pd.read_csv(folder / "layer-auto/channel_statistics.csv")
    assert len(channels) == 48 * 3 + 24 * 2 + 80 * 2 and {"score_awq", "score_praq", "risky"} <= set(channels)
    assert len(pd.read_csv(study / "results/synthetic.csv")) == 2 * 4 * 4
    page = (study / "results/report.html").read_text()
    for anchor in ("preactivations", "layer-1", "synthetic"):
        assert f'<section id="{anchor}">' in page and f'href="#{anchor}"' in page
    assert page.count("data:image/webp") == 2


def test_a_deep_dive_beyond_the_last_layer_is_refused(copy: Path) -> None:
    done = tiny.snakemake(copy, "results/tiny/analysis/layer-2/layer.json")
    seen = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in seen
    assert "deep_dive.layers: layer 2: the model has layers 0 to 1; choose some of them" in seen


def test_every_question_is_answered_in_a_file_of_its_own(study: Path) -> None:
    found = tiny.read(study / "results/comparison_results.json")
    assert {"recipes", "versions", "token_fingerprints"} <= found["provenance"].keys()
    answers = {one["anchor"]: one for one in found["models"]["tiny"]}
    assert answers.keys() == {each.anchor for each in QUESTIONS} and len(answers) == 24
    assert answers["praq"]["pairs"][0]["first"] == "gw_praq"
    assert answers["robust"]["yaml"].startswith("methods:")
    table = pd.read_csv(study / "results/sensitivity.csv")
    kinds = table[(table["by"] == "kind") & (table["against"] == "original") & (table["method"] == "rtn_g")]
    suffer = int(((kinds["delta_nll"] > 0) & (kinds["p_holm"] <= LEVEL)).sum())
    start = f"Quantised alone by rtn_g, {suffer or 'none'} of 7 kinds of linear "
    assert answers["sensitivity"]["verdict"].startswith(start)
    assert set(table["against"]) >= {"original", "rtn_g_sym"} and set(table["by"]) == {"kind", "risk"}
    comparisons = pd.read_csv(study / "results/comparisons.csv")
    for end in ("", "_kl"):
        assert (comparisons[f"p_holm{end}"] >= comparisons[f"p{end}"]).all()
        assert (comparisons[f"detectable{end}"] > 0).all()


def test_all_parts_together_are_the_method(study: Path) -> None:
    """Kinds of linear hold every quantised weight once; each alone moves the NLL."""
    record = tiny.read(study / "results/tiny/rtn_g/sensitivity/heldout.json")
    kinds = [part for part in record["parts"] if part["by"] == "kind"]
    rows = tiny.read(study / "results/tiny/rtn_g/quantize.json")["linears"]
    assert len(kinds) == len({row["linear"].rsplit(".", 1)[1] for row in rows}) == 7
    assert all(part["nll"] != record["original"] for part in kinds)
    assert record["provenance"]["evaluated_tokens"] and record["provenance"]["recipe"]["rounding"] == "nearest"


def test_snakemakes_own_report_builds_with_captions(copy: Path, tmp_path: Path) -> None:
    page = tmp_path / "snakemake.html"
    done = tiny.snakemake(copy, "results/report.html", "--report", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "paired over the same sequences" in page.read_text()


def test_nothing_to_do_the_second_time(study: Path) -> None:
    assert tiny.pending(study) == {}


def test_the_best_packed_checkpoint_and_an_export_are_targets(copy: Path) -> None:
    import yaml

    target = "results/best/choice.json"
    done = tiny.snakemake(copy, target)  # a float32 model has 32-bit steps in its groups of 16
    assert done.returncode and "none has at most 4.5 bits per weight; the smallest, rtn_g, has 6.3" in done.stderr
    (copy / "wider.yaml").write_text(yaml.safe_dump(tiny.OVERLAY | {"choose": {"max_bits_per_weight": 7}}))
    exported = copy / "results/tiny/rtn_g/export/dense"
    done = tiny.snakemake(copy, target, str((exported / "export.json").relative_to(copy)), config="wider.yaml")
    assert done.returncode == 0, done.stderr
    choice = tiny.read(copy / target)
    assert (choice["method"], choice["runner_up"]) == ("rtn_g", None)
    assert choice["path"] == "results/tiny/rtn_g/checkpoint" and choice["copy"] == "results/best/checkpoint"
    checkpoint = copy / "results/tiny/rtn_g/checkpoint"
    best = copy / "results/best/checkpoint"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (best / name).read_bytes() == (checkpoint / name).read_bytes()
    card = (checkpoint / "README.md").read_text()
    assert (
        (best / "README.md").read_text()
        == card.replace("results/tiny/rtn_g/checkpoint", "results/best/checkpoint")
        != card
    )
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
        assert f'from_pretrained("results/tiny/{method}/checkpoint")' in card and "None" not in card


def test_two_runs_give_the_same_bytes(copy: Path) -> None:
    weights = copy / "results/tiny/gw_awq/checkpoint/model.safetensors"
    before = weights.read_bytes()
    target = str(weights.relative_to(copy))
    done = tiny.snakemake(copy, target, "--forcerun", "collect_statistics", fresh=True)  # sets are in another order
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights.read_bytes() == before
