"""What every script does around its work: log, threads, device, and a user's mistake in one line."""

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from quant.errors import InputError
from quant.files.artifacts import NO_ACCESS, NO_ROOM, write_json

logger = logging.getLogger("quant")


class _Tee:
    """stderr that also writes the rule's log; a progress bar's rewrites stay out of the log but its last. What a full
    disk does not take is written once there is room: it must not end a job that would else say what it lacks."""

    def __init__(self, log: Path) -> None:
        self._log, self._pending = log.open("wb", buffering=0), b""
        assert sys.__stderr__ is not None
        self._terminal = sys.__stderr__

    def write(self, text: str) -> int:
        self._terminal.write(text)
        if "\r" in text:
            text = text.rsplit("\r", 1)[1]
            if "100%" not in text:
                return len(text)
            text += "\n"
        self._pending += text.encode(errors="backslashreplace")
        try:
            while self._pending:
                self._pending = self._pending[self._log.write(self._pending) :]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()


@contextlib.contextmanager
def job(log: str | Path, threads: int = 1) -> Iterator[None]:
    """Runs a script's body: logs to `log` and the terminal, limits threads, ends on InputError in one line."""
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        sys.stderr = sys.stdout = _Tee(Path(log))
    except OSError as error:
        sys.exit(f"ERROR {log}: cannot be written ({error.strerror}); mend that and run again")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for chatty in ("httpx", "matplotlib", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    begun = time.perf_counter()
    try:
        yield
    except InputError as error:
        print(f"ERROR {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ERROR interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell has it
    except OSError as error:
        if error.errno in NO_ROOM:
            what = f"cannot be written ({error.strerror}); make room and run again"
        elif error.errno in NO_ACCESS:
            what = f"cannot be read or written ({error.strerror}); mend that and run again"
        else:
            raise
        print(f"ERROR {error.filename or 'a temporary file'}: {what}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which a job may never import
            raise
        words = " ".join(str(error).split())
        print(f"ERROR the GPU's memory does not hold this job ({words}); free it, or use device: cpu", file=sys.stderr)
        sys.exit(1)
    note_gpu_peak(Path(log))
    logger.info("done in %.1f s", time.perf_counter() - begun)
    gc.freeze()  # at its end Python looks for garbage several times; of transformers' objects that takes a second


def note_gpu_peak(log: Path) -> None:
    """Writes a GPU's peak memory beside the log, where the report looks for it; none is left of an earlier run."""
    torch, path = sys.modules.get("torch"), log.with_suffix(".gpu.json")
    if torch is None or not torch.cuda.is_initialized():
        path.unlink(missing_ok=True)
        return
    peak = torch.cuda.max_memory_allocated() / 1e6
    logger.info("at most %.0f MB of %s", peak, torch.cuda.get_device_name())
    write_json(path, {"gpu_peak_mb": peak, "gpu": torch.cuda.get_device_name()})
