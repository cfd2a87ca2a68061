"""A job's Python in tiny studies: a fork of one that has imported the libraries, most of what a tiny job takes.

`python tests/jobs.py SOCKET LIBRARY…` waits with the environment that its jobs will have, imports at the first, and
forks for each. What Snakemake runs in Python's place is CLIENT: it hands its streams, folder and arguments over, passes
signals on, and ends as the job ends. The project's own code is never imported before the fork."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = [
    *("torch._dynamo", "torch.distributed.tensor", "transformers.models.llama.modeling_llama", "safetensors.torch"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "compressed_tensors"),
    *("pandas", "pyarrow", "scipy.stats", "seaborn", "jinja2", "snakemake.iocontainers"),
]
# jobs with more threads need libraries that were loaded for so many
THREADS = [f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL")]
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
if (sys.argv[1].startswith("-") and sys.argv[1] != "-u") or any(os.environ.get(name) != "1" for name in {threads}):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect("{socket}")
said = json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]).encode()
socket.send_fds(server, [len(said).to_bytes(8, "big")], [0, 1, 2])
server.sendall(said)
with server.makefile("rb") as heard:
    job = int(heard.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(job, number))
    status = int(heard.readline() or 1)
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


class Server:
    """Serves jobs with one environment, by one interpreter, until this process ends."""

    def __init__(
        self, environment: dict[str, str], modules: Sequence[str] = LIBRARIES, interpreter: Path | str = sys.executable
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jobs-")
        address = Path(self._folder.name, "socket")  # of at most 107 characters
        self.python = Path(self._folder.name, "python")
        self.python.write_text(CLIENT.format(python=interpreter, threads=THREADS, socket=address))
        self.python.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(address))
            listening.listen()
            self._process = subprocess.Popen(
                [interpreter, __file__, str(listening.fileno()), *modules],
                env=environment
                | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # CUDA's own check would be the last word in a fork
                stdin=subprocess.PIPE,  # its end is the end of this process
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def next_job(listening: socket.socket, libraries: list[str]) -> str:
    """Returns in a fork for each job, in its folder and with its streams, its script's path. Tells each client of its
    job's number and end; where a client is gone its job is ended."""
    jobs: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor that is readable once the job has ended
    while True:
        clients = [client for _, client in jobs.values()]
        ready = select.select([listening, sys.stdin, *jobs, *clients], [], [])[0]
        if sys.stdin in ready:
            os._exit(0)
        for ended, (job, client) in list(jobs.items()):
            if client in ready:
                os.kill(job, signal.SIGKILL)
            if client in ready or ended in ready:
                tell(client, os.waitpid(job, 0)[1])
                client.close()
                os.close(ended)
                del jobs[ended]
        if listening in ready:
            client, _ = listening.accept()
            while libraries:
                importlib.import_module(libraries.pop())
                gc.freeze()
            streams, asked = request(client)
            job = os.fork()
            if job == 0:
                listening.close()
                client.close()
                return begin(streams, *asked)
            for stream in streams:
                os.close(stream)
            jobs[os.pidfd_open(job)] = job, client
            tell(client, job)


def tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        client.sendall(f"{number}\n".encode())


def request(client: socket.socket) -> tuple[list[int], tuple[str, list[str], dict[str, str]]]:
    """The client's stdin, stdout and stderr; its folder, arguments and environment."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    length, said = int.from_bytes(size, "big"), b""
    while len(said) < length:
        said += client.recv(length - len(said))
    return streams, json.loads(said)


def begin(streams: list[int], folder: str, arguments: list[str], environment: dict[str, str]) -> str:
    """In the fork: what the client was started with; the script's path."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-u":
        sys.stdout.reconfigure(line_buffering=True)
        arguments = arguments[1:]
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    return arguments[0]


def run(script: str) -> int:
    """The script's exit status, as Python's own."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exited:
        if exited.code is None or isinstance(exited.code, int):
            return exited.code or 0
        print(exited.code, file=sys.stderr)
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    status = run(next_job(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]))
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # taking all modules down would first copy what they hold from the server's memory
