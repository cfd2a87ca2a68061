"""Random models and tokens for bench.py."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quant.data import tokens
from quant.files import tensorfile
from quant.files.artifacts import read_json, write_json, write_plain_json
from quant.workflow.estimates.shape import Shape


class Case(NamedTuple):
    """A model's config.json, and what it is used on: sequences × tokens, and the recipes' group size."""

    config: dict[str, Any]
    group_size: int
    calibration: tuple[int, int]
    evaluation: tuple[int, int]

    @property
    def shape(self) -> Shape:
        found = Shape.of(self.config)
        assert found is not None
        return found

    @property
    def depth(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def dtype(self) -> str:
        return str(self.config["dtype"])

    def having(self, **changes: Any) -> "Case":
        """The same with other values in its configuration."""
        return self._replace(config=self.config | changes)


def _config(
    kind: str, hidden: int, intermediate: int, heads: int, depth: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": [more.pop("architecture")], "model_type": kind, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": heads,
        "num_hidden_layers": depth, "vocab_size": vocabulary, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": True, "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


def granite(hidden: int, intermediate: int, heads: int, depth: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    """MiniCPM's equations."""
    own = {
        "embedding_multiplier": 12.0, "residual_multiplier": 1.4 / depth**0.5, "logits_scaling": hidden / 256,
        "attention_multiplier": (hidden // heads) ** -0.5,
    }  # fmt: skip
    sizes = hidden, intermediate, heads, depth, vocabulary
    return _config("granite", *sizes, architecture="GraniteForCausalLM", **own, **more)


def llama(*sizes: int, **more: Any) -> dict[str, Any]:
    return _config("llama", *sizes, architecture="LlamaForCausalLM", tie_word_embeddings=False, **more)


QWEN3_MOE = {
    "architecture": "Qwen3MoeForCausalLM", "num_key_value_heads": 4, "head_dim": 128, "tie_word_embeddings": False,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True,
}  # fmt: skip
CASES = {
    "minicpm-2b": Case(granite(2304, 5760, 36, 40, 122753), 128, (128, 512), (16, 2048)),
    "llama-3-8b": Case(llama(4096, 14336, 32, 32, 128256, num_key_value_heads=8), 128, (128, 512), (16, 2048)),
    "llama-3-70b": Case(llama(8192, 28672, 64, 80, 128256, num_key_value_heads=8), 128, (128, 512), (16, 2048)),
    "qwen2.5-1.5b": Case(
        _config("qwen2", 1536, 8960, 12, 28, 151936, architecture="Qwen2ForCausalLM", num_key_value_heads=2),
        128, (128, 512), (16, 2048),
    ),
    "qwen3-30b-a3b": Case(
        _config("qwen3_moe", 2048, 6144, 32, 48, 151936, **QWEN3_MOE), 128, (128, 512), (16, 2048)
    ),
    "small": Case(granite(192, 512, 6, 4, 2048, dtype="float32"), 64, (16, 128), (4, 256)),
    "small-moe": Case(
        _config("qwen3_moe", 64, 128, 4, 2, 512, **QWEN3_MOE | {
            "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 64, "dtype": "float32"}),
        32, (16, 128), (4, 256),
    ),
}  # fmt: skip


def make_model(folder: Path, case: Case, where: str, seed: int = 0) -> Path:
    """A random model as convert writes one, with some loud channels."""
    from quant.models.structure.linears import all_linears, skeleton

    dtype, generator = getattr(torch, case.dtype), torch.Generator(where).manual_seed(seed)
    write_plain_json(folder / "checkpoint/config.json", case.config)
    model = skeleton(folder / "checkpoint")
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    layout = {name: (dtype, size) for name, size in shapes.items()}
    with tensorfile.writing(folder / "checkpoint/model.safetensors", layout, {"format": "pt"}) as out:
        for name, size in shapes.items():
            drawn = torch.randn(size, generator=generator, device=where)
            drawn = (0.5 * drawn).exp() if len(size) == 1 else drawn * (0.1 if "embed" in name else size[-1] ** -0.5)
            out.put(name, drawn.to(dtype))
    write_json(folder / "convert.json", {"fingerprint": f"bench-{seed}", "linears": all_linears(model)})
    return folder


def shallower(model: Path, folder: Path, depth: int) -> Path:
    """The first `depth` blocks of a model, on the same weights."""
    (folder / "checkpoint").mkdir(parents=True)
    config, record = read_json(model / "checkpoint/config.json"), read_json(model / "convert.json")
    write_plain_json(folder / "checkpoint/config.json", config | {"num_hidden_layers": depth})
    kept = {name: block for name, block in record["linears"].items() if block < depth}
    write_json(folder / "convert.json", record | {"linears": kept})
    for path in (model / "checkpoint").glob("*.safetensors*"):
        os.link(path, folder / "checkpoint" / path.name)
    return folder


def random_tokens(path: Path, n: int, width: int, vocabulary: int, seed: int) -> tokens.Tokens:
    """n sequences with a few frequent ids, as text has."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(n, width, generator=generator) ** 4 * vocabulary).long()
    tokens.save(path, list(ids), {"model_fingerprint": "bench-0"})
    return tokens.load(path)
