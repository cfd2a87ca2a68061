"""The floors of the library's packages."""

from pathlib import Path

from quant.workflow import tracking

FLOORS = [
    {"report"},
    {"analysis"},
    {"methods", "evaluation"},
    {"checkpoints", "comparison", "workflow"},
    {"recipe"},
    {"calibration"},
    {"data"},
    {"models"},
    {"runtime"},
    {"files", "records"},
    {"errors"},
]
MODELS = ["conversion", "sources", "tokenization", "structure"]  # packages of models, the highest first
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
LIBRARY = tracking.SCRIPTS / "quant"


def package_of(path: Path) -> str:
    """The first folder under quant/, or a module beside the folders."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")
