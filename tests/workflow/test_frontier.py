"""Recipes that run the model, through the real workflow on the tiny model."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from quant.files.csv_tables import read_table
from tests import tiny

pytestmark = pytest.mark.slow  # a study of its own takes minutes on two cores

SHARED = {"salience": "l2", "clip": True, "rounding": "gptq", "scope": "shared"}
SEQUENTIAL = SHARED | {"inputs": "sequential", "correction": 0.5, "bits": 2, "refine": 1, "row_feedback": 0.7}
METHODS: dict[str, dict[str, Any]] = {
    "plain": SHARED,
    "refined": SHARED | {"refine": 2, "row_feedback": 0.7, "row_moment": "attention"},
    "sequential": SEQUENTIAL,
    "tuned": SEQUENTIAL | {"tune": {"epochs": 1}},
    "bare": {"inputs": "sequential", "rounding": "gptq", "tune": {"rate": 0.01}},
    "end_loss": SHARED | {"moment": "end_loss", "parts": 4, "plain_share": 0.5, "refine": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of METHODS."""
    folder = tiny.clone(tmp_path_factory.mktemp("frontier"))
    tiny.write_overlay(folder, tiny.with_methods(METHODS))
    jobs = tiny.pending(folder)
    assert jobs["quantize"] == 3 and jobs["quantize_with_model"] == 3 and jobs["collect_statistics"] == 1
    assert jobs["collect_end_loss"] == 2 and jobs["collect_attention"] == 1  # one of the former of outputs
    return tiny.finished(folder)


def test_they_are_measured_like_all_others(finished: Path) -> None:
    summary = read_table(finished / "results/summary.csv").set_index("method")
    assert list(summary.index) == ["original", *METHODS]
    assert dict(summary["storage"].iloc[1:]) == dict.fromkeys(METHODS, "packed")
    assert summary["nll"].nunique() == 7 and (summary["kl"].iloc[1:] > 0).all()
    record = tiny.read(finished / "results/tiny/bare/quantize.json")
    assert record["tuning"]["kl_tuned"] <= record["tuning"]["kl_start"]


def test_what_a_linear_costs_the_model_is_predicted_of_every_method(finished: Path) -> None:
    for method in METHODS:
        found = read_table(finished / f"results/tiny/{method}/linears.csv")["predicted_nats"]
        assert len(found) == 14 and (found > 0).all()


def test_the_page_asks_what_was_learnt_and_what_was_predicted(finished: Path) -> None:
    """Both correlations of the end loss's prediction, and the tuned method beside the same untuned."""
    found = tiny.read(finished / "results/comparison_results.json")["models"]["tiny"]
    answered = {one["anchor"]: one for one in found}
    predicted = [row for row in answered["layer-error"]["values"] if row["measure"] == "predicted nats"]
    assert [row["method"] for row in predicted] == list(METHODS) and all(row["kl"] > 0 for row in predicted)
    (line,) = [line for line in answered["layer-error"]["lines"] if line.startswith("predicted nats")]
    assert "ρ with delta_nll" in line and "; with kl " in line and line.count("[") == 2
    learnt = read_table(finished / "results/learnt.csv")
    assert ("tuned", "sequential") in set(zip(learnt["method"], learnt["before"], strict=True))
    assert (
        answered["learnt"]["outcome"] != "not asked" and "learnt.csv" in (finished / "results/report.html").read_text()
    )


def test_an_edit_of_the_end_loss_collects_it_again_and_what_reads_it(finished: Path) -> None:
    path = finished / "workflow_scripts/quant/calibration/end_loss.py"
    before = path.read_text()
    try:
        path.write_text(before + "\n# edited\n")
        jobs = {rule: n for rule, n in tiny.pending(finished).items() if n}
    finally:
        path.write_text(before)
    assert jobs["collect_end_loss"] == jobs["quantize_with_model"] == 2 and jobs["quantize"] == 1
    assert jobs["measure_error"] == len(METHODS) and jobs["evaluate"] == 3


@pytest.mark.parametrize(
    ("method", "changes", "job"),
    [
        ("sequential", {"correction": 0.4}, "quantize_with_model"),
        ("tuned", {"tune": {"epochs": 2}}, "quantize_with_model"),
        ("refined", {"refine": 3}, "quantize"),
        ("end_loss", {"plain_share": 0.25}, "quantize"),
    ],
)
def test_a_changed_value_quantises_its_method_alone(
    finished: Path, method: str, changes: dict[str, Any], job: str, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(tiny.with_methods(METHODS | {method: METHODS[method] | changes})))
    jobs = {rule: n for rule, n in tiny.pending(finished, changed).items() if n}
    assert jobs[job] == jobs["evaluate"] == jobs["measure_error"] == 1
    assert {rule for rule in jobs if rule.startswith(("quantize", "collect"))} == {job}
