"""The tiny model's linears."""

from pathlib import Path

import pytest

from quant.models.structure.linears import all_linears, skeleton


@pytest.fixture(scope="module")
def linears(tiny_checkpoint: Path) -> dict[str, int]:
    return all_linears(skeleton(tiny_checkpoint))
