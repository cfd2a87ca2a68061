"""Moments of two streams against those of two plain models run whole, for several architectures, in ragged batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.calibration.blocks import Arguments
from quant.calibration.streams import Streams, add_cross, reading_order
from quant.errors import InputError
from quant.models.structure.linears import all_linears, skeleton
from tests.unit.calibration.architectures import ARCHITECTURES, LENGTHS, TUPLES, changed, inputs_of, saved


@pytest.mark.parametrize("name", ARCHITECTURES | TUPLES)
def test_moments_are_those_of_both_models_run_whole(name: str, tmp_path: Path) -> None:
    model = saved(*(ARCHITECTURES | TUPLES)[name], tmp_path)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    names = list(all_linears(skeleton(tmp_path)))
    x = inputs_of(model, names, sequences)
    originals = {name: model.get_submodule(name).weight.detach().double().numpy().copy() for name in names}
    weights, ways = changed(model, names), set[bool]()
    embedding = next(n for n, module in model.named_modules() if module is model.get_input_embeddings())
    before = changed(model, [embedding])
    model.load_state_dict(weights | before, strict=False)
    quantised = inputs_of(model, names, sequences)
    streams, seen = Streams(tmp_path, sequences, "cpu", torch.float32, 26), []
    for pair in streams.pairs(before):
        for group in pair.groups:
            moment, cross = pair.moments(group[0], True)
            for linear in group:
                full = f"{pair.name}.{linear}"
                a, b = x[full], quantised[full]
                scale = np.abs(b.T @ b / len(b)).max()
                np.testing.assert_allclose(moment.numpy(), b.T @ b / len(b), rtol=1e-4, atol=1e-4 * scale)
                expected = a.T @ b / len(b)
                fewer = sum(len(originals[f"{pair.name}.{each}"]) for each in group) < len(expected)
                assert fewer == (len(cross[linear]) < len(expected))
                ways.add(fewer)
                if fewer:
                    expected = originals[full] @ expected
                scale = np.abs(expected).max()
                np.testing.assert_allclose(cross[linear].numpy(), expected, rtol=1e-4, atol=1e-4 * scale)
                seen.append(full)
            pair.put({key: weights[key] for key in (f"{pair.name}.{linear}.weight" for linear in group)})
        pair.advance(True)
    assert sorted(seen) == sorted(names)
    assert ways == {True, False}


def test_linears_that_read_one_input_come_together(tiny_checkpoint: Path) -> None:
    (pair, *_) = list(Streams(tiny_checkpoint, [torch.arange(9)], "cpu", torch.float32, 64, last=0).pairs())
    q, k, v, o = (f"self_attn.{name}_proj" for name in "qkvo")
    assert pair.groups == [(q, k, v), (o,), ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)]


def test_both_blocks_hold_one_weight_until_it_is_quantised(tiny_checkpoint: Path) -> None:
    for pair in Streams(tiny_checkpoint, [torch.arange(9)], "cpu", torch.float32, 64, last=0).pairs():
        full, q, k = f"{pair.name}.self_attn.q_proj", *(f"self_attn.{name}_proj.weight" for name in "qk")
        original = pair.original(full).clone()
        pair.put({f"{full}.weight": torch.zeros_like(original)})
        assert torch.equal(pair.original(full), original) and not pair.quantised.get_parameter(q).any()
        assert pair.quantised.get_parameter(k).data_ptr() == pair.original(f"{pair.name}.self_attn.k_proj").data_ptr()


def test_the_original_need_not_run(tiny_checkpoint: Path) -> None:
    sequences = [torch.arange(9), torch.arange(4, 30)]
    found: list[list[Tensor]] = []
    for with_original in (True, False):
        found.append([])
        for pair in Streams(tiny_checkpoint, sequences, "cpu", torch.float32, 64).pairs():
            for group in pair.groups:
                moment, cross = pair.moments(group[0], with_original)
                found[-1].append(moment)
                assert bool(cross) == with_original
            pair.advance(with_original)
    assert all(torch.equal(*both) for both in zip(*found, strict=True)) and len(found[0]) == 8


class Routed(nn.Module):
    """Half of the tokens to an expert, as a mixture of them does; or a linear twice, or never."""

    def __init__(self, rows: int, times: int) -> None:
        super().__init__()
        self.expert, self._rows, self._times = nn.Linear(4, 4), rows, times

    def forward(self, hidden: Tensor) -> Tensor:
        for _ in range(self._times):
            hidden[0, : self._rows] += self.expert(hidden[0, : self._rows])
        return hidden


@pytest.mark.parametrize(
    ("rows", "times", "said"), [(3, 1, "reads some tokens"), (6, 2, "runs 2 times"), (6, 0, "runs 0 times")]
)
def test_a_block_whose_streams_do_not_compare_is_refused(rows: int, times: int, said: str) -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=f"^expert: {said}.*inputs: parallel") as caught:
        reading_order(Routed(rows, times), torch.ones(1, 6, 4), Arguments((), {}, None))
    assert "\n" not in str(caught.value)


def test_inputs_that_overflow_are_refused(tiny_checkpoint: Path) -> None:
    for pair in Streams(tiny_checkpoint, [torch.arange(9)], "cpu", torch.float32, 64).pairs():
        pair.put({f"{pair.name}.self_attn.v_proj.weight": torch.full((24, 48), 1e38)})
        with pytest.raises(InputError, match=r"layers\.0\.self_attn\.o_proj: its statistics are NaN or infinite"):
            pair.moments("self_attn.o_proj", False)
        break


def test_cross_moments_add_up() -> None:
    left, right = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    total = torch.ones(7, 7)
    add_cross(total, left, right)
    torch.testing.assert_close(total, 1 + left.T @ right)
