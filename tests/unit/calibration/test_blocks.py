"""Hidden states run block by block equal the plain model's, for several architectures, in ragged batches."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.calibration.blocks import Run
from quant.data.tokens import Batch
from quant.errors import InputError
from quant.models.structure.linears import all_linears, skeleton
from tests.unit.calibration.architectures import ARCHITECTURES, LENGTHS, TUPLES, saved


def keep(into: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    return lambda module, args, out: into.append(out[0] if isinstance(out, tuple) else out)


def last_hidden(run: Run) -> list[Tensor]:
    """What leaves the last block that `run` runs, by sequence, padding cut off."""
    found: list[Tensor] = []
    for index, _, block, advance in run.each():
        outputs: list[Tensor] = []
        seen: list[Batch] = []
        hook = block.register_forward_hook(keep(outputs))
        advance(seen.append)
        hook.remove()
        if index == run.depth - 1:
            for batch, out in zip(seen, outputs, strict=True):
                found += [out[row, :length].clone() for row, length in enumerate(batch.lengths.tolist())]
    return found


def check_architecture(config: str, changes: dict[str, Any], folder: Path) -> None:
    plain = saved(config, changes, folder)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    run = Run(folder, sequences, "cpu", torch.float32, 26)
    assert len(run.batches) == 3 and any(batch.mask is not None for batch in run.batches)
    expected: list[Tensor] = []
    plain.get_submodule(run.prefix)[-1].register_forward_hook(keep(expected))
    with torch.inference_mode():
        for sequence in sequences:
            plain(sequence[None], use_cache=False)
    found = last_hidden(run)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hidden_states_equal_the_plain_models(name: str, tmp_path: Path) -> None:
    check_architecture(*ARCHITECTURES[name], tmp_path)


@pytest.mark.parametrize("name", TUPLES)
def test_blocks_that_return_tuples(name: str, tmp_path: Path) -> None:
    """Their model takes [0] of what a block returns."""
    check_architecture(*TUPLES[name], tmp_path)


def test_linears_are_those_of_the_blocks(tiny_checkpoint: Path) -> None:
    found = all_linears(skeleton(tiny_checkpoint))
    assert len(found) == 14 and set(found.values()) == {0, 1}
    assert found["model.layers.1.mlp.down_proj"] == 1
    assert "lm_head" not in found


def test_last_stops_early_and_is_bounded(tiny_checkpoint: Path) -> None:
    sequences = [torch.arange(9)]
    run = Run(tiny_checkpoint, sequences, "cpu", torch.float32, 64, last=0)
    assert [name for _, name, _, _ in run.each()] == ["model.layers.0"]
    with pytest.raises(InputError, match=r"layer 2: .*0 to 1") as caught:
        Run(tiny_checkpoint, sequences, "cpu", torch.float32, 64, last=2)
    assert "\n" not in str(caught.value)


def test_model_without_linears_is_refused() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    with pytest.raises(InputError, match=r"no nn\.Linear") as caught:
        all_linears(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_wrong_checkpoint_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, fault: str) -> None:
    broken, name = shutil.copytree(tiny_checkpoint, tmp_path / "broken"), "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(broken / "model.safetensors")
    value = tensors.pop(name)
    if fault == "misshapen":
        tensors[name] = value[:, :-1].contiguous()
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=name) as caught:
        last_hidden(Run(broken, [torch.arange(9)], "cpu", torch.float32, 64))
    assert "\n" not in str(caught.value)
