"""Facts about architectures, as a table: which operation before a linear can take over its input scale, and which
linears form the MLP. Everything else in this project works for any model whose linears are nn.Linear.

Names are relative to a decoder block.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from quant.errors import InputError


@dataclass(frozen=True)
class Fold:
    """Where 1/s goes. norm: into its weight, which acts as weight + offset. rows: into a linear's output rows.

    part: all of the rows, or those of the values of a fused q/k/v, or those of up of a fused gate and up.
    """

    module: str
    kind: str  # norm | rows
    offset: float = 0.0
    part: str = "all"


@dataclass(frozen=True)
class Group:
    """Linears that read one input, and the fold that lets them share a scale. A * stands for each expert.

    also: what else reads that input and stays in 16 bit, routers, whose columns take the scale.
    """

    linears: tuple[str, ...]
    fold: Fold
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mlp:
    """Names of an MLP's linears; gate is None in a plain MLP; gate == up where both are fused, gate's rows first."""

    gate: str | None
    up: str
    down: str


@dataclass(frozen=True)
class Gguf:
    """What llama.cpp calls the architecture; whether its rotary embeddings turn neighbouring channels, where
    transformers' turn one half of a head with the other, so that rows of q and k change places; and the keys that hold
    an architecture's own multipliers, by config.json's.

    counts: the same of whole numbers. norm: is added to the norms' weights. activation: what its MLP has, config.json's
    key and its words. period: each so many-th layer attends to everything, the others within a window; 0: all do.
    fixed: what config.json must say.
    """

    name: str
    neighbours: bool
    multipliers: tuple[tuple[str, str], ...] = ()
    counts: tuple[tuple[str, str], ...] = ()
    norm: float = 0.0
    activation: tuple[str, ...] = ("hidden_act", "silu", "swish")
    period: int = 0
    fixed: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Architecture:
    groups: tuple[Group, ...]
    mlp: Mlp
    attention_output: str = "self_attn.o_proj"
    gguf: Gguf | None = None


def _attention(norm: str, offset: float) -> tuple[Group, ...]:
    q, k, v, o = (f"self_attn.{name}_proj" for name in "qkvo")
    return Group((q, k, v), Fold(norm, "norm", offset)), Group((o,), Fold(v, "rows"))


def _gated(norm: str, offset: float) -> tuple[Group, ...]:
    gate, up, down = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
    return Group((gate, up), Fold(norm, "norm", offset)), Group((down,), Fold(up, "rows"))


def _experts(
    gate: str, up: str, down: str, *also: str, norm: str = "post_attention_layernorm", gguf: Gguf | None = None
) -> Architecture:
    """Llama's attention, and in a block the MLP, or experts under mlp.experts with what else reads the norm."""
    shared = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    leaves = tuple(f"mlp.experts.*.{name}" for name in (gate, up))
    experts = (
        Group(shared + leaves, Fold(norm, "norm"), also),
        Group(("mlp.shared_expert.down_proj",), Fold("mlp.shared_expert.up_proj", "rows")),
        Group((f"mlp.experts.*.{down}",), Fold(leaves[1], "rows")),
    )
    return Architecture(_attention("input_layernorm", 0.0) + _gated(norm, 0.0) + experts, GATED, gguf=gguf)


GATED = Mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _llama(mlp_norm: str = "post_attention_layernorm", offset: float = 0.0, gguf: Gguf | None = None) -> Architecture:
    return Architecture(_attention("input_layernorm", offset) + _gated(mlp_norm, offset), GATED, gguf=gguf)


PHI3 = Architecture(
    (
        Group(("self_attn.qkv_proj",), Fold("input_layernorm", "norm")),
        Group(("self_attn.o_proj",), Fold("self_attn.qkv_proj", "rows", part="value")),
        Group(("mlp.gate_up_proj",), Fold("post_attention_layernorm", "norm")),
        Group(("mlp.down_proj",), Fold("mlp.gate_up_proj", "rows", part="up")),
    ),
    Mlp("mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    gguf=Gguf("phi3", False, fixed=(("head_dim", None),)),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _llama(gguf=Gguf("llama", True)),
    "granite": _llama(
        gguf=Gguf(
            "granite",
            True,
            (
                ("logits_scaling", "logit_scale"),
                ("attention_multiplier", "attention.scale"),
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
            ),
        )
    ),
    "mistral": _llama(gguf=Gguf("llama", True)),
    "qwen2": _llama(gguf=Gguf("qwen2", False)),
    "qwen3": _llama(gguf=Gguf("qwen3", False)),
    "phi3": PHI3,
    "gemma": _llama(offset=1.0),
    "gemma2": _llama("pre_feedforward_layernorm", 1.0),
    "gemma3_text": _llama(
        "pre_feedforward_layernorm",
        1.0,
        Gguf(
            "gemma3",
            False,
            norm=1.0,
            activation=("hidden_activation", "gelu_pytorch_tanh"),
            period=6,
            fixed=(
                ("attention_bias", False),
                ("attn_logit_softcapping", None),
                ("final_logit_softcapping", None),
                ("use_bidirectional_attention", False),
            ),
        ),
    ),
    "mixtral": _experts("w1", "w3", "w2", "mlp.gate"),
    "qwen2_moe": _experts("gate_proj", "up_proj", "down_proj", "mlp.gate", "mlp.shared_expert_gate"),
    "qwen3_moe": _experts(
        "gate_proj",
        "up_proj",
        "down_proj",
        "mlp.gate",
        gguf=Gguf(
            "qwen3moe",
            False,
            counts=(
                ("num_local_experts", "expert_count"),
                ("num_experts_per_tok", "expert_used_count"),
                ("moe_intermediate_size", "expert_feed_forward_length"),
            ),
            fixed=(
                ("attention_bias", False),
                ("decoder_sparse_step", 1),
                ("mlp_only_layers", []),
                ("norm_topk_prob", True),
            ),
        ),
    ),
    "olmoe": _experts("gate_proj", "up_proj", "down_proj", "mlp.gate"),
    # no fold is known: only the MLP's linears
    "opt": Architecture((), Mlp(None, "fc1", "fc2"), "self_attn.out_proj"),
    "phi": Architecture((), Mlp(None, "mlp.fc1", "mlp.fc2"), "self_attn.dense"),
    "gpt_neox": Architecture((), Mlp(None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), "attention.dense"),
}


SHARING = tuple(name for name, known in ARCHITECTURES.items() if known.groups)  # scope: shared is known for them
IN_GGUF = tuple(name for name, known in ARCHITECTURES.items() if known.gguf)  # and a GGUF export for these


def architecture_of(config: dict[str, Any], what_for: str, of: Collection[str], instead: str) -> Architecture:
    """The facts of a config.json's model_type. what_for: the choice that needs them; of: the architectures that have
    them; instead: what to do where they are not known."""
    kind = str(config.get("model_type"))
    if kind not in of:
        raise InputError(
            f"{what_for} is not known for model_type {kind!r}, but for {', '.join(of)} "
            f"(workflow_scripts/quant/models/structure/architectures.py); {instead}"
        )
    return ARCHITECTURES[kind]


def value_heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """(query heads, key/value heads, channels a head) of the attention."""
    heads = config["num_attention_heads"]
    key_value = config.get("num_key_value_heads") or heads
    return heads, key_value, config.get("head_dim") or config["hidden_size"] // heads


def rows_of(fold: Fold, n_rows: int, config: dict[str, Any]) -> range:
    """The producer's output rows that feed the linear whose scale is folded."""
    if fold.part == "value":
        _, key_value, size = value_heads(config)
        return range(n_rows - key_value * size, n_rows)
    return range(n_rows // 2, n_rows) if fold.part == "up" else range(n_rows)
