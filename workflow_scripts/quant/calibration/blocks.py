"""A causal LM run one decoder block at a time, with one block's weights in memory.

The model is built by transformers without weights; its own forward pass, over blocks that only take notes, gives every
block's keyword arguments (masks, rotary embeddings), so no architecture is named here. Sequences are padded on the
right: under causal attention the padding reaches no real token.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quant.calibration.hidden import HiddenStates, hidden_states
from quant.data import tokens
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.linears import all_linears, decoder_blocks, skeleton

logger = logging.getLogger("quant")

Before = Callable[[tokens.Batch], None]
After = Callable[[Tensor], None]


class _Notes(nn.Module):
    """Stands in a block's place: notes its keyword arguments and what the first block was given."""

    def __init__(self, block: nn.Module, first: list[Tensor]) -> None:
        super().__init__()
        self.kwargs: dict[str, Any] = {}
        self._first = first
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)  # the model's loop may read attention_type and the like

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        self.kwargs = kwargs
        if not self._first:
            self._first.append(hidden)
        return self._first[0]  # whole again where the model's loop takes [0] of it, as of a tuple


def fill(module: nn.Module, prefix: str, weights: tensorfile.TensorFile, device: str, dtype: torch.dtype) -> None:
    """Loads a module's parameters and persistent buffers; refuses missing, misshapen or non-finite ones."""
    for name, empty in module.state_dict(keep_vars=True).items():
        full = f"{prefix}.{name}"
        value = weights.get(full, device, dtype)
        if value.shape != empty.shape:
            raise InputError(
                f"{weights.path}: {full} is {tuple(value.shape)} where config.json asks for {tuple(empty.shape)}"
            )
        if not torch.isfinite(value).all():
            raise InputError(
                f"{weights.path}: {full} holds NaN or infinite values; use a model whose weights are finite"
            )
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], buffer.to(device))


def empty(module: nn.Module) -> None:
    """Frees what `fill` loaded."""
    module.to("meta")


class Run:
    """Calibration hidden states on their way through the blocks.

    `each()` yields (index, full name prefix, block, advance); advance(before, after) runs every batch through the block
    and calls before(batch), so that hooks know what they see, and after(block's output), where it is given.
    """

    def __init__(
        self,
        checkpoint: Path,
        sequences: list[Tensor],
        device: str,
        dtype: torch.dtype,
        batch_tokens: int,
        last: int | None = None,
        progress: str = "blocks",
    ) -> None:
        self.model = skeleton(checkpoint)
        self.prefix, self.blocks = decoder_blocks(self.model)
        self.n_linears = len(all_linears(self.model))
        self.depth = len(self.blocks) if last is None else last + 1
        if self.depth > len(self.blocks):
            raise InputError(f"layer {last}: the model has layers 0 to {len(self.blocks) - 1}; choose one of them")
        self._checkpoint, self._device, self._dtype, self._progress = checkpoint, device, dtype, progress
        self._batches = list(tokens.batches(sequences, batch_tokens))

    def _first_hidden(self, weights: tensorfile.TensorFile) -> tuple[HiddenStates, list[list[dict[str, Any]]]]:
        """Each batch's embeddings, and each batch's keyword arguments for every block."""
        body, real = self.model.base_model, list(self.blocks)
        captured: list[Tensor] = []
        notes = [_Notes(block, captured) for block in real]
        for i, note in enumerate(notes):
            self.blocks[i] = note
        base = "" if body is self.model else self.model.base_model_prefix + "."
        filled = []
        for name, module in body.named_children():
            if any(True for _ in module.parameters()) and module is not self.blocks:
                fill(module, base + name, weights, self._device, self._dtype)
                filled.append(module)
            elif module is not self.blocks:
                module.to(self._device)
        width = self.model.config.get_text_config().hidden_size * self._dtype.itemsize
        hidden = hidden_states(self._device, width * sum(batch.ids.numel() for batch in self._batches))
        kwargs, by_shape = [], {}
        for i, batch in enumerate(self._batches):
            body(input_ids=batch.ids.to(self._device), use_cache=False)
            hidden.put(i, captured.pop().to(self._dtype))
            shape = tuple(batch.ids.shape)
            kwargs.append(by_shape.setdefault(shape, [note.kwargs for note in notes]))
        for module in filled:
            empty(module)
        for i, block in enumerate(real):
            self.blocks[i] = block
        return hidden, kwargs

    @torch.inference_mode()
    def each(self) -> Iterator[tuple[int, str, nn.Module, Callable[..., None]]]:
        with tensorfile.opened(self._checkpoint / "model.safetensors") as weights:
            hidden, kwargs = self._first_hidden(weights)
            for index in tqdm(range(self.depth), desc=self._progress, unit="block"):
                block, name = self.blocks[index], f"{self.prefix}.{index}"
                fill(block, name, weights, self._device, self._dtype)
                if index + 1 < self.depth:
                    weights.prefetch((f"{self.prefix}.{index + 1}.{part}" for part in block.state_dict()), self._device)

                def advance(
                    before: Before,
                    after: After = lambda out: None,
                    block: nn.Module = block,
                    name: str = name,
                    index: int = index,
                ) -> None:
                    finite = torch.ones((), dtype=torch.bool, device=self._device)
                    for i, batch in enumerate(self._batches):
                        before(batch)
                        out = block(hidden.get(i), **kwargs[i][index])
                        out = out[0] if isinstance(out, tuple) else out
                        after(out)
                        hidden.put(i, out)
                        finite &= torch.isfinite(out).all()
                    if not finite:
                        raise InputError(
                            f"{name}: activations are NaN or infinite in {self._dtype}; set compute.dtype to float32"
                        )

                yield index, name, block, advance
                empty(block)
