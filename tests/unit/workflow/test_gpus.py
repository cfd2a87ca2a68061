"""GPUs are asked for where a job would compute on one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from quant.workflow import gpus


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda = None\nhip = '6.4'\n", True),
        ("__all__ = ['cuda', 'hip']\n", True),
    ],
)
def test_what_torch_was_built_for(tmp_path: Path, said: str, expected: bool) -> None:
    (tmp_path / "version.py").write_text(said)
    assert gpus.torch_is_for_gpus(tmp_path / "version.py") is expected


def test_torch_that_says_nothing_may_use_a_gpu(tmp_path: Path) -> None:
    assert gpus.torch_is_for_gpus(None) and gpus.torch_is_for_gpus(tmp_path / "version.py")


def test_it_agrees_with_torch() -> None:
    import torch

    gpus.here.cache_clear()
    built = gpus.torch_is_for_gpus(Path(torch.__file__).with_name("version.py"))
    assert built == bool(torch.version.cuda or torch.version.hip)
    assert gpus.here() or not torch.cuda.is_available()


@pytest.mark.parametrize(
    ("most", "cores", "limit", "here", "expected"),
    [
        (8, 16, 4, 4, 4),
        (8, 16, 1, 4, 8),
        (8, 2, 4, 4, 1),
        (8, 2, 2, 0, 8),  # without a GPU Snakemake caps it by the cores
        (8, None, 2, 2, 8),  # a cluster
        (8, 16, None, 1, 8),
    ],
)
def test_threads_leave_cores_for_every_card(
    monkeypatch: pytest.MonkeyPatch, most: int, cores: int | None, limit: int | None, here: int, expected: int
) -> None:
    monkeypatch.setattr(gpus, "here", lambda: here)
    limits = {} if limit is None else {"gpu": SimpleNamespace(value=limit)}
    assert gpus.threads(most, cores, limits) == expected


@pytest.mark.parametrize(
    ("most", "cores", "here", "expected"),
    [(8, 2, 0, 1), (8, 1, 0, 1), (8, 6, 0, 3), (8, 32, 0, 4), (1, 4, 0, 1), (8, 2, 1, 8), (8, None, 0, 8)],
)
def test_two_jobs_that_read_a_model_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, most: int, cores: int | None, here: int, expected: int
) -> None:
    monkeypatch.setattr(gpus, "here", lambda: here)
    assert gpus.paired(most, cores) == expected


@pytest.mark.parametrize(
    ("device", "cluster", "here", "expected"),
    [
        *(("cpu", cluster, here, 0) for cluster in (False, True) for here in (False, True)),
        *(("cuda", cluster, here, 1) for cluster in (False, True) for here in (False, True)),
        ("auto", False, False, 0),
        ("auto", False, True, 1),
        ("auto", True, False, 1),
        ("auto", True, True, 1),
    ],
)
def test_wanted(monkeypatch: pytest.MonkeyPatch, device: str, cluster: bool, here: bool, expected: int) -> None:
    monkeypatch.setattr(gpus, "here", lambda: here)
    assert gpus.wanted(device, cluster) == expected


@pytest.mark.parametrize(
    ("asked", "limit", "expected"), [(3, 2, 3), (1, None, 1), ("auto", 4, 4), ("auto", 0, 1), ("auto", None, 1)]
)
def test_shards(asked: int | str, limit: int | None, expected: int) -> None:
    assert gpus.shards(asked, {} if limit is None else {"gpu": SimpleNamespace(value=limit)}) == expected
