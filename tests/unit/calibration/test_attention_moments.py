"""What an error of q and k does to attention: by float64 loops on the same signs, and what signs stand for."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quant.calibration import attention_moments
from quant.calibration.attention_moments import collect_attention_rows, drawn_signs, softmax_root
from quant.calibration.material import Material
from quant.calibration.second_moments import from_triangle
from quant.data.tokens import Tokens, fingerprint
from quant.errors import InputError
from quant.files import tensorfile
from quant.models.structure.experts import unroll
from quant.runtime.compute import Compute
from tests.unit.calibration.architectures import ARCHITECTURES, COMMON, TUPLES, inputs_of, saved

SEED, LENGTHS = 3, (9, 5, 12)
HEADS, KEYS, SIZE = 4, 2, 8  # of COMMON


def collected(path: Path, out: Path) -> dict[str, np.ndarray]:
    """Of random sequences; R by linear."""
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    material = Material(path, Tokens(sequences, fingerprint(sequences), {}), {"model_fingerprint": "m"})
    collect_attention_rows(material, str(out), SEED, Compute("cpu", torch.float32, 18))
    with tensorfile.opened(out) as file:
        assert file.info("provenance")["model_fingerprint"] == "m"
        return {name.removesuffix(".rows"): from_triangle(file.get(name)).double().numpy() for name in file.names}


def test_signs_stand_for_labels() -> None:
    """Over all signs the mean of ξ ξᵀ is diag p - p pᵀ, the covariance of a label's gradient."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    xi = softmax_root(p, signs)
    torch.testing.assert_close(xi.T @ xi / len(xi), torch.diag(p) - torch.outer(p, p))
    torch.testing.assert_close(xi.sum(-1), torch.zeros(32, dtype=torch.float64))


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """A head's vector [size] by rotary embeddings of base 10,000."""
    half = SIZE // 2
    angles = position * 10000.0 ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def test_collected_equals_the_slow_way(tmp_path: Path) -> None:
    """Llama with two heads of q for each of k; every turn, softmax and gradient written out."""
    model = saved(*ARCHITECTURES["llama"], tmp_path / "model").double()
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, 256, (length,), generator=generator) for length in LENGTHS]
    found = collected(tmp_path / "model", tmp_path / "rows.safetensors")
    names = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(3) for x in "qk"]
    assert set(found) == set(names)
    inputs = inputs_of(model, names, sequences)
    drawn = torch.Generator().manual_seed(SEED)
    of_keys = [drawn_signs((n, n), drawn).numpy() for n in LENGTHS]
    for i in range(3):
        q_name, k_name = (f"model.layers.{i}.self_attn.{x}_proj" for x in "qk")
        expected = {name: np.zeros_like(found[name]) for name in (q_name, k_name)}
        start = 0
        for n, keys in zip(LENGTHS, of_keys, strict=True):
            of_queries = drawn_signs((1, HEADS, n, 1), drawn).numpy()[0, :, :, 0]
            q, k = (
                inputs[name][start : start + n] @ model.get_parameter(f"{name}.weight").detach().numpy().T
                for name in (q_name, k_name)
            )
            start += n
            gradients = {q_name: np.zeros_like(q), k_name: np.zeros_like(k)}
            for h in range(HEADS):
                own, of = slice(h * SIZE, (h + 1) * SIZE), slice(h // 2 * SIZE, (h // 2 + 1) * SIZE)
                for t in range(n):
                    scores = np.array([turned(q[t, own], t) @ turned(k[j, of], j) for j in range(t + 1)]) / SIZE**0.5
                    p = np.exp(scores - scores.max())
                    p /= p.sum()
                    signs = keys[t, : t + 1] * of_queries[h, t]
                    xi = np.sqrt(p) * signs - p * (np.sqrt(p) @ signs)
                    for j in range(t + 1):
                        gradients[q_name][t, own] += xi[j] * turned(k[j, of], j - t) / SIZE**0.5
                        gradients[k_name][j, of] += xi[j] * turned(q[t, own], t - j) / SIZE**0.5
            for name, g in gradients.items():
                expected[name] += g.T @ g / sum(LENGTHS)
        for name, r in expected.items():
            np.testing.assert_allclose(found[name], r, rtol=1e-3, atol=1e-4 * r.diagonal().max())


@pytest.mark.parametrize(
    ("name", "linears", "values"),
    [
        ("gemma2", {"q_proj", "k_proj"}, 0),
        ("qwen3", {"q_proj", "k_proj"}, 0),
        ("opt", {"q_proj", "k_proj"}, 0),
        ("phi3", {"qkv_proj"}, 16),
        ("falcon", {"query_key_value"}, 8),
        ("gptj", {"q_proj", "k_proj"}, 0),
    ],
)
def test_what_scores_depend_on(name: str, linears: set[str], values: int, tmp_path: Path) -> None:
    """Norms of heads, capped scores, biases, fused projections, whose values cost nothing."""
    saved(*(ARCHITECTURES | TUPLES)[name], tmp_path / "model")
    found = collected(tmp_path / "model", tmp_path / "rows.safetensors")
    assert {linear.rpartition(".")[2] for linear in found} == linears
    for r in found.values():
        assert (r.diagonal() > 0).tolist() == [True] * (len(r) - values) + [False] * values


def test_sinks_stand_behind_the_keys(tmp_path: Path) -> None:
    """gpt-oss has a number a head that its softmax takes beside the scores."""
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4}
    model = unroll(saved("GptOssConfig", COMMON | more, tmp_path / "model"))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model/model.safetensors", {"format": "pt"})
    found = collected(tmp_path / "model", tmp_path / "rows.safetensors")
    assert {linear.rpartition(".")[2] for linear in found} == {"q_proj", "k_proj"} and len(found) == 6


def test_as_many_sequences_as_it_looks_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("LlamaConfig", COMMON | {"num_hidden_layers": 1}, tmp_path / "model")
    monkeypatch.setattr(attention_moments, "TOKENS", 15)
    few = collected(tmp_path / "model", tmp_path / "few.safetensors")
    monkeypatch.setattr(attention_moments, "TOKENS", 26)
    assert set(few) == set(every := collected(tmp_path / "model", tmp_path / "all.safetensors"))
    assert all((few[name] != every[name]).any() for name in few)


def test_without_attention_it_says_so(tmp_path: Path) -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="no block has attention with a softmax over keys; use row_moment: end_loss"):
        collected(tmp_path / "model", tmp_path / "rows.safetensors")
    assert not (tmp_path / "rows.safetensors").exists()
