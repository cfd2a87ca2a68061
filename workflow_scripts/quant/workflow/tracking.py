"""What code a job depends on: a content hash of its script and of every quant module it imports, however deep.

Snakemake sees neither modules nor, across a fresh clone, anything but time stamps; passed as a rule's param, this
hash re-runs exactly the jobs whose code changed. Versions of the other libraries imported are part of it.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from quant.files.artifacts import digest

PACKAGE = __name__.partition(".")[0]
SCRIPTS = Path(__file__).resolve().parents[2]
BY_NAME = ("quant/recipe/functions.py", "quant/methods/library.py")  # find a recipe's functions, a library's module
RENAMED = {"yaml": "PyYAML", "awq": "autoawq"}  # distributions that are not called what is imported


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All that stand in it, however deep. No expression holds one, and those are most of what ast.walk would visit."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, field, ())
        for each in inner if isinstance(inner, list) else ():  # a lambda's and a conditional expression's are none
            if isinstance(each, ast.stmt):
                yield each
            yield from statements(each)


@functools.cache
def imports(path: Path) -> frozenset[tuple[str, ...]]:
    """What a file imports, anywhere in it, as dotted names that stand for one thing each: `from a import b` gives
    (a.b, a), since b is a module or a name within a. A relative import names nothing that can be followed: refused."""
    found: set[tuple[str, ...]] = set()
    for node in statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {(alias.name,) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ImportError(f"{path}:{node.lineno}: a relative import; write it from `{PACKAGE}.` on")
            found |= {(f"{node.module}.{alias.name}", node.module) for alias in node.names}
    return frozenset(found)


def module_file(name: str, root: Path) -> Path | None:
    """The file of a module under root."""
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


@functools.cache
def imported(path: Path, root: Path) -> tuple[frozenset[Path], frozenset[str]]:
    """Our own files, and the other packages, that a file imports itself. A name of our package that is no module's, nor
    within one, is refused: its code would go unseen."""
    files, packages = set(), set()
    for names in imports(path):
        if names[0].partition(".")[0] != PACKAGE:
            packages.add(names[0].partition(".")[0])
            continue
        own = next(filter(None, (module_file(name, root) for name in names)), None)
        if own is None:
            raise ImportError(f"{path}: imports {names[0]}, which is no module of {root / PACKAGE}")
        files.add(own)
    return frozenset(files), frozenset(packages - set(sys.stdlib_module_names))


def closure(script: Path, root: Path | None = None) -> tuple[set[Path], set[str]]:
    """Our own files that a script, or a module of root's, runs, itself included, and the other packages they import."""
    files: set[Path] = set()
    packages: set[str] = set()
    todo = {script}
    while todo:
        path = todo.pop()
        files.add(path)
        own, others = imported(path, root or script.parent)
        packages |= others
        todo |= own - files
    return files, packages


@functools.cache
def version(package: str) -> str | None:
    """Of an imported package's distribution; None where it is not installed. Asking for it by name is quick, where
    metadata.packages_distributions reads what every installed distribution holds."""
    try:
        return metadata.version(RENAMED.get(package, package))
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def code_of(script: str, *data: str, modules: tuple[str, ...] | None = None, root: Path = SCRIPTS) -> str:
    """Hash of a script by name, e.g. "quantize.py", of files that it reads besides, e.g. a template, and of the modules
    that it imports by a name of its recipe, which no import statement shows; a script that may import so is refused
    where none are given."""
    files, packages = closure(root / script)
    if modules is None and files & {root / path for path in BY_NAME}:
        raise ValueError(f"{script} imports by name: give the modules of its recipe")
    for module in modules or ():
        more, others = closure(root.joinpath(*module.split(".")).with_suffix(".py"), root)
        files, packages = files | more, packages | others
    files |= {root / name for name in data}
    parts = [file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() for file in sorted(files)]
    parts += [f"{package}=={version(package)}".encode() for package in sorted(packages) if version(package)]
    return digest(*parts)
