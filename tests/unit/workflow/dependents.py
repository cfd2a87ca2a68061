"""Every module of the library and the scripts whose code an edit of it changes, a row each in dependents.txt: `make
dependents` writes them anew, and their diff says which jobs a new import makes again from now on."""

from pathlib import Path

from quant.recipe import choices, libraries
from quant.workflow import tracking

FILE = Path(__file__).with_suffix(".txt")
LIBRARY = tracking.SCRIPTS / "quant"
ALL = {path.stem for path in tracking.SCRIPTS.glob("*.py")}
CHOSEN = {
    key: {name: f"quant.recipe.{package}.{name}" for name in table if name != "none"}
    for key, (package, table) in choices.CHOICES.items()
}
# all that a script may import by a recipe's names
BY_NAME = {
    **dict.fromkeys(
        ("quantize", "quantize_shard", "quantize_with_model"),
        tuple(module for names in CHOSEN.values() for module in names.values()),
    ),
    **dict.fromkeys(("quantize_library", "check_study"), tuple(map(libraries.module_of, libraries.LIBRARIES))),
}
ROWS = (row.partition(":") for row in FILE.read_text().splitlines())
DEPENDENTS = {module: set(scripts.split()) for module, _, scripts in ROWS}


def dependents() -> dict[str, set[str]]:
    """As the scripts import now."""
    found: dict[str, set[str]] = {
        path.relative_to(LIBRARY).with_suffix("").as_posix(): set()
        for path in LIBRARY.rglob("*.py")
        if path.name != "__init__.py"
    }
    for script in ALL:
        modules = [tracking.module_file(name, tracking.SCRIPTS) for name in BY_NAME.get(script, ())]
        for start in (tracking.SCRIPTS / f"{script}.py", *filter(None, modules)):
            for path in tracking.closure(start, tracking.SCRIPTS)[0]:
                if path.is_relative_to(LIBRARY):
                    found[path.relative_to(LIBRARY).with_suffix("").as_posix()].add(script)
    return found


if __name__ == "__main__":
    rows = sorted((module, *sorted(scripts)) for module, scripts in dependents().items())
    FILE.write_text("".join(f"{module}: {' '.join(scripts)}".rstrip() + "\n" for module, *scripts in rows))
