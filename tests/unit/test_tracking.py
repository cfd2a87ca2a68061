"""A job's code is its script and every module that imports, however deep, and nothing else."""

import importlib.util
import shutil
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
    for cached in (tracking.imports, tracking.version, tracking.code_of):
        cached.cache_clear()
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


def test_every_imported_library_has_a_version_by_its_name() -> None:
    """One whose distribution is called otherwise would not count: it belongs into RENAMED."""
    tracking.version.cache_clear()
    packages = set().union(*(tracking.closure(path)[1] for path in tracking.SCRIPTS.glob("*.py")))
    installed = {package for package in packages if importlib.util.find_spec(package)}
    assert len(installed) > 10 and {package for package in installed if tracking.version(package) is None} == set()


# groups of scripts, and by hand every module and whose jobs an edit of it makes again
PASSES = {"collect_statistics", "collect_noisy", "collect_jacobian", "check_mse"}  # the model, block by block
RECIPES = {"quantize", "quantize_autoawq", "export"}
READERS = {"evaluate", "measure_error", "measure_heldout", "measure_sensitivity", "export"}  # of a method's checkpoint
MEASURES = {"evaluate", "evaluate_original", "measure_sensitivity"}
ANALYSES = {"analyse_preactivations", "deep_dive"}
PLOTS = {"plot_preactivations", "plot_deep_dive", "plot_synthetic"}
TOKENS = {"tokenize_calibration", "tokenize_dataset"}
TABLES = {"summarize", "summarize_sensitivity", "answer_questions"}
ALL = {path.stem for path in tracking.SCRIPTS.glob("*.py")}
OURS = ALL - {"autoawq_worker"}  # it runs with the library's own transformers
USERS: dict[str, set[str]] = {
    "__init__": set(),
    "analysis_figures": PLOTS,
    "analysis_sections": {"report"},
    "answers": {"answer_questions", "report"},
    "architectures": RECIPES | ANALYSES | PLOTS | {"collect_jacobian", "measure_sensitivity"},
    "artifacts": OURS,
    "autoawq": {"quantize_autoawq", "export"},
    "blocks": PASSES,
    "card": {"describe"},
    "channels": PASSES | RECIPES | (READERS - {"evaluate"}) | ANALYSES | PLOTS | {"synthetic_benchmark"},
    "compare": TABLES | {"check_mse", "report", "synthetic_benchmark"},
    "compute": PASSES | RECIPES | READERS | MEASURES,
    "configuration": {"answer_questions", "report", "summarize_sensitivity"},
    "convert": {"convert"},
    "correlation": {"answer_questions", "deep_dive", "report"},
    "csv_tables": TABLES
    | ANALYSES
    | (PLOTS - {"plot_synthetic"})
    | {"check_mse", "describe", "measure_error", "measure_heldout", "pick", "plot", "report", "synthetic_benchmark"},
    "deep_dive": {"deep_dive"},
    "errors": OURS,
    "evaluation": MEASURES,
    "exports": {"export"},
    "figures": PLOTS | {"plot", "report"},
    "fused": RECIPES,
    "gguf_file": {"export"},
    # a checkpoint is read by its grid
    "grids": RECIPES | READERS | {"check_mse"},
    "hidden": PASSES,
    "jacobian": {"collect_jacobian"},
    "job": OURS,
    "kernels": RECIPES,
    "layer_mse": {"check_mse"},
    "linears": PASSES | {"convert"},
    "loss_kernels": MEASURES,
    "noisy_statistics": {"collect_noisy"},
    "numbers": TABLES | PLOTS | {"check_mse", "deep_dive", "pick", "plot", "report", "synthetic_benchmark"},
    "outcome": set(),  # it says how a run ended
    "packed": READERS | {"quantize", "quantize_autoawq"},
    "page": {"answer_questions", "pick", "plot", "report"},
    "pairs": {"answer_questions", "report", "summarize_sensitivity"},
    "part_names": {"answer_questions", "measure_sensitivity", "report", "summarize_sensitivity"},
    "parts": {"measure_sensitivity"},
    "pick": {"pick", "report"},
    "preactivation_sums": PASSES,
    "preactivations": ANALYSES | PLOTS | {"measure_sensitivity"},
    "protection": RECIPES | {"check_mse", "deep_dive", "synthetic_benchmark"},
    "quantize": RECIPES,
    "question_figures": {"plot"},
    "questions": {"answer_questions"},
    "recipe": RECIPES,
    "referee": {"measure_error", "measure_heldout"},
    "report": {"report"},
    "rounding": RECIPES,
    # a new salience or rounding is tried without another pass over the text
    "salience": RECIPES | {"deep_dive"},
    "search": RECIPES,
    "second_moments": PASSES | RECIPES | {"measure_error", "measure_heldout"},
    "sections": {"report"},
    "sensitivity": {"summarize_sensitivity"},
    "sizes": MEASURES,
    "sources": TOKENS | {"convert"},
    "statistics": PASSES,
    "steps": {"report"},
    "stored": READERS,
    "sum_kernels": PASSES,
    "synthetic": {"synthetic_benchmark"},
    "tables": {"plot", "report"},
    "tensorfile": PASSES
    | RECIPES
    | READERS
    | MEASURES
    | ANALYSES
    | PLOTS
    | TOKENS
    | {"convert", "synthetic_benchmark"},
    "texts": TOKENS,
    "tokens": PASSES | RECIPES | MEASURES | TOKENS | {"measure_error"},
    "tracking": set(),  # what it says is what counts
    "verdicts": {"answer_questions", "pick", "plot", "report"},
}


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the scripts, and the code of each."""
    root = Path(shutil.copytree(tracking.SCRIPTS, tmp_path_factory.mktemp("edited") / "scripts"))
    return root, codes(root)


def codes(root: Path) -> dict[str, str]:
    tracking.code_of.cache_clear()
    return {script: tracking.code_of(f"{script}.py", root=root) for script in ALL}


def test_the_table_has_every_module() -> None:
    assert {path.stem for path in (tracking.SCRIPTS / "quant").glob("*.py")} == USERS.keys()


@pytest.mark.parametrize("module", USERS)
def test_an_edited_module_changes_the_code_of_its_users_alone(edited: tuple[Path, dict[str, str]], module: str) -> None:
    """What jobs follow from a changed code, tests/workflow/test_staleness.py shows by dry runs."""
    root, before = edited
    path = root / f"quant/{module}.py"
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    after = codes(root)
    path.write_text(text)
    assert {script for script in ALL if after[script] != before[script]} == USERS[module]
