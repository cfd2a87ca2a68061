import gc
import importlib
import os
from pathlib import Path

import pytest
import torch

from quant.runtime.importing import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_whatever_happens(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_no_search_goes_through_what_was_imported_and_each_through_what_was_there_where_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_in_a_test.py").write_text("KEPT = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    gc.collect()
    frozen = gc.get_freeze_count()
    try:
        with uncollected():
            pass
        assert gc.get_freeze_count() == frozen
        with uncollected():
            importlib.import_module("imported_in_a_test")
        assert gc.get_freeze_count() >= frozen + 1000
    finally:
        gc.unfreeze()


def test_nothing_is_compiled_that_is_decorated_meanwhile() -> None:
    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    said = os.environ.get("TORCHDYNAMO_DISABLE")
    with uncollected():
        assert torch.compile(add) is add
    assert os.environ.get("TORCHDYNAMO_DISABLE") == said
