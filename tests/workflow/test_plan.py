"""The plan of the tiny study: its jobs are those that run, it comes before them, and says what does not fit."""

from pathlib import Path

import pytest

from quant.workflow import plan
from quant.workflow.plan import Machine
from quant.workflow.rates import SLOW_CPU
from tests import tiny

ALONE = {"fetch_package", "plot", "plot_synthetic", "report", "describe", "summarize", "summarize_sensitivity"}
ALONE |= {"answer_questions", "synthetic_benchmark"}  # which no model makes longer


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clone(tmp_path_factory.mktemp("plan") / "clone")


def test_its_jobs_are_those_that_run(project: Path) -> None:
    waiting = tiny.pending(project)
    done = tiny.snakemake(project, "results/plan.txt")
    assert done.returncode == 0, done.stderr
    text, record = (project / "results/plan.txt").read_text(), tiny.read(project / "results/plan.json")
    assert text.startswith("It fits.") and "in all, one by one" in text and not (project / "results/tiny").exists()
    found: dict[str, int] = {}
    for job in record["jobs"]:
        found[job["rule"]] = found.get(job["rule"], 0) + 1
        assert job["seconds"] > 0 and job["ram"] > 1e8
    assert found == {rule: n for rule, n in waiting.items() if rule not in ALONE}
    # and where a plan was made, the report has it
    assert tiny.pending(project) == waiting


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"disk": 1e3}, "disk: its files take"),
        ({"ram": 5e8}, "evaluate: takes"),
        ({"gpu": 1.0}, "of the GPU, and that has"),
    ],
)
def test_what_does_not_fit_is_said_with_the_number(lacking: dict[str, float], said: str) -> None:
    machine = Machine("cuda", "a card", 2e10, 8e10, 1e9, SLOW_CPU)._replace(**lacking)
    rows = [plan.Step("evaluate", 1, 60.0, 1e9, 2e9, 1e6)]
    unfit = plan.misfits(rows, machine, 0.0)
    assert len(unfit) == 1 and said in unfit[0]
    assert plan.misfits(rows, machine, 1e9) == ([] if "disk" in lacking else unfit)
    assert plan.words({}, {}, machine, rows, unfit).startswith(f"It does not fit:\n  {unfit[0]}\n")
