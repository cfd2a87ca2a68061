"""Budgets through the real workflow on the tiny model."""

from pathlib import Path

import pytest
import torch
import yaml

from quant.files.csv_tables import read_table
from quant.files.tensorfile import opened
from tests import tiny
from tests.workflow.strike import KILL, content, strike

pytestmark = pytest.mark.slow  # a study of its own takes minutes on two cores

BUDGET = {"budget": {"bits_per_weight": 7}, "clip": True, "candidates": [{"bits": 3}, {"bits": 8}]}
BUDGET["embeddings"] = {"bits": 8}  # without 16 among the candidates they have no choice
BUDGET["swaps"] = {"sections": 1, "sequences": 2}
# widths by the same candidates, then a run of the model
RUN = BUDGET | {"inputs": "sequential", "correction": 0.5, "tune": {"epochs": 1, "batch": 2}}
STUDY = tiny.OVERLAY["study"] | {"methods": ["mixed", "run"]}
OVERLAY = tiny.OVERLAY | {"study": STUDY, "methods": {"mixed": BUDGET, "run": RUN}, "sensitivity": {"methods": []}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one budget, and what is best of it."""
    folder = tiny.clone(tmp_path_factory.mktemp("budget"))
    tiny.write_overlay(folder, OVERLAY | {"choose": {"max_bits_per_weight": 8, "by": "kl"}})
    jobs = tiny.pending(folder)
    assert (jobs["quantize"], jobs["quantize_budget"], jobs["collect_end_loss"], jobs["evaluate"]) == (2, 1, 1, 5)
    assert (jobs["measure_swaps"], jobs["choose_widths"], jobs["quantize_with_model"]) == (2, 1, 2)
    done = tiny.snakemake(folder, "results/report.html", "results/best/choice.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_budget_is_measured_like_all_others(finished: Path) -> None:
    summary = read_table(finished / "results/summary.csv").set_index("method")
    assert list(summary.index) == ["original", "mixed-bits3", "mixed-bits8", "mixed", "run-bits3", "run"]
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
    rows = tiny.read(finished / "results/tiny/mixed/quantize.json")["embeddings"]
    assert [row["module"] for row in rows] == ["model.embed_tokens", "lm_head"]
    assert all(row["predicted_nats"] > 0 for row in rows)
    with opened(finished / "results/tiny/mixed/checkpoint/model.safetensors") as file:
        assert file.layout()["model.embed_tokens.weight"][0] == torch.int8
    assert summary.no_kernels["mixed"].startswith("reads no embedding of a byte a code")


def test_a_run_of_the_model_takes_the_widths_that_were_chosen(finished: Path) -> None:
    """As the mix has them, whose prediction was corrected by the same swaps; codes are another's."""
    folder = finished / "results/tiny"
    chosen = tiny.read(folder / "run/widths.json")
    record, mixed = (tiny.read(folder / name / "quantize.json") for name in ("run", "mixed"))
    widths = [{row["linear"]: row["bits"] for row in each["linears"]} for each in (chosen, record, mixed)]
    assert widths[0] == widths[1] == widths[2] and set(widths[0].values()) == {3, 8}
    assert record["tuning"] and record["swaps"] == mixed["swaps"] == chosen["swaps"]
    swaps = [tiny.read(folder / f"mixed-bits{bits}/swaps-1x2.json") for bits in (3, 8)]
    assert all(set(each["parts"]) == {"self_attn, 1 of 1", "mlp, 1 of 1"} for each in swaps)
    assert swaps[0]["whole"] > swaps[1]["whole"] > 0
    for name in ("mixed", "run"):
        table = read_table(folder / name / "linears.csv")
        assert table.corrected_nats.sum() > 0 and list(table.bits) == list(widths[0].values())
    held = [content(folder / name / "checkpoint/model.safetensors") for name in ("run", "mixed")]
    assert held[0] != held[1]
    page = (finished / "results/report.html").read_text()
    assert "whose prediction real swaps corrected" in page


def test_the_choice_has_the_curve_beside_it(finished: Path) -> None:
    choice = tiny.read(finished / "results/best/choice.json")
    sizes = [each["size_mb"] for each in choice["curve"]]
    assert (
        choice["method"] in ("mixed-bits3", "mixed", "run-bits3", "run") and sizes == sorted(sizes) and len(sizes) > 1
    )


def test_other_swaps_are_measured_and_what_they_correct_made_again(finished: Path) -> None:
    without = {"mixed": {key: value for key, value in BUDGET.items() if key != "swaps"}, "run": RUN}
    more = {"mixed": BUDGET, "run": RUN | {"swaps": {"sections": 2, "sequences": 2}}}
    found = []
    for name, methods in (("without", without), ("more", more)):
        (finished / f"{name}.yaml").write_text(yaml.safe_dump(OVERLAY | {"methods": methods}))
        jobs = tiny.pending(finished, f"{name}.yaml")
        assert "quantize" not in jobs and jobs["evaluate"] == 1 == jobs["measure_error"]
        found.append([jobs.get(rule, 0) for rule in ("measure_swaps", "choose_widths", "quantize_with_model")])
    assert found == [[0, 0, 0], [2, 1, 1]]


def test_killed_in_the_middle_it_ends_in_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = ("quantize.json", "folds.safetensors", "checkpoint/model.safetensors", "checkpoint/config.json")
    paths = [*(f"mixed/{name}" for name in outputs), "run/widths.json"]
    paths += [f"mixed-bits{bits}/swaps-1x2.json" for bits in (3, 8)]
    before = [content(finished / "results/tiny" / path) for path in paths]
    struck, rules = strike(tmp_path, monkeypatch, KILL), ["measure_swaps", "choose_widths", "quantize_budget"]
    targets = [f"results/tiny/{name}" for name in ("mixed/quantize.json", "run/widths.json")]
    for _ in range(3):
        done = tiny.snakemake(finished, *targets, "--keep-going", "--forcerun", *rules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in struck.iterdir()} == set(rules)
    assert [content(finished / "results/tiny" / path) for path in paths] == before


def test_another_budget_quantises_nothing(finished: Path) -> None:
    changed = OVERLAY | {"methods": {"mixed": BUDGET | {"budget": {"bits_per_weight": 8}}, "run": RUN}}
    (finished / "more.yaml").write_text(yaml.safe_dump(changed))
    jobs = tiny.pending(finished, "more.yaml")
    assert (jobs["quantize_budget"], jobs["evaluate"], jobs["measure_error"]) == (1, 1, 1) and "quantize" not in jobs
    assert not jobs.keys() & {"measure_swaps", "choose_widths", "quantize_with_model"}


def test_outside_the_study_it_says_what_it_wants(finished: Path) -> None:
    other = OVERLAY | {"study": STUDY | {"methods": ["rtn_g"]}}
    (finished / "other.yaml").write_text(yaml.safe_dump(other))
    done = tiny.snakemake(finished, "results/tiny/mixed/quantize.json", config="other.yaml")
    assert done.returncode == 1 and "rule " not in done.stderr, "before any job"
    assert "methods.mixed: a budget chooses by what the end loss predicts" in done.stderr
    assert "name mixed in study.methods" in done.stderr
