"""The plan of the tiny study: its jobs are those that run, it comes before them, and says what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from quant.workflow import configuration, paths
from quant.workflow.estimates import plan
from quant.workflow.estimates.plan import Machine
from quant.workflow.estimates.rates import SLOW_CPU, SLOW_GPU
from quant.workflow.estimates.shape import Shape
from tests import tiny
from tests.unit.workflow.configurations import LLAMA3_70B

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


def test_a_study_of_70_billion_weights_on_a_disk_of_50_gb() -> None:
    """Eight of its blocks fit with moments in bfloat16, ten in float32 do not, all never: the number says how far."""
    written = yaml.safe_load((tiny.ROOT / "config.yaml").read_text())
    schema = tiny.read(tiny.ROOT / "rules/schemas/config.schema.json")
    study = {"study": written["study"] | {"methods": ["awq_clip_gptq_shared"]}, "sensitivity": {"methods": []}}
    machine = Machine("cuda", "a card", 5e11, 8e10, 5e10, SLOW_GPU)

    def unfit(depth: int, store: str) -> list[str]:
        moments = {"store": store, "budget_gb": None}
        config = configuration.load(paths.named_texts(written | study | {"moments": moments}), schema)
        shape = Shape.of(LLAMA3_70B | {"num_hidden_layers": depth})
        assert shape is not None
        return plan.misfits(plan.steps(list(plan.estimates(config, {"smollm2-135m": shape}, machine))), machine, 0.0)

    assert unfit(8, "bfloat16") == []
    assert len(unfit(10, "float32")) == 1 and "and there is room for 50" in unfit(10, "float32")[0]
    assert "disk: its files take" in unfit(80, "bfloat16")[0] and "collect_statistics" in unfit(80, "bfloat16")[0]


def test_files_that_memory_does_not_keep_are_read_from_the_disk() -> None:
    written = yaml.safe_load((tiny.ROOT / "config.yaml").read_text())
    schema = tiny.read(tiny.ROOT / "rules/schemas/config.schema.json")
    study = {"study": written["study"] | {"methods": ["gw_awq"]}, "sensitivity": {"methods": []}}
    config = configuration.load(paths.named_texts(written | study), schema)
    shape = Shape.of(LLAMA3_70B | {"num_hidden_layers": 8})  # 18 GB, and 16 of moments
    assert shape is not None
    found = {}
    for ram in (4e10, 6e10):
        machine = Machine("cuda", "a card", ram, 8e10, 1e12, SLOW_GPU._replace(disk=1e10))
        jobs = plan.estimates(config, {"smollm2-135m": shape}, machine)
        found[ram] = next(spent for job, _, spent in jobs if job.rule == "quantize")
    assert found[4e10] - found[6e10] > 34e9 * (1 / SLOW_GPU.cold - 1 / SLOW_GPU.read) / 2


def huge(project: Path, **study: str) -> Callable[[str], tuple[int, str]]:
    """Runs targets of a study of a model of 9,000 billion weights, of which only config.json is there."""
    folder = project / "inputs/huge"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA3_70B | {"num_hidden_layers": 10_000}))
    (folder / "model.safetensors").touch()
    changed = {"models": {"tiny": {"source": {"directory": "inputs/huge"}}}, "study": tiny.OVERLAY["study"] | study}
    (project / "huge.yaml").write_text(yaml.safe_dump(tiny.OVERLAY | changed))

    def run(target: str) -> tuple[int, str]:
        done = tiny.snakemake(project, target, config="huge.yaml")
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_study_that_cannot_fit_is_refused_before_its_first_job(project: Path) -> None:
    status, said = huge(project)("results/report.html")
    assert status == 1 and "this study does not fit: the disk: its files take" in said and "Traceback" not in said
    assert "rule convert" not in said and not (project / "results/tiny").exists()


@pytest.mark.slow
def test_it_runs_all_the_same_where_it_says_so_and_its_plan_fails_when_it_is_written(project: Path) -> None:
    status, said = huge(project, unfit="continue")("results/report.html")
    assert status == 1 and "the disk: its files take" in said and "is not a whole safetensors file" in said
    made = []
    for _ in range(2):  # it is made again, since there may be room by now
        status, said = huge(project)("results/plan.txt")
        assert status == 1 and "the study does not fit: results/plan.txt says by how much" in said, said
        assert (project / "results/plan.txt").read_text().startswith("It does not fit:\n")
        made.append((project / "results/plan.json").stat().st_mtime_ns)
    assert made[0] < made[1]
    done = tiny.snakemake(project, "results/plan.txt")
    assert done.returncode == 0 and (project / "results/plan.txt").read_text().startswith("It fits.")


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
    sharded = plan.misfits(rows, machine._replace(disk=1e9), 0.0, sums=2e9)
    assert "files take 2 GB" in sharded[-1] and "shards' moments before they are summed 2 GB" in sharded[-1]
    assert plan.words({}, {}, machine, rows, unfit).startswith(f"It does not fit:\n  {unfit[0]}\n")
