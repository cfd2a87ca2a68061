"""Random models and tokens for bench.py."""

import os
from pathlib import Path

import torch

from bench_limits import Shape, linears_of
from quant.data import tokens
from quant.files import tensorfile
from quant.files.artifacts import read_json, write_json, write_plain_json

SHAPES = {
    "minicpm-2b": Shape(2304, 5760, 36, 122753, 40, 128, (128, 512), (16, 2048), "bfloat16"),
    "small": Shape(192, 512, 6, 2048, 4, 64, (16, 128), (4, 256), "float32"),
}


def make_model(folder: Path, shape: Shape, where: str, seed: int = 0) -> Path:
    """A random Granite (MiniCPM's equations) as convert writes one, with some loud channels."""
    from quant.models.linears import all_linears, skeleton

    dtype, generator = getattr(torch, shape.dtype), torch.Generator(where).manual_seed(seed)
    depth, h = shape.depth, shape.hidden
    config = {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "hidden_size": h, "dtype": shape.dtype,
        "intermediate_size": shape.intermediate, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads, "num_hidden_layers": depth, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
        "embedding_multiplier": 12.0, "residual_multiplier": 1.4 / depth**0.5, "logits_scaling": h / 256,
        "attention_multiplier": (h // shape.heads) ** -0.5, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    write_plain_json(folder / "checkpoint/config.json", config)
    names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, h), "model.norm.weight": (h,)}
    for i in range(depth):
        shapes |= {f"model.layers.{i}.{n}.weight": size for n, size in zip(names, linears_of(shape), strict=True)}
        shapes |= {f"model.layers.{i}.{n}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")}
    layout = {name: (dtype, size) for name, size in shapes.items()}
    with tensorfile.writing(folder / "checkpoint/model.safetensors", layout, {"format": "pt"}) as out:
        for name, size in shapes.items():
            drawn = torch.randn(size, generator=generator, device=where)
            drawn = (0.5 * drawn).exp() if len(size) == 1 else drawn * (0.1 if "embed" in name else size[1] ** -0.5)
            out.put(name, drawn.to(dtype))
    linears = all_linears(skeleton(folder / "checkpoint"))
    write_json(folder / "convert.json", {"fingerprint": f"bench-{seed}", "linears": linears})
    return folder


def shallower(model: Path, folder: Path, depth: int) -> Path:
    """The first `depth` blocks of a model, on the same weights."""
    (folder / "checkpoint").mkdir(parents=True)
    config, record = read_json(model / "checkpoint/config.json"), read_json(model / "convert.json")
    write_plain_json(folder / "checkpoint/config.json", config | {"num_hidden_layers": depth})
    kept = {name: block for name, block in record["linears"].items() if block < depth}
    write_json(folder / "convert.json", record | {"linears": kept})
    os.link(model / "checkpoint/model.safetensors", folder / "checkpoint/model.safetensors")
    return folder


def random_tokens(path: Path, n: int, width: int, vocabulary: int, seed: int) -> tokens.Tokens:
    """n sequences with a few frequent ids, as text has."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(n, width, generator=generator) ** 4 * vocabulary).long()
    tokens.save(path, list(ids), {"model_fingerprint": "bench-0"})
    return tokens.load(path)
