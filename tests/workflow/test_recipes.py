"""Recipes that need more than the plain statistics, and sweeps, through the real workflow on the tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quant.files.csv_tables import read_table
from tests import tiny

pytestmark = pytest.mark.slow  # a study of its own takes minutes on two cores

# one is called like a number
METHODS: dict[str, dict[str, Any]] = {
    "widths": {"salience": "l2", "bits": [3, 4]},
    "sizes": {"salience": "l2", "n_calib": [4, 12]},
    "robust": {"salience": "praq", "noise_std": 0.05},
    "exact": {
        **{"salience": "l2", "clip": True, "rounding": "gptq"},
        **{"moment": "jacobian", "objective": "jacobian", "residual": True},
    },
    "flips": {"salience": "l2", "rounding": "greedy_flip", "scope": "shared"},
    "1e5": {"keep": "praq", "keep_ratio": 0.3, "noise_injection": 0.1},
}
NAMES = ["widths-bits3", "widths-bits4", "sizes-n_calib4", "sizes-n_calib12", "robust", "exact", "flips", "1e5"]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of METHODS."""
    folder = tiny.clone(tmp_path_factory.mktemp("recipes"))
    tiny.write_overlay(folder, tiny.with_methods(METHODS))
    jobs = tiny.pending(folder)
    counts = {"collect_statistics": 2, "collect_noisy": 1, "collect_jacobian": 1, "quantize": len(NAMES)}
    assert {rule: jobs[rule] for rule in counts} == counts, "the plain statistics once for each size, the others once"
    return tiny.finished(folder)


def test_every_recipe_is_measured(recipes: Path) -> None:
    summary = read_table(recipes / "results/summary.csv").set_index("method")
    assert list(summary.index) == ["original", *NAMES]
    assert summary.loc["widths-bits3", "kl"] > summary.loc["widths-bits4", "kl"] > 0
    assert summary["nll"].nunique() == len(NAMES), "all differ, but for the two that are one recipe"
    one = "widths-bits4 and sizes-n_calib12 have the same tensors"
    assert summary["tensors"].nunique() == len(NAMES)
    assert all(one in (recipes / f"results/{name}").read_text() for name in ("report.html", "logs/summarize.log"))
    linears = read_table(recipes / "results/linears.csv")
    assert set(linears.loc[linears["method"] == "exact", "damp"]) == {0.01}
    assert linears.loc[linears["method"] != "exact", "damp"].isna().all()


def test_a_sweeps_method_is_what_it_would_be_alone(recipes: Path) -> None:
    from quant.files.tensorfile import opened

    paths = [recipes / f"results/tiny/{name}/checkpoint/model.safetensors" for name in NAMES[1:4]]
    with opened(paths[0]) as wide, opened(paths[1]) as few, opened(paths[2]) as many:
        assert all(torch.equal(wide.get(name), many.get(name)) for name in wide.names)
        assert not all(torch.equal(few.get(name), many.get(name)) for name in few.names)


def test_sweeps_are_drawn(recipes: Path) -> None:
    page = (recipes / "results/report.html").read_text()
    assert all(f"sweep-{family}" in page for family in ("widths", "sizes"))
    drawn = {path.stem for path in (recipes / "results/figures").rglob("sweep-*.svg")}
    assert drawn == {"sweep-widths", "sweep-sizes"}


def test_rounding_statistics_are_of_every_method(recipes: Path) -> None:
    table = read_table(recipes / "results/rounding_stats.csv")
    assert set(table["method"]) == set(NAMES)
    assert (table[["rounded_up", "rounded_down", "unchanged"]].sum(axis=1) - 1).abs().max() < 1e-6
    flipped = table.groupby("method")["flipped"].max()
    others = ["flips", "exact"]  # which leave the nearest point
    assert (flipped[others] > 0).all() and (flipped.drop(others) == 0).all()


def test_changed_noise_touches_nothing_else(recipes: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(tiny.with_methods(METHODS | {"robust": {"salience": "praq", "noise_std": 0.1}})))
    done = tiny.snakemake(recipes, "--dry-run", "results/report.html", config=str(changed))
    jobs = {rule: n for rule, n in tiny.pending_in(done.stdout + done.stderr).items() if n}
    once = ("collect_noisy", "quantize", "measure_error", "measure_heldout", "evaluate", "describe")
    once += ("summarize", "answer_questions", "plot", "report")
    assert jobs == dict.fromkeys(once, 1)
