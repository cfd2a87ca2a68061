"""Machines with other devices."""

from pathlib import Path


def machine(root: Path, *devices: str) -> Path:
    (root / "dev").mkdir()
    for name in ("null", "nvme0", *devices):
        (root / "dev" / name).touch()
    return root
