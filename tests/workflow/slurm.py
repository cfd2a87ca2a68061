"""A real SLURM of one node with two stand-in GPUs, run by root in a folder of its own, stopped whatever happens."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no SLURM here; nothing where there can."""
    lacking = [name for name in COMMANDS if shutil.which(name, path=path()) is None]
    if lacking:
        return f"needs {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.getuid() == 0 else "needs root, to start SLURM's daemons"


def path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def configure(folder: Path) -> dict[str, str]:
    """Writes the daemons' files; returns the variables that commands need to find them."""
    host = socket.gethostname()
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    (folder / "slurm.conf").write_text(
        CONF.format(host=host, folder=folder, ports=free_ports(2), cpus=os.cpu_count(), memory=memory)
    )
    (folder / "gres.conf").write_text(
        "".join(f"NodeName={host} Name=gpu File=/dev/{each}\n" for each in ("null", "zero"))
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    # the executor's nested srun drops SLURM_CONF
    wrapper = folder / "bin/srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=path())} "$@"\n')
    wrapper.chmod(0o755)
    return {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{path()}"}


def stop(folder: Path) -> None:
    """Ends the daemons by their pid files, the node first."""
    for name in ("slurmd", "slurmctld", "munged"):
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((folder / f"{name}.pid").read_text()), 15)
    deadline = time.monotonic() + 10
    while any((folder / f"{name}.pid").exists() for name in ("slurmd", "slurmctld")) and time.monotonic() < deadline:
        time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables to run commands with, while the cluster is up."""
    variables = configure(folder)
    environment = os.environ | variables
    munge = [f"--{key}-file={folder}/{name}" for key, name in (("key", "munge.key"), ("pid", "munged.pid"))]
    munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed", f"--socket={folder}/munge.socket"]
    try:
        for command in (["munged", "--force", *munge], ["slurmctld"], ["slurmd"]):
            subprocess.run(command, env=environment, check=True, capture_output=True)
        deadline = time.monotonic() + 30
        while "idle" not in output(["sinfo", "-h", "-o", "%T"], environment):
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "slurmctld.log").read_text()[-2000:])
            time.sleep(0.2)
        yield variables
    finally:
        stop(folder)


def output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def jobs(variables: dict[str, str]) -> list[dict[str, str]]:
    """What the controller remembers of every job."""
    lines = output(["scontrol", "-o", "show", "jobs"], os.environ | variables).splitlines()
    return [dict(part.split("=", 1) for part in line.split(" ") if "=" in part) for line in lines]
