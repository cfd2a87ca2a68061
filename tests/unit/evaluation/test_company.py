"""A sequence's NLL and statistics are the same alone and in any company, also where rotary positions go by length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quant.calibration.material import Material
from quant.calibration.statistics import collect
from quant.data.tokens import Tokens, batches, fingerprint
from quant.evaluation.perplexity import evaluate, load_model
from quant.runtime.compute import Compute

SEQUENCES = [
    torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length))
    for length in (8, 40, 33, 9, 40, 20)
]
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "factor": 2.0, "rope_theta": 1e4,
        "original_max_position_embeddings": 16}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "longrope": LONG,
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
}


def model_of(folder: Path, rope: dict[str, Any]) -> Path:
    """A tiny Llama of 16 positions where the rope is dynamic, since it stretches them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    positions = 16 if rope["rope_type"] == "dynamic" else 64
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=256, **shape, max_position_embeddings=positions, rope_parameters=rope, initializer_range=0.3
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tokens_of(sequences: list[torch.Tensor]) -> Tokens:
    return Tokens(sequences, fingerprint(sequences), {})


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_nll_and_statistics_do_not_depend_on_company(tmp_path: Path, rope: dict[str, Any]) -> None:
    folder = model_of(tmp_path / "model", rope)

    def nll(sequences: list[torch.Tensor], batch_tokens: int) -> list[float]:
        model = load_model(folder, "cpu", torch.float32)
        rows, _ = evaluate(model, tokens_of(sequences), "cpu", batch_tokens)
        return [row["nll"] for row in rows]

    alone = [nll([sequence], 1)[0] for sequence in SEQUENCES]
    for batch_tokens in (1, 90, 4096):
        assert nll(SEQUENCES, batch_tokens) == pytest.approx(alone, rel=1e-5)
        assert nll(SEQUENCES[::-1], batch_tokens) == pytest.approx(alone[::-1], rel=1e-5)

    def moments(batch_tokens: int) -> dict[str, torch.Tensor]:
        paths = [str(tmp_path / f"{name}{batch_tokens}.safetensors") for name in ("channels", "moments")]
        collect(Material(folder, tokens_of(SEQUENCES), {}), *paths, Compute("cpu", torch.float32, batch_tokens))
        return load_file(paths[1])

    apart, together = moments(1), moments(4096)
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_batches_of_one_length() -> None:
    for batch_tokens in (1, 90, 4096):
        found = list(batches([*SEQUENCES, SEQUENCES[-1]], batch_tokens, alike=True))
        assert all(batch.mask is None for batch in found)
        assert torch.equal(torch.cat([batch.ids.flatten() for batch in found]), torch.cat([*SEQUENCES, SEQUENCES[-1]]))
    assert len(list(batches([SEQUENCES[1], SEQUENCES[4]], 4096, alike=True))) == 1
