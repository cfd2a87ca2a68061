"""What a model's config.json says of its size: its linears, what they read, and its weights. Without torch, since rules
ask while the DAG is built."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# one linear up and one down; all others have a gate beside them
PLAIN = {"opt", "phi", "gpt_neox", "gpt2", "bloom", "falcon", "gptj", "gpt_neo", "gpt_bigcode", "mpt", "starcoder2"}
# whose head is the embedding where the configuration does not say
TIED = {"opt", "gpt2", "bloom", "gpt_neo", "falcon", "mpt", "gemma", "gemma2", "gemma3_text", "cohere", "starcoder2"}
EXPERTS = 3  # linears alike of a block, from which on they are experts'
# by the name used here, those that configurations use
KEYS = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "depth": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "chosen": ("num_experts_per_tok", "moe_topk", "num_experts_per_token"),
    "narrow": ("moe_intermediate_size",),
    "shared": ("shared_expert_intermediate_size",),
}


class Linears(NamedTuple):
    """Linears of a block alike: how many, [out, in], the share of tokens that each sees, and whether it is the first
    reader of its input."""

    n: int
    n_out: int
    n_in: int
    share: float = 1.0
    reads: bool = True


class Shape(NamedTuple):
    """A decoder: `depth` blocks of `linears`, an embedding, and a head, which may be the embedding itself. width: bytes
    of a stored weight."""

    hidden: int
    depth: int
    vocabulary: int
    tied: bool
    width: int
    heads: int
    linears: tuple[Linears, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape | None":
        """None where a configuration does not say how large its model is."""
        config = config.get("text_config") or config
        said = {name: next((n for key in keys if (n := count(config.get(key)))), 0) for name, keys in KEYS.items()}
        h, depth, vocabulary, heads = (said[key] for key in ("hidden", "depth", "vocabulary", "heads"))
        if not (h and depth and vocabulary and heads):
            return None
        head = count(config.get("head_dim")) or h // heads
        key_value = count(config.get("num_key_value_heads")) or (1 if config.get("multi_query") else heads)
        found = [
            Linears(1, heads * head, h),
            Linears(2, key_value * head, h, reads=False),
            Linears(1, h, heads * head),
        ]
        gated = config.get("model_type") not in PLAIN
        if said["experts"]:
            found += mlp(
                h, said["narrow"] or said["intermediate"] or 4 * h, gated, said["experts"], said["chosen"] or 1
            )
            found += mlp(h, said["shared"], gated) if said["shared"] else []
        else:
            found += mlp(h, said["intermediate"] or 4 * h, gated)
        tied = config.get("tie_word_embeddings", config.get("model_type") in TIED)
        width = WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
        return cls(h, depth, vocabulary, bool(tied), width, heads, tuple(found))

    @property
    def block(self) -> int:
        """Weights of a block's linears."""
        return sum(each.n * each.n_out * each.n_in for each in self.linears)

    @property
    def active(self) -> float:
        """Those that a token meets."""
        return sum(each.n * each.n_out * each.n_in * each.share for each in self.linears)

    @property
    def quantised(self) -> int:
        return self.depth * self.block

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All of them, but for norms and biases."""
        return self.quantised + self.embedding * (1 if self.tied else 2)

    @property
    def inputs(self) -> list[tuple[int, int]]:
        """(how many, width) of a block's distinct inputs."""
        return [(each.n, each.n_in) for each in self.linears if each.reads]

    @property
    def widest(self) -> int:
        return max(each.n_in for each in self.linears)

    @property
    def largest(self) -> int:
        """Weights of the largest linear."""
        return max(each.n_out * each.n_in for each in self.linears)

    @property
    def middle(self) -> int:
        """Numbers that an MLP has of a token at its widest, of each expert that it meets."""
        return int(max(each.n_in * each.n * each.share for each in self.linears))


def holds_experts(config: Mapping[str, Any]) -> bool:
    """Whether a configuration speaks of several experts, by whatever key."""
    config = config.get("text_config") or config
    return any("experts" in key and count(value) > 1 for key, value in config.items())


def count(said: Any) -> int:
    """A number that a configuration gives, of one for each block the largest; 0 where it is none."""
    if isinstance(said, (list, tuple)):
        return max(map(count, said), default=0)
    return int(said) if isinstance(said, (int, float)) and math.isfinite(said) else 0


def mlp(hidden: int, width: int, gated: bool, experts: int = 1, chosen: int = 1) -> list[Linears]:
    """An MLP's linears, of each expert; gate and up of one read the same input."""
    share = chosen / experts
    up = [Linears(experts, width, hidden, share)]
    up += [Linears(experts, width, hidden, share, reads=False)] if gated else []
    return [*up, Linears(experts, hidden, width, share)]


def triangle(n: int) -> int:
    """Numbers of one triangle of [n, n]."""
    return n * (n + 1) // 2


def moment_numbers(shape: Shape) -> int:
    """Of the triangles of every second moment."""
    return shape.depth * sum(count * triangle(n) for count, n in shape.inputs)


@lru_cache(maxsize=64)
def _read(path: str, changed: int) -> Shape | None:
    return Shape.of(json.loads(Path(path).read_text(encoding="utf-8")))


def shape_in(folder: Path) -> Shape | None:
    """Of a checkpoint's config.json; None where there is none that says it."""
    path = folder / "config.json"
    try:
        return _read(str(path), path.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def known_shape(model: str, source: Mapping[str, Any]) -> Shape | None:
    """Of a model of the study: as it was converted, else as its directory has it, else unknown."""
    converted = shape_in(Path("results") / model / "original/checkpoint")
    return converted or (shape_in(Path(source["directory"])) if "directory" in source else None)
