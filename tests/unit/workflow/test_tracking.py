"""A job's code is its script and every module that imports, however deep, and nothing else."""

import ast
import importlib.util
import shutil
from pathlib import Path

import pytest

from quant.recipe import choices, libraries
from quant.workflow import tracking
from tests.unit.workflow.dependents import ALL, BY_NAME, CHOSEN, DEPENDENTS, LIBRARY, dependents


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
    for cached in (tracking.imports, tracking.imported, tracking.version, tracking.code_of):
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


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the scripts, and the code of each."""
    root = Path(shutil.copytree(tracking.SCRIPTS, tmp_path_factory.mktemp("edited") / "scripts"))
    return root, codes(root)


def codes(root: Path) -> dict[str, str]:
    tracking.code_of.cache_clear()
    return {script: tracking.code_of(f"{script}.py", modules=BY_NAME.get(script), root=root) for script in ALL}


def test_the_table_is_that_of_the_imports() -> None:
    assert dependents() == DEPENDENTS, "make dependents, and read the diff"


def test_packages_hold_no_code() -> None:
    """What an __init__ gave another name would go unhashed."""
    for path in LIBRARY.rglob("__init__.py"):
        (only,) = ast.parse(path.read_text()).body
        assert isinstance(only, ast.Expr) and isinstance(only.value.value, str)


@pytest.mark.parametrize("module", DEPENDENTS)
def test_an_edited_module_changes_the_code_of_its_users_alone(edited: tuple[Path, dict[str, str]], module: str) -> None:
    """What jobs follow from a changed code, tests/workflow/test_staleness.py shows by dry runs."""
    root, before = edited
    path = root / f"quant/{module}.py"
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    after = codes(root)
    path.write_text(text)
    assert {script for script in ALL if after[script] != before[script]} == DEPENDENTS[module]


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
