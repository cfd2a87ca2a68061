"""The packages form floors: each imports only what stands below it."""

import re
from pathlib import Path

import pytest

from quant.workflow import tracking
from tests.tiny import ROOT
from tests.unit.workflow.floors import FLOOR, LIBRARY, MODELS, package_of

MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py")
# what a package's code, however deep, must not need
WITHOUT = {"recipe": "transformers", "comparison": "torch"}


def imported(path: Path) -> set[str]:
    """The packages of quant/ that a file imports from, its own left out."""
    found = {names[0].split(".")[1] for names in tracking.imports(path) if names[0].startswith("quant.")}
    return found - {package_of(path)}


def test_every_package_has_a_floor() -> None:
    assert {package_of(path) for path in MODULES} == set(FLOOR)


def test_no_import_runs_up() -> None:
    """Nor along a floor."""
    up = {
        (path.relative_to(LIBRARY).as_posix(), package)
        for path in MODULES
        for package in imported(path)
        if FLOOR[package] <= FLOOR[package_of(path)]
    }
    assert up == set()


def test_nor_within_models() -> None:
    up = {
        (f"{package}/{path.name}", name)
        for above, package in enumerate(MODELS)
        for path in (LIBRARY / "models" / package).glob("*.py")
        for name, *_ in tracking.imports(path)
        if name.split(".")[:3] in [["quant", "models", other] for other in MODELS[:above]]
    }
    assert up == set() and {path.parent.name for path in (LIBRARY / "models").glob("*/*.py")} == set(MODELS)


def test_only_scripts_and_benchmarks_use_methods_and_the_report() -> None:
    users = {
        (path.relative_to(LIBRARY).as_posix(), p) for path in MODULES for p in imported(path) & {"methods", "report"}
    }
    assert users == set()


@pytest.mark.parametrize(("package", "library"), WITHOUT.items())
def test_a_package_does_without(package: str, library: str) -> None:
    modules = [path for path in MODULES if package_of(path) == package]
    assert [path.name for path in modules if library in tracking.closure(path, tracking.SCRIPTS)[1]] == []


def test_no_test_module_imports_another() -> None:
    """What several need stands in a module beside them."""
    from_a_test = re.compile(r"^ *(from tests\S*\.test_\w+ import|from tests\S* import (.*\b)?test_)", re.MULTILINE)
    assert [str(path) for path in sorted((ROOT / "tests").rglob("*.py")) if from_a_test.search(path.read_text())] == []
