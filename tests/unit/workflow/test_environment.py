"""A library's environment that is there already: by its folder, its Python, or a folder of packages."""

import subprocess
from pathlib import Path

import pytest

from quant.errors import InputError
from quant.workflow import environment
from quant.workflow.environment import Library

LIBRARY = Library("Some", "some_library", "leave it out", "some-library==1.2")
NOWHERE = Path("no/such/requirements.txt")


def packages(folder: Path, version: str = "1.2") -> Path:
    """A folder as `pip install --target` fills it."""
    (folder / "some_library").mkdir(parents=True)
    (folder / "some_library/__init__.py").write_text("import numpy\nvalue = 7\n")
    info = folder / f"some_library-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some-library\nVersion: {version}\n")
    return folder


def asked(python: Path) -> str:
    code = "import some_library, numpy; print(some_library.value, numpy.__file__)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_folder_of_packages_is_completed_by_what_the_workflow_runs_on(tmp_path: Path) -> None:
    python, held = environment.build(tmp_path / "made", NOWHERE, LIBRARY, packages(tmp_path / "site"))
    assert python == tmp_path / "made/bin/python"
    assert "some-library==1.2" in held.splitlines() and any(line.startswith("numpy==") for line in held.splitlines())
    import numpy

    assert asked(python).split() == ["7", numpy.__file__]


def test_an_environment_or_its_python_is_taken_as_it_is(tmp_path: Path) -> None:
    packages(tmp_path / "site")
    first, _ = environment.build(tmp_path / "first", NOWHERE, LIBRARY, tmp_path / "site")
    for existing in (tmp_path / "first", first):
        python, _ = environment.build(tmp_path / "second", NOWHERE, LIBRARY, existing)
        assert python == first and not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.3", r"Some's environment: import some_library failed \(it holds some-library 1\.3, where 1\.2 is wanted\)"),
        (
            None,
            r"Some's environment: import some_library failed \(ModuleNotFoundError: No module named 'some_library'\)",
        ),
    ],
)
def test_one_without_the_library_or_of_another_version_is_refused(
    tmp_path: Path, version: str | None, expected: str
) -> None:
    site = tmp_path / "site"
    site.mkdir() if version is None else packages(site, version)
    with pytest.raises(InputError, match=expected) as caught:
        environment.build(tmp_path / "made", NOWHERE, LIBRARY, site)
    assert "\n" not in str(caught.value) and not (tmp_path / "made").exists()


def test_a_python_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("no program")
    with pytest.raises(InputError, match="Some's environment: import some_library cannot start"):
        environment.build(tmp_path / "made", NOWHERE, LIBRARY, tmp_path / "python")


@pytest.mark.parametrize("own", [True, False])
def test_what_its_own_environment_imports_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Where nothing else is to be: a library of thousands of modules would be compiled at each start of its worker."""
    site, make = packages(tmp_path / "site"), environment.make
    monkeypatch.setattr(environment, "make", lambda *arguments: make(*arguments[:3], site))  # for pip's
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment.build(tmp_path / "made", NOWHERE, LIBRARY, None if own else site)
    assert bool(list(site.rglob("*.pyc"))) == own
