"""Names of the tasks and groups that the pinned lm-eval knows, so that a misspelt one is refused before its environment
is made: a name a line, of `lm_eval.tasks.TaskManager().all_tasks`, sorted and packed by xz."""

import difflib
import functools
import lzma
from pathlib import Path

from quant.errors import InputError

FILE = Path(__file__).resolve().parents[3] / "envs/lm_eval_tasks.txt.xz"


@functools.cache
def names() -> frozenset[str]:
    return frozenset(lzma.decompress(FILE.read_bytes()).decode().splitlines())


def check_name(name: str, what: str) -> None:
    """Refuses a task that lm-eval has not."""
    if name not in names():
        near = difflib.get_close_matches(name, sorted(names()), 1)
        raise InputError(
            f"{what}.lm_eval: lm-eval has no task {name!r}"
            + (
                f"; did you mean {near[0]!r}?"
                if near
                else "; `lm-eval ls tasks` lists them, and yaml: PATH takes a file of your own"
            )
        )
