"""Whether a checkpoint's activations stay within a type of numbers: a few tokens through one block after another."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.calibration.blocks import Opened, Run
from quant.errors import InputError
from quant.evaluation.by_block import ByBlock
from quant.files.artifacts import read_json
from quant.runtime.compute import Compute

TOKENS = 32


@contextlib.contextmanager
def watching(module: nn.Module, prefix: str, left: list[str]) -> Iterator[None]:
    """Within it the names of those of a module's parts whose results are not finite go into `left`, in their order."""

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not torch.isfinite(out).all():
                left.append(name)

        return hook

    parts = [(name, part) for name, part in module.named_modules() if next(part.children(), None) is None]
    hooks = [part.register_forward_hook(note(f"{prefix}.{name}")) for name, part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Trial(ByBlock):
    """A checkpoint that has run; left: parts of its blocks whose results were not finite."""

    def __init__(self, checkpoint: Path, sequences: list[Tensor], compute: Compute, left: list[str]) -> None:
        self._left = left
        super().__init__(checkpoint, sequences, compute)

    def _through(
        self, checkpoint: Path, sequences: list[Tensor], compute: Compute, opened: Callable[[Path], Opened]
    ) -> Run:
        run = Run(checkpoint, sequences, *compute, progress="try", opened=opened)
        for _, name, block, advance in run.each():
            with watching(block, name, self._left):
                advance(lambda batch: None)
        return run


def try_in(checkpoint: Path, dtype: torch.dtype, what: str) -> None:
    """Refuses a checkpoint of which an export is to be made (what) in a type that its activations leave, by the first
    part that they leave it in."""
    config = read_json(checkpoint / "config.json")
    ids = torch.arange(TOKENS) % (config.get("text_config") or config)["vocab_size"]
    left: list[str] = []
    try:
        with torch.inference_mode():
            made = Trial(checkpoint, [ids], Compute("cpu", dtype, TOKENS), left)
            if torch.isfinite(made.logits(made.of(made.batches[0])[0])).all():
                return
        first = "its head"
    except InputError as error:
        if not left:
            raise InputError(f"{checkpoint}: as {what} it cannot be run: {error}") from None
        first = left[0]
    kind = str(dtype).removeprefix("torch.")
    raise InputError(
        f"{checkpoint}: activations leave {kind}, which {what} is written in, first in {first}; "
        f"{'export dense' if what == 'awq' else 'give the model in bfloat16 or float32'}"
    )
