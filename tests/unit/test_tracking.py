"""A job's code is its script and every module that imports, however deep, and nothing else."""

from pathlib import Path

import pytest

from quant import tracking


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "job.py": "from quant import a\nimport numpy.linalg\n",
            "quant/a.py": "def f():\n    from quant.b import g\n",
            "quant/b.py": "g = 1\n",
            "quant/other.py": "from quant import a\n",
            "page.html": "hello",
        },
    )
    return tmp_path


def code(root: Path, *data: str) -> str:
    tracking.imports.cache_clear()
    tracking.code_of.cache_clear()
    return tracking.code_of("job.py", *data, root=root)


@pytest.mark.parametrize("name", ["job.py", "quant/a.py", "quant/b.py"])
def test_changes_with_each_file_it_runs(scripts: Path, name: str) -> None:
    before = code(scripts)
    (scripts / name).write_text((scripts / name).read_text() + "# edited\n")
    assert code(scripts) != before


def test_other_modules_and_time_stamps_do_not_count(scripts: Path) -> None:
    before = code(scripts)
    (scripts / "quant/other.py").write_text("changed = 1\n")
    (scripts / "job.py").touch()
    assert code(scripts) == before


def test_data_that_the_script_reads_counts(scripts: Path) -> None:
    before = code(scripts, "page.html")
    (scripts / "page.html").write_text("hello again")
    assert code(scripts, "page.html") != before


def test_a_librarys_version_counts(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code(scripts)
    monkeypatch.setattr(tracking.metadata, "version", lambda name: "0.0.0")
    assert code(scripts) != before


STEPS = {"collect_statistics", "quantize", "measure_error", "evaluate", "check_mse", "summarize", "plot", "report"}


@pytest.mark.parametrize(
    ("module", "users"),
    [
        ("salience", {"quantize"}),
        ("rounding", {"quantize"}),
        ("search", {"quantize"}),
        ("protection", {"quantize", "check_mse"}),
        # a checkpoint is read by its grid
        ("grids", {"quantize", "check_mse", "measure_error", "evaluate"}),
        ("statistics", {"collect_statistics", "check_mse"}),
        ("second_moments", {"collect_statistics", "quantize", "measure_error", "check_mse"}),
        ("compare", {"summarize", "check_mse", "report"}),
        ("figures", {"plot", "report"}),
    ],
)
def test_a_new_method_costs_no_statistics(module: str, users: set[str]) -> None:
    """Who re-runs after an edit: a salience or a rounding is tried without another pass over the text."""
    files = {step: tracking.closure(tracking.SCRIPTS / f"{step}.py")[0] for step in STEPS}
    assert {step for step in STEPS if tracking.SCRIPTS / f"quant/{module}.py" in files[step]} == users
