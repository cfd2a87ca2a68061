"""Which GPUs there are, and that each job has one of its own, whatever became of the job before."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.runtime import cards
from tests import tiny
from tests.unit.runtime.machines import machine


@pytest.mark.parametrize(
    ("devices", "environment", "expected"),
    [
        ([], {}, []),
        ([], {"CUDA_VISIBLE_DEVICES": "0"}, []),
        (["nvidiactl", "nvidia-uvm"], {}, []),  # a driver without a card
        (["nvidia0"], {}, ["0"]),
        (["nvidia2", "nvidia5"], {}, ["0", "1"]),  # CUDA counts those that a container has
        (["nvidia12"], {"CUDA_VISIBLE_DEVICES": "0,1"}, ["0", "1"]),
        (["nvidia0", "nvidia1", "nvidia2"], {"CUDA_VISIBLE_DEVICES": "2, 1,-1,0"}, ["2", "1"]),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}, ["GPU-1a2b"]),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, []),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        (["dxg"], {}, ["0"]),
        (["kfd"], {}, ["0"]),
        (["kfd"], {"HIP_VISIBLE_DEVICES": "-1"}, []),
        (["kfd"], {"ROCR_VISIBLE_DEVICES": "1"}, ["1"]),
    ],
)
def test_visible(tmp_path: Path, devices: list[str], environment: dict[str, str], expected: list[str]) -> None:
    variable, found = cards.visible(environment, machine(tmp_path, *devices))
    assert found == expected and (not expected or variable in environment or not environment)


def test_cards_of_amd(tmp_path: Path) -> None:
    nodes = machine(tmp_path, "kfd") / "sys/class/kfd/kfd/topology/nodes"
    for i, gpu in enumerate(("0", "51", "27")):  # a CPU and two cards
        (nodes / str(i)).mkdir(parents=True)
        (nodes / str(i) / "gpu_id").write_text(f"{gpu}\n")
    assert cards.visible({}, tmp_path) == ("HIP_VISIBLE_DEVICES", ["0", "1"])


JOB = """
import os, pathlib, sys, time
from quant.runtime import cards
cards.take(root=pathlib.Path(sys.argv[1]))
cards.take(root=pathlib.Path(sys.argv[1]))
child = os.fork() if sys.argv[2:] else 1
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""


class Jobs:
    """Processes that take a card and stay."""

    def __init__(self, root: Path) -> None:
        self.root, self.running = root, list[subprocess.Popen[str]]()

    def start(self, *words: str, **environment: str) -> tuple[str, subprocess.Popen[str]]:
        variables = {name: value for name, value in os.environ.items() if name not in cards.HIDING}
        variables |= {"TMPDIR": str(self.root), "PYTHONPATH": str(tiny.ROOT / "workflow_scripts")} | environment
        command = [sys.executable, "-c", JOB, str(self.root), *words]
        self.running.append(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        assert self.running[-1].stdout is not None
        return self.running[-1].stdout.readline().strip(), self.running[-1]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    started = Jobs(machine(tmp_path, "nvidia0", "nvidia1", "nvidia2"))
    yield started
    for one in started.running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def test_each_job_has_a_card_that_a_killed_one_leaves(jobs: Jobs) -> None:
    held = dict(jobs.start() for _ in range(3))
    assert sorted(held) == ["0", "1", "2"]
    held["1"].kill()  # SIGKILL
    held["1"].wait()
    assert jobs.start()[0] == "1"
    assert sorted(jobs.start()[0] for _ in range(3)) == ["0", "1", "2"]  # two on each once none is free
    assert jobs.start(CUDA_VISIBLE_DEVICES="2,1")[0] == "2"
    assert jobs.start(CUDA_VISIBLE_DEVICES="1,2")[0] == "1"
    for one in jobs.running:
        one.kill()
        one.wait()
    assert sorted(jobs.start()[0] for _ in range(3)) == ["0", "1", "2"]


def test_a_card_that_the_environment_names_is_the_jobs(jobs: Jobs) -> None:
    for _ in range(2):  # SLURM gives a job one card
        assert jobs.start(CUDA_VISIBLE_DEVICES="1")[0] == "1"
    assert jobs.start(CUDA_VISIBLE_DEVICES="")[0] == ""
    assert jobs.start()[0] == "0"
    assert jobs.start(CUDA_VISIBLE_DEVICES="MIG-GPU-1a/3/0,MIG-GPU-1a/4/0")[0] == "MIG-GPU-1a/3/0"
    assert jobs.start(CUDA_VISIBLE_DEVICES="MIG-GPU-1a/3/0,MIG-GPU-1a/4/0")[0] == "MIG-GPU-1a/4/0"


def test_a_job_whose_child_computes_on_keeps_its_card(jobs: Jobs) -> None:
    card, job = jobs.start("with a child", CUDA_VISIBLE_DEVICES="0,1")
    job.kill()
    job.wait()
    assert jobs.start(CUDA_VISIBLE_DEVICES="0,1")[0] != card


def test_nothing_is_taken_where_torch_computes_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    environment: dict[str, str] = {}
    cards.take(environment, machine(tmp_path, "nvidia0"))
    assert not environment and not cards.held()
