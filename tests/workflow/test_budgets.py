"""Budgets through the real workflow on the tiny model."""

from pathlib import Path

import pytest
import torch
import yaml

from quant.files.csv_tables import read_table
from quant.files.tensorfile import opened
from tests import tiny
from tests.workflow.test_faults import KILL, content, strike

pytestmark = pytest.mark.slow  # a study of its own takes minutes on two cores

BUDGET = {"budget": {"bits_per_weight": 7}, "clip": True, "candidates": [{"bits": 3}, {"bits": 8}]}
BUDGET["embeddings"] = {"bits": 8}  # without 16 among the candidates they have no choice
STUDY = tiny.OVERLAY["study"] | {"methods": ["mixed"]}
OVERLAY = tiny.OVERLAY | {"study": STUDY, "methods": {"mixed": BUDGET}, "sensitivity": {"methods": []}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one budget, and what is best of it."""
    folder = tiny.clone(tmp_path_factory.mktemp("budget"))
    tiny.write_overlay(folder, OVERLAY | {"choose": {"max_bits_per_weight": 8, "by": "kl"}})
    jobs = tiny.pending(folder)
    assert (jobs["quantize"], jobs["quantize_budget"], jobs["collect_end_loss"], jobs["evaluate"]) == (2, 1, 1, 3)
    done = tiny.snakemake(folder, "results/report.html", "results/best/choice.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_budget_is_measured_like_all_others(finished: Path) -> None:
    summary = read_table(finished / "results/summary.csv").set_index("method")
    assert list(summary.index) == ["original", "mixed-bits3", "mixed-bits8", "mixed"]
    assert set(summary.storage.iloc[1:]) == {"packed"}
    assert summary.bits_per_weight["mixed-bits3"] < summary.bits_per_weight["mixed"] <= 7  # steps are float32
    table = read_table(finished / "results/tiny/mixed/linears.csv")
    parts = {bits: read_table(finished / f"results/tiny/mixed-bits{bits}/linears.csv") for bits in (3, 8)}
    for row in table.itertuples():
        own = parts[row.bits].set_index("linear").loc[row.linear]
        assert row.predicted_nats == own.predicted_nats and row.mse == own.mse, row.linear
    page = (finished / "results/report.html").read_text()
    assert "What does mixing widths buy" in page and "Predicted against measured KL" in page
    card = (finished / "results/tiny/mixed/checkpoint/README.md").read_text()
    assert "packed as compressed-tensors" in card and "Quantised too: lm_head, in 8 bits." in card
    rows = tiny.read(finished / "results/tiny/mixed/quantize.json")["vocabulary"]
    assert [row["module"] for row in rows] == ["model.embed_tokens", "lm_head"]
    assert all(row["predicted_nats"] > 0 for row in rows)
    with opened(finished / "results/tiny/mixed/checkpoint/model.safetensors") as file:
        assert file.layout()["model.embed_tokens.weight"][0] == torch.int8
    assert summary.no_kernels["mixed"].startswith("reads no embedding of a byte a code")


def test_the_choice_has_the_curve_beside_it(finished: Path) -> None:
    choice = tiny.read(finished / "results/best/choice.json")
    sizes = [each["size_mb"] for each in choice["curve"]]
    assert choice["method"] in ("mixed-bits3", "mixed") and sizes == sorted(sizes) and len(sizes) > 1


def test_killed_in_the_middle_it_ends_in_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = ("quantize.json", "folds.safetensors", "checkpoint/model.safetensors", "checkpoint/config.json")
    paths = [finished / "results/tiny/mixed" / name for name in outputs]
    before = list(map(content, paths))
    struck = strike(tmp_path, monkeypatch, KILL)
    target = "results/tiny/mixed/quantize.json"
    assert tiny.snakemake(finished, target, "--forcerun", "quantize_budget").returncode
    assert [path.name for path in struck.iterdir()] == ["quantize_budget"]
    done = tiny.snakemake(finished, target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(map(content, paths)) == before


def test_another_budget_quantises_nothing(finished: Path) -> None:
    changed = OVERLAY | {"methods": {"mixed": BUDGET | {"budget": {"bits_per_weight": 8}}}}
    (finished / "more.yaml").write_text(yaml.safe_dump(changed))
    jobs = tiny.pending(finished, "more.yaml")
    assert (jobs["quantize_budget"], jobs["evaluate"], jobs["measure_error"]) == (1, 1, 1) and "quantize" not in jobs


def test_outside_the_study_it_says_what_it_wants(finished: Path) -> None:
    other = OVERLAY | {"study": STUDY | {"methods": ["rtn_g"]}}
    (finished / "other.yaml").write_text(yaml.safe_dump(other))
    table = finished / "results/tiny/mixed-bits3/linears.csv"
    done = tiny.snakemake(finished, "results/tiny/mixed/quantize.json", config="other.yaml")
    assert done.returncode and f"{table.relative_to(finished)}: has no predicted_nats, by which" in done.stderr
