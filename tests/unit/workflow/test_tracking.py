"""A job's code is its script and every module that imports, however deep, and nothing else."""

import ast
import importlib.util
import shutil
from pathlib import Path

import pytest

from quant.recipe import choices, libraries
from quant.workflow import tracking


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
            "quant/a.py": "def f():\n    from quant.low.b import g\n",
            "quant/low/b.py": "g = 1\n",
            "quant/other.py": "from quant import a\n",
            "page.html": "hello",
        },
    )
    return tmp_path


def code(root: Path, *data: str) -> str:
    for cached in (tracking.imports, tracking.version, tracking.code_of):
        cached.cache_clear()
    return tracking.code_of("job.py", *data, root=root)


@pytest.mark.parametrize("name", ["job.py", "quant/a.py", "quant/low/b.py"])
def test_changes_with_each_file_it_runs(scripts: Path, name: str) -> None:
    before = code(scripts)
    (scripts / name).write_text((scripts / name).read_text() + "# edited\n")
    assert code(scripts) != before


def test_other_modules_and_time_stamps_do_not_count(scripts: Path) -> None:
    before = code(scripts)
    (scripts / "quant/other.py").write_text("changed = 1\n")
    (scripts / "job.py").touch()
    assert code(scripts) == before


@pytest.mark.parametrize("line", ["from .low import b", "from . import low", "from .low.b import g"])
def test_a_relative_import_is_refused(scripts: Path, line: str) -> None:
    (scripts / "quant/a.py").write_text(line)
    with pytest.raises(ImportError, match=r"a\.py:1: a relative import"):
        code(scripts)


@pytest.mark.parametrize(
    "line", ["from quant.low import missing", "import quant.missing", "from quant.missing import g"]
)
def test_an_import_of_no_module_is_refused(scripts: Path, line: str) -> None:
    (scripts / "quant/a.py").write_text(line)
    with pytest.raises(ImportError, match="which is no module"):
        code(scripts)


def test_a_package_of_a_longer_name_is_another(scripts: Path) -> None:
    (scripts / "quant/a.py").write_text("import quanto\nfrom quanto.nn import qlinear\n")
    assert tracking.closure(scripts / "job.py")[1] == {"numpy", "quanto"}


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
PASSES = {
    "collect_statistics",
    "collect_noisy",
    "collect_jacobian",
    "collect_end_loss",
    "quantize_with_model",
    "check_mse",
}  # the model, block by block
RECIPES = {"quantize", "quantize_with_model"}
QUANTIZERS = {"quantize", "quantize_with_model", "quantize_library"}
LIBRARIAN = {"quantize_library", "check_study"}  # they know the libraries
READERS = {"evaluate", "measure_error", "measure_heldout", "measure_sensitivity", "export"}  # of a method's checkpoint
MEASURES = {"evaluate", "evaluate_original", "measure_sensitivity"}
ANALYSES = {"analyse_preactivations", "deep_dive"}
PLOTS = {"plot_preactivations", "plot_deep_dive", "plot_synthetic"}
FROM_FILES = PLOTS - {"plot_synthetic"}  # they read samples of z
TOKENS = {"tokenize_calibration", "tokenize_dataset"}
TEXTS = {*TOKENS, "check_texts"}
TABLES = {"summarize", "summarize_sensitivity", "answer_questions"}
LIBRARY = tracking.SCRIPTS / "quant"
CHOSEN = {
    key: {name: f"quant.recipe.{package}.{name}" for name in table if name != "none"}
    for key, (package, table) in choices.CHOICES.items()
}
# all that a script may import by a recipe's names
BY_NAME = dict.fromkeys(RECIPES, tuple(module for names in CHOSEN.values() for module in names.values()))
BY_NAME |= dict.fromkeys(LIBRARIAN, tuple(map(libraries.module_of, libraries.LIBRARIES)))
ALL = {path.stem for path in tracking.SCRIPTS.glob("*.py")}
OURS = ALL - {f"{name}_worker" for name in (*libraries.LIBRARIES, "lm_eval")}  # they run in environments of their own
USERS: dict[str, set[str]] = {
    "report/figures/axes": PLOTS | {"plot"},
    "report/figures/check": {"plot"},
    "report/figures/draw": {"plot"},
    "report/figures/layer": {"plot_deep_dive"},
    "report/figures/linears": {"plot"},
    "report/figures/pairs": {"plot"},
    "report/figures/preactivations": {"plot_preactivations"},
    "report/figures/style": PLOTS | {"plot", "plot_tasks", "report"},
    "report/figures/synthetic": {"plot_synthetic"},
    "report/sections/layer": {"report"},
    "report/sections/models": {"report"},
    "report/sections/preactivations": {"report"},
    "report/sections/synthetic": {"report"},
    "report/sections/words": {"report"},
    "report/study": {"report"},
    "comparison/untried": {"report"},
    "comparison/answers": {"answer_questions", "report"},
    "models/architectures": RECIPES
    | ANALYSES
    | FROM_FILES
    | {"check_study", "collect_jacobian", "export", "measure_sensitivity"},
    "files/artifacts": OURS,
    "methods/block": RECIPES,
    "calibration/blocks": PASSES,
    "checkpoints/card": {"describe"},
    "recipe/choices": TABLES | {"describe", "report"},
    "recipe/context": RECIPES,
    "recipe/functions": RECIPES,
    "recipe/quantized": QUANTIZERS | {"check_study"},
    "calibration/channels": PASSES
    | ANALYSES
    | FROM_FILES
    | {"measure_error", "measure_heldout", "measure_sensitivity", "quantize", "synthetic_benchmark"},
    "comparison/paired": TABLES
    | {
        "check_mse",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "comparison/summary": {"plot", "report", "summarize"},
    "models/compute": PASSES
    | QUANTIZERS
    | MEASURES
    | {"check_study", "evaluate_task", "measure_error", "measure_heldout", "write_words"},
    "workflow/configuration": set(),  # of the Snakefile, whose rules pass on what it makes of config.yaml
    "models/convert": {"convert"},
    "checkpoints/coverage": QUANTIZERS | {"check_study", "evaluate", "evaluate_original", "quantize_budget"},
    "models/depth": {"check_mse", "check_study", "deep_dive"},
    "comparison/correlation": {"answer_questions", "deep_dive", "report"},
    "files/csv_tables": TABLES
    | ANALYSES
    | FROM_FILES
    | {
        "check_mse",
        "describe",
        "measure_error",
        "measure_heldout",
        "pick",
        "plot",
        "plot_tasks",
        "quantize_budget",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "analysis/deep_dive": {"deep_dive"},
    "evaluation/divergence": MEASURES | {"evaluate_task", "write_words"},
    "errors": OURS,
    "evaluation/perplexity": MEASURES | {"evaluate_task", "write_words"},
    "evaluation/record": {"evaluate", "evaluate_original"},
    "report/figures/study": {"plot"},
    "recipe/correction": {"quantize_with_model"},
    "recipe/fused": RECIPES,
    "checkpoints/gemm": {"check_study", "export", "quantize_library"},
    "checkpoints/gguf_file": {"export"},
    # a checkpoint is read by its grid
    "recipe/grids": READERS
    | QUANTIZERS
    | {"check_mse", "check_study", "evaluate_task", "quantize_budget", "write_words"},
    "calibration/end_loss": {"collect_end_loss"},
    "calibration/hidden": PASSES,
    "calibration/jacobian": {"collect_jacobian"},
    "workflow/job": OURS,
    "recipe/grid_kernels": RECIPES,
    "recipe/key": TABLES | {"build_library", "check_study", "describe", "quantize_library", "report"},
    "recipe/keys": TABLES | {"describe", "report"},
    "analysis/layer_mse": {"check_mse"},
    "recipe/linear": RECIPES,
    "models/names": RECIPES
    | ANALYSES
    | FROM_FILES
    | {"answer_questions", "check_mse", "measure_error", "measure_heldout", "measure_sensitivity", "plot", "report"},
    "models/linears": PASSES | {"convert"},
    "models/experts": PASSES | MEASURES | {"convert"},
    "models/minicpm": {"convert"},
    "models/native": {"convert"},
    "models/notes": PASSES | {"convert"},
    "models/quantised": {"convert"},
    "evaluation/loss_kernels": MEASURES | {"evaluate_task", "write_words"},
    "calibration/noisy": {"collect_noisy"},
    "comparison/numbers": TABLES
    | {
        "check_mse",
        "check_study",
        "deep_dive",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    # before any job or after all: how a run ended, whether jobs ask for GPUs, how a configuration is given
    "workflow/outcome": set(),
    "workflow/gpus": set(),
    "workflow/own": set(),
    "workflow/paths": set(),
    "workflow/values": set(),
    "checkpoints/packed": READERS | QUANTIZERS | {"check_study", "evaluate_task", "quantize_budget", "write_words"},
    "report/page": {"report"},
    "comparison/pairs": TABLES | {"report"},
    "comparison/part_names": {"answer_questions", "measure_sensitivity", "report", "summarize_sensitivity"},
    "analysis/parts": {"measure_sensitivity"},
    "calibration/parts": RECIPES | {"collect_end_loss", "measure_error", "measure_heldout"},
    "comparison/pick": {"check_study", "pick", "plot", "report"},
    "calibration/preactivation_sums": PASSES,
    "analysis/preactivations": ANALYSES | FROM_FILES | {"measure_sensitivity"},
    "recipe/protection": RECIPES | {"check_mse", "synthetic_benchmark"},
    "methods/quantize": RECIPES,
    "report/figures/questions": {"plot"},
    "comparison/questions": {"answer_questions"},
    "calibration/reader": RECIPES,
    "recipe/ranges": RECIPES,
    "recipe/recipe": RECIPES | {"check_study", "quantize_budget"},
    "models/record": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | ANALYSES
    | {"check_study", "convert", "evaluate_task", "measure_error", "quantize_budget", "write_words"},
    "evaluation/exact_error": {"measure_error", "measure_heldout"},
    "report/build": {"report"},
    "recipe/refine": RECIPES,
    "recipe/refine_kernels": RECIPES,
    "recipe/roundings/gptq": RECIPES,
    "recipe/roundings/greedy_flip": RECIPES,
    "recipe/roundings/nearest": RECIPES,
    # a new salience or rounding is tried without another pass over the text
    "recipe/saliences/l1": RECIPES | {"deep_dive"},
    "recipe/saliences/l2": RECIPES,
    "recipe/saliences/praq": RECIPES | {"deep_dive"},
    "recipe/scores/awq": RECIPES | {"check_mse", "deep_dive", "synthetic_benchmark"},
    "recipe/scores/praq": RECIPES | {"check_mse", "deep_dive", "synthetic_benchmark"},
    "workflow/recipe_schema": set(),
    "workflow/defaults": set(),
    "workflow/schema": set(),
    "recipe/search": RECIPES,
    "calibration/second_moments": PASSES | {"measure_error", "measure_heldout", "quantize"},
    "report/sections/questions": {"report"},
    "analysis/sensitivity": {"summarize_sensitivity"},
    "checkpoints/sizes": {"evaluate", "evaluate_original"},
    "models/gguf_pretokenizers": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/gguf_tokenizer": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/sentencepiece_model": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/tokenizers": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/rotary": PASSES | MEASURES | {"evaluate_task", "write_words"},
    "data/text_files": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "models/gguf_hyperparameters": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/sources": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "calibration/statistics": PASSES,
    "report/steps": {"report"},
    "checkpoints/stored": READERS | {"evaluate_task", "quantize_budget", "write_words"},
    "methods/sequential": {"quantize_with_model"},
    "calibration/streams": {"quantize_with_model"},
    "calibration/sum_kernels": PASSES,
    "analysis/synthetic": {"synthetic_benchmark"},
    "report/tables": {"report"},
    "report/texts": {"report"},
    "files/units": PASSES | {"check_study", "describe", "pick", "plot", "quantize_budget", "report"},
    "files/tensorfile": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "data/overlap": TEXTS | {"describe", "evaluate_task", "make_task", "plot", "report", "summarize", "write_words"},
    "data/split": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/texts": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/tokens": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | {"check_study", "evaluate_task", "make_task", "measure_error", "quantize_budget", "write_words"},
    "data/wording": TEXTS | {"describe", "evaluate_task", "make_task", "write_words"},
    "workflow/shared_text": set(),
    "methods/tune": {"quantize_with_model"},
    "methods/with_model": {"quantize_with_model"},
    "workflow/tracking": set(),  # what it says is what counts
    "comparison/verdicts": {
        "answer_questions",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
    },
    "workflow/demands": set(),
    "methods/refusals": {"check_study"},
    "methods/shared": RECIPES | {"check_study"},
    "methods/packing": RECIPES | {"check_study", "quantize_budget"},
    "checkpoints/gguf_sentencepiece": {"export"},
    "checkpoints/gguf_metadata": {"export"},
    "evaluation/sanity": {"evaluate", "evaluate_original"},
    "calibration/material": PASSES,
    "files/pieces": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "models/unrolled": PASSES | MEASURES | {"convert"},
    "evaluation/head": MEASURES | {"evaluate_task", "write_words"},
    "models/loading": MEASURES | {"evaluate_task", "quantize_with_model", "write_words"},
    "records/evaluation": MEASURES | {"evaluate_task", "plot", "report", "summarize", "write_words"},
    "records/method": QUANTIZERS
    | MEASURES
    | {
        "check_study",
        "describe",
        "evaluate_task",
        "measure_error",
        "measure_heldout",
        "plot",
        "quantize_budget",
        "report",
        "summarize",
        "write_words",
    },
    "records/model": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | ANALYSES
    | {"check_study", "convert", "evaluate_task", "measure_error", "quantize_budget", "write_words"},
    "comparison/learnt": {"answer_questions", "report", "summarize"},
    "comparison/measures": TABLES
    | {
        "check_mse",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "comparison/prediction": {"answer_questions"},
    "comparison/table": {"summarize"},
    "comparison/text_answers": {"answer_questions", "report"},
    "comparison/tasks": {"plot_tasks", "report", "summarize_tasks"},
    "data/embedded_tasks": {"make_task"},
    "data/lm_eval": {"make_task"},
    "data/task_items": {"check_texts", "evaluate_task", "make_task", "write_words"},
    "data/task_yaml": {"make_task"},
    "evaluation/items": {"evaluate_task"},
    "evaluation/tasks": {"evaluate_task"},
    "report/figures/tasks": {"plot_tasks"},
    "report/sections/tasks": {"report"},
    "workflow/environment": {"build_library", "build_lm_eval"},
    "comparison/twins": {"report", "summarize"},
    "calibration/expert_moments": PASSES,
    "files/naming": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "models/dequantised": {"convert"},
    "models/published": {"convert"},
    "comparison/greedy": {"report", "summarize_words"},
    "evaluation/greedy": {"write_words"},
    "methods/allocation": {"quantize_budget"},
    "methods/mixed": {"quantize_budget"},
    "recipe/widths": TABLES | {"check_study", "describe", "quantize_budget", "report"},
    "report/sections/greedy": {"report"},
    "workflow/budgets": set(),
    "calibration/kept": {"quantize_with_model"},
    "checkpoints/gptq_layout": {"check_study", "quantize_library"},
    "methods/libraries/autoawq": {"check_study", "quantize_library"},
    "methods/libraries/autoround": {"check_study", "quantize_library"},
    "methods/libraries/llmcompressor": {"check_study", "quantize_library"},
    "methods/library": {"check_study", "quantize_library"},
    "methods/library_environment": {"check_study", "quantize_library"},
    "methods/results": {"check_study", "quantize_library"},
    "recipe/libraries": TABLES | {"build_library", "check_study", "describe", "quantize_library", "report"},
    "evaluation/provenance": {"evaluate_task", "write_words"},
    "comparison/mixing": {"answer_questions"},
    "checkpoints/export": {"export"},
    "checkpoints/fitting": {"export"},
    "checkpoints/formats/awq": {"export"},
    "checkpoints/formats/dense": {"export"},
    "checkpoints/formats/gguf": {"export"},
}


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the scripts, and the code of each."""
    root = Path(shutil.copytree(tracking.SCRIPTS, tmp_path_factory.mktemp("edited") / "scripts"))
    return root, codes(root)


def codes(root: Path) -> dict[str, str]:
    tracking.code_of.cache_clear()
    return {script: tracking.code_of(f"{script}.py", modules=BY_NAME.get(script), root=root) for script in ALL}


def test_the_table_has_every_module() -> None:
    files = {path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"}
    assert {path.relative_to(LIBRARY).with_suffix("").as_posix() for path in files} == USERS.keys()


def test_packages_hold_no_code() -> None:
    """What an __init__ gave another name would go unhashed."""
    for path in LIBRARY.rglob("__init__.py"):
        (only,) = ast.parse(path.read_text()).body
        assert isinstance(only, ast.Expr) and isinstance(only.value.value, str)


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


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in CHOSEN.items() for name in names])
def test_an_edited_choice_changes_the_code_of_the_recipes_that_name_it(
    edited: tuple[Path, dict[str, str]], key: str, name: str
) -> None:
    root, _ = edited
    plain = {"salience": "none", "rounding": "nearest", "keep": "none"}
    recipes = [plain | {k: value} for k, names in CHOSEN.items() for value in names]

    def codes_of_recipes() -> list[str]:
        tracking.imports.cache_clear()
        tracking.code_of.cache_clear()
        return [tracking.code_of("quantize.py", modules=choices.modules(recipe), root=root) for recipe in recipes]

    before = codes_of_recipes()
    path = root.joinpath(*CHOSEN[key][name].split(".")).with_suffix(".py")
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    after = codes_of_recipes()
    path.write_text(text)
    changed = [recipe for recipe, old, new in zip(recipes, before, after, strict=True) if old != new]
    assert changed == [recipe for recipe in recipes if recipe[key] == name] != []


def test_two_modules_import_by_name_and_their_scripts_must_say_what() -> None:
    library = {path for path in LIBRARY.rglob("*.py") if "importlib.import_module" in path.read_text()}
    assert library == {tracking.SCRIPTS / path for path in tracking.BY_NAME}
    for script in ("quantize.py", "quantize_library.py"):
        with pytest.raises(ValueError, match=rf"{script[:-3]}\.py imports by name"):
            tracking.code_of(script)


def test_a_librarys_jobs_hang_on_its_own_module_alone() -> None:
    """The worker's code is another parameter of the job."""
    codes = {
        name: tracking.code_of("quantize_library.py", modules=choices.modules({"algorithm": name}))
        for name in libraries.LIBRARIES
    }
    assert len(set(codes.values())) == len(libraries.LIBRARIES)
    modules = {name: tracking.closure(tracking.SCRIPTS / f"{name}_worker.py")[0] for name in libraries.LIBRARIES}
    assert all(len(files) == 1 for files in modules.values())


def test_every_choice_has_its_function_and_every_function_its_entry() -> None:
    for package, table in choices.CHOICES.values():
        files = {path.stem for path in (LIBRARY / "recipe" / package).glob("*.py")} - {"__init__"}
        assert files == table.keys() - {"none"}
        for name in files:
            (function,) = (
                node
                for node in ast.parse((LIBRARY / f"recipe/{package}/{name}.py").read_text()).body
                if isinstance(node, ast.FunctionDef) and node.name == name
            )
            assert {argument.arg for argument in function.args.kwonlyargs} == set(table[name].keys)
