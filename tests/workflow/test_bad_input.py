"""A user's mistake, through the real command: one clear line on the terminal, no traceback, no output left."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import tiny

GOOD, BAD = "good_wheel", "other_wheel"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clone(tmp_path_factory.mktemp("bad") / "clone")


def overlay(folder: Path, name: str, **sections: Any) -> str:
    """The tiny overlay with sections updated, as a file of the clone."""
    content = json.loads(json.dumps(tiny.OVERLAY))
    for section, values in sections.items():
        content.setdefault(section, {}).update(values)
    (folder / name).write_text(json.dumps(content))
    return name


def terminal(done: subprocess.CompletedProcess[str]) -> str:
    """What the user saw of a run that failed as it should."""
    seen = done.stdout + done.stderr
    assert done.returncode == 1, seen
    assert "Traceback" not in seen, seen
    return seen


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"calibration": {"seqlen": 32}}, "calibration: unknown key 'seqlen'; did you mean seq_len?"),
        ({"models": {"tiny": {"source": {"directory": "inputs/none"}}}}, "inputs/none: no such directory"),
        ({"texts": {"tiny_heldout": {"files": ["inputs/none.txt"]}}}, "inputs/none.txt"),
        ({"models": {"tiny": {"source": {"gguf": {"path": "inputs/none.gguf"}}}}}, "inputs/none.gguf"),
    ],
)
def test_mistakes_found_before_any_job(project: Path, sections: dict[str, Any], expected: str) -> None:
    seen = terminal(tiny.snakemake(project, "results/report.html", config=overlay(project, "early.yaml", **sections)))
    assert expected in seen and "Error in rule" not in seen


# --- several mistakes in one run


def save_hidden_nan(folder: Path) -> None:
    tiny.save_model(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def wheel_source(package: str, sha256: str, member: str) -> dict[str, Any]:
    return {"gguf": {"package": package, "version": "1.0", "sha256": sha256, "member": member}}


EXPECTED = {
    "empty": "inputs/empty: is empty; give the path of a model directory",
    "hidden_nan": "model.layers.1.mlp.down_proj.weight holds NaN or infinite values",
    "no_member": "has no models/tiny.gguf; choose one of good_wheel/model.gguf",
    "wrong_sum": "other-wheel==1.0: its SHA-256 is",
    "far": "someone/nothing: the hub cannot be reached",
}


@pytest.fixture(scope="module")
def failed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every bad model, and a good one with a bad layer, in one run that goes on after each failure."""
    wheels, inputs = tmp_path_factory.mktemp("wheels"), project / "inputs"
    sums = {package: tiny.save_wheel(wheels, package) for package in (GOOD, BAD)}
    (inputs / "empty").mkdir()
    save_hidden_nan(inputs / "hidden_nan")
    sources = {name: {"directory": f"inputs/{name}"} for name in ("empty", "hidden_nan")} | {
        "no_member": wheel_source(GOOD.replace("_", "-"), sums[GOOD], "models/tiny.gguf"),
        "wrong_sum": wheel_source(BAD.replace("_", "-"), "0" * 64, "other_wheel/model.gguf"),
        "far": {"hub": {"id": "someone/nothing", "revision": "0" * 40}},
    }
    models = {name: {"source": source} for name, source in sources.items()}
    config = overlay(project, "models.yaml", models=models, check_mse={"layer": 5})
    targets = [f"results/{name}/original/convert.json" for name in sources] + ["results/tiny/check_mse/linears.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        patch.setenv("HF_ENDPOINT", "http://hub.invalid")
        patch.setenv("HF_HOME", str(wheels / "cache"))
        done = tiny.snakemake(project, *targets, "--keep-going", config=config)
    return project, terminal(done)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bad_model_ends_in_one_line_and_leaves_no_output(failed: tuple[Path, str], name: str) -> None:
    project, seen = failed
    lines = {line for line in seen.splitlines() if line.startswith("ERROR") and EXPECTED[name] in line}
    assert len(lines) == 1, seen
    assert [path for path in (project / "results" / name).rglob("*") if path.is_file()] == []
    rule = "fetch_package/other-wheel-1.0" if name == "wrong_sum" else f"convert/{name}"
    logged = (project / f"results/logs/{rule}.log").read_text()
    assert lines.pop() in logged and "Traceback" not in logged
    assert not (project / "results/sources/other-wheel-1.0.whl").exists()


def test_a_file_that_says_a_thing_twice(project: Path) -> None:
    (project / "twice.yaml").write_text((project / "tiny.yaml").read_text() + "study: {methods: [rtn_g]}\n")
    seen = terminal(tiny.snakemake(project, "results/report.html", "--dry-run", config="twice.yaml"))
    assert "twice.yaml: study stands there more than once" in seen


def test_a_run_that_ends_before_the_choice_says_nothing_of_it(project: Path) -> None:
    shutil.rmtree(project / "results", ignore_errors=True)
    done = tiny.snakemake(project, "results/best/choice.json", "--until", "convert")
    assert done.returncode == 0 and "Error" not in done.stdout + done.stderr, done.stdout + done.stderr


def test_a_layer_that_the_model_lacks(failed: tuple[Path, str]) -> None:
    """Every step before the check works; the check names the layer and leaves nothing."""
    project, seen = failed
    lines = {line for line in seen.splitlines() if line.startswith("ERROR layer 5:")}
    assert len(lines) == 1 and "0 to 1" in lines.pop()
    assert not list((project / "results/tiny/check_mse").glob("*"))
    assert (project / "results/tiny/original/convert.json").exists()


def test_what_the_model_has_not_is_refused_at_once(project: Path) -> None:
    """Before anything is tokenised, quantised or measured; all mistakes in one line with their keys."""
    config = overlay(
        project,
        "study.yaml",
        check_mse={"layer": 5},
        deep_dive={"layers": [2, "auto"]},
        calibration={"seq_len": 1024},
        choose={"max_size_mb": 0.001},
        compute={"threads": 8},
    )
    shutil.rmtree(project / "results", ignore_errors=True)
    seen = terminal(tiny.snakemake(project, "results/report.html", config=config))
    (line,) = {line for line in seen.splitlines() if line.startswith("ERROR the study asks tiny for 4 things")}
    for key in ("check_mse.layer: 5:", "deep_dive.layers: 2:", "calibration.seq_len: 1024:", "choose.max_size_mb:"):
        assert key in line, line
    made = {path.name for path in (project / "results/tiny").rglob("*.safetensors")}
    assert made <= {"model.safetensors", "tokens.safetensors"} and not (project / "results/tiny/rtn_g").exists()
