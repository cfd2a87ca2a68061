"""A forward pass by kernels against the model's own."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, GraniteConfig, LlamaConfig, PretrainedConfig

from quant.runtime.forward import Forward, forward_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "head_dim": 16,
}  # fmt: skip


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).cuda()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n_in", [1, 96, 2304, 5000])
def test_norm_is_that_of_float64(dtype: torch.dtype, n_in: int) -> None:
    fused, x, weight = forward_kernels(), drawn(3, 5, n_in).to(dtype), drawn(n_in).to(dtype)
    assert fused is not None
    found = fused.rms_norm(x, weight, 1e-5)
    wide = x.double()
    expected = weight.double() * wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=2 * eps + 1e-6, atol=1e-6)
    assert torch.equal(found, fused.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 2])
def test_rotation_is_the_models_to_the_bit(dtype: torch.dtype, batch: int) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    fused, angle = forward_kernels(), drawn(batch, 33, 8)
    assert fused is not None
    cos, sin = (torch.cat([each, each], -1).to(dtype) for each in (angle.cos(), angle.sin()))
    q, k = drawn(2, 33, 6, 16).to(dtype).transpose(1, 2), drawn(2, 2, 33, 16).to(dtype)
    for own, expected in zip((q, k), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        assert fused.rotates(own, cos, sin)
        found = fused.rotate(own, cos, sin)
        assert torch.equal(found, expected) and found.stride() == expected.stride()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SMALL), GraniteConfig(**SMALL), GemmaConfig(**SMALL)], ids=lambda c: c.model_type
)
def test_a_model_runs_as_it_does(config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Gemma's norms, which add 1 to their weight, stay its own."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to("cuda", dtype).eval()
    for module in model.modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 1:
            nn.init.normal_(module.weight, 1.0, 0.3)
    ids, before = torch.arange(100, device="cuda").view(2, 50), copy.copy(vars(sys.modules[type(model).__module__]))
    forward = Forward(model)
    assert len(forward._norms) == (0 if config.model_type == "gemma" else 5) and len(forward._rotations) == 1
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        for _ in range(2):  # the first tries the rotation
            with forward():
                found = model(ids, use_cache=False).logits
            scale = expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps * scale)
        with forward():
            assert torch.equal(model(ids, use_cache=False).logits, found)
        assert torch.equal(model(ids, use_cache=False).logits, expected)  # as it was
    assert vars(sys.modules[type(model).__module__]) == before
