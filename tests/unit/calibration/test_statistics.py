"""Streamed statistics against those of whole tensors, captured from the plain model in float64."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quant.calibration.channels import channels_of
from quant.calibration.expert_moments import Keeping
from quant.calibration.material import Material
from quant.calibration.second_moments import from_triangle
from quant.calibration.statistics import activation_of, collect
from quant.calibration.sums import InputSums, OutputSums
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.names import kind_of
from quant.runtime.compute import Compute
from tests.conftest import Captured
from tests.unit.calibration.architectures import FIRST_READER
from tests.unit.reference import input_statistics, output_statistics, second_moment

PATTERNS = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "out_proj", "attention"],
    "mlp": ["mlp", "fc", "gate", "up_proj", "down_proj", "ffn"],
}


def collected(
    checkpoint: Path, sequences: list[torch.Tensor], folder: Path, batch_tokens: int = 26
) -> tuple[Path, Path]:
    channels, moments = folder / "channels.safetensors", folder / "moments.safetensors"
    tokens = Tokens(sequences, fingerprint(sequences), {})
    material = Material(checkpoint, tokens, {"model_fingerprint": "m"})
    collect(material, channels, moments, Compute("cpu", torch.float32, batch_tokens))
    return channels, moments


def test_moments_in_bfloat16_are_the_same_rounded_and_half_as_large(
    tiny_checkpoint: Path, captured: Captured, tmp_path: Path
) -> None:
    whole, half = collected(tiny_checkpoint, captured.sequences, tmp_path, 26)[1], tmp_path / "half"
    tokens = Tokens(captured.sequences, fingerprint(captured.sequences), {})
    material = Material(tiny_checkpoint, tokens, {"model_fingerprint": "m"})
    compute, keeping = Compute("cpu", torch.float32, 26), Keeping("bfloat16")
    collect(material, tmp_path / "c", half, compute, keeping=keeping)
    with tensorfile.opened(whole) as plain, tensorfile.opened(half) as rounded:
        assert plain.names == rounded.names
        for name in plain.names:
            assert torch.equal(rounded.get(name), plain.get(name).bfloat16())
            assert rounded.get(name, "cpu", torch.float32).dtype == torch.float32
        spared = sum(2 * plain.get(name).numel() for name in plain.names)
    assert abs(whole.stat().st_size - half.stat().st_size - spared) < 0.05 * spared  # the header says other offsets


@pytest.mark.parametrize("batch_tokens", [1, 13, 26, 10_000])
def test_streamed_equals_whole(tiny_checkpoint: Path, captured: Captured, tmp_path: Path, batch_tokens: int) -> None:
    """Ragged batches: were padding counted, or seen by a real token, every mean would be off."""
    channels, moments = collected(tiny_checkpoint, captured.sequences, tmp_path, batch_tokens)
    with tensorfile.opened(channels) as small, tensorfile.opened(moments) as large:
        reads = small.info("reads")
        expected_reads = {
            f"model.layers.{layer}.{name}": f"model.layers.{layer}.{source}"
            for layer in (0, 1)
            for name, source in FIRST_READER.items()
        }
        assert reads == expected_reads == large.info("reads")
        assert large.names == set(reads.values())
        for name, source in reads.items():
            found = channels_of(small, name, reads, kind_of(name, PATTERNS))
            assert found.is_mlp == ("mlp" in name)
            expected = input_statistics(captured.x[name]) | output_statistics(captured.z[name])
            for key, value in expected.items():
                np.testing.assert_allclose(
                    getattr(found, key).numpy(), value, rtol=2e-5, atol=2e-6, err_msg=f"{name} {key}"
                )
            moment = from_triangle(large.get(source)).numpy()
            np.testing.assert_allclose(moment, second_moment(captured.x[name]), rtol=2e-5, atol=1e-5, err_msg=name)
            assert np.array_equal(moment, moment.T)
        made = small.info("provenance")
        assert made["model_fingerprint"] == "m" and made["token_fingerprint"] == fingerprint(captured.sequences)
        assert made["tokens"] == sum(map(len, captured.sequences))


def test_two_runs_are_bit_identical(tiny_checkpoint: Path, captured: Captured, tmp_path: Path) -> None:
    first = collected(tiny_checkpoint, captured.sequences, tmp_path / "a")
    second = collected(tiny_checkpoint, captured.sequences, tmp_path / "b")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_are_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, bad: float) -> None:
    broken, name = shutil.copytree(tiny_checkpoint, tmp_path / "broken"), "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(broken / "model.safetensors")
    tensors[name][3, 5] = bad
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=name) as caught:
        collected(broken, [torch.arange(9)], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_overflowing_activations_are_refused_by_block(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    for part in ("up_proj", "down_proj"):
        tensors[f"model.layers.0.mlp.{part}.weight"] *= 1e30
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.0.*NaN or infinite") as caught:
        collected(broken, [torch.arange(9)], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("n_in", [191, 192, 193, 576, 1537])
def test_input_sums_over_wide_inputs(n_in: int) -> None:
    """The moment is summed by blocks from 193 columns on."""
    x = torch.randn(12, n_in, generator=torch.Generator().manual_seed(n_in)) + 0.5
    sums = InputSums(n_in, torch.device("cpu"))
    for part in x.split(5):
        sums.add(part)
    torch.testing.assert_close(sums.moment(), (x.double().T @ x.double() / 12).float(), rtol=1e-5, atol=1e-5)
    for key, value in input_statistics(x.double().numpy()).items():
        np.testing.assert_allclose(sums.means()[key].numpy(), value, rtol=1e-5, atol=1e-6)


def test_std_keeps_its_digits_far_from_zero() -> None:
    z = (1000 + 0.01 * torch.randn(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).float()
    sums = OutputSums(4, torch.device("cpu"), torch.nn.functional.silu)
    for part in z.split(100):
        sums.add(part)
    np.testing.assert_allclose(sums.means()["z_std"].numpy(), z.double().std(0, correction=0).numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        ("LlamaConfig", {}, "silu"),
        ("LlamaConfig", {"hidden_act": "gelu"}, "gelu"),
        ("Gemma2Config", {}, "gelu_pytorch_tanh"),
        ("GPTNeoXConfig", {"hidden_act": "gelu"}, "gelu"),
        ("OPTConfig", {"activation_function": "relu"}, "relu"),
    ],
)
def test_activation_is_the_models_own(config: str, changes: dict[str, str], expected: str) -> None:
    import transformers
    from transformers.activations import ACT2FN

    class Model(torch.nn.Module):
        config = None

    Model.config = getattr(transformers, config)(**changes)
    z = torch.linspace(-3, 3, 50)
    assert torch.equal(activation_of(Model())(z), ACT2FN[expected](z))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj", "attention"),
        ("model.layers.0.self_attn.qkv_proj", "attention"),
        ("gpt_neox.layers.3.attention.dense", "attention"),
        ("gpt_neox.layers.3.mlp.dense_h_to_4h", "mlp"),
        ("model.decoder.layers.0.self_attn.out_proj", "attention"),
        ("model.decoder.layers.0.fc1", "mlp"),
        ("model.layers.0.mlp.gate_up_proj", "mlp"),
        ("model.layers.0.something_else", "mlp"),
    ],
)
def test_kind_by_name(name: str, kind: str) -> None:
    assert kind_of(name, PATTERNS) == kind
