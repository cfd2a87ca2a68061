"""GPUs are asked for where a job would compute on one."""

from pathlib import Path

import pytest

from quant.workflow import gpus


def machine(root: Path, *devices: str) -> Path:
    (root / "dev").mkdir()
    for name in ("null", "nvme0", *devices):
        (root / "dev" / name).touch()
    return root


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        ([], {}, False),
        (["nvidiactl", "nvidia-uvm"], {}, False),  # a driver without a card
        (["nvidia0"], {}, True),
        (["nvidia12"], {"CUDA_VISIBLE_DEVICES": "0,1"}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, False),
        (["dxg"], {}, True),
        (["kfd"], {}, True),
        (["kfd"], {"HIP_VISIBLE_DEVICES": "-1"}, False),
    ],
)
def test_visible(tmp_path: Path, devices: list[str], environment: dict[str, str], expected: bool) -> None:
    assert gpus.visible(environment, machine(tmp_path, *devices)) is expected


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
