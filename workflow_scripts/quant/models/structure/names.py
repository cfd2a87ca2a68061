"""What a linear's name says: model.layers.28.mlp.gate_proj."""


def linear_kind(linear: str) -> str:
    """model.layers.28.mlp.gate_proj → gate_proj."""
    return linear.rsplit(".", 1)[-1]


def layer_of(linear: str) -> int:
    """model.layers.28.mlp.gate_proj → 28."""
    return int(next(part for part in linear.split(".") if part.isdigit()))


def name_in_block(linear: str) -> str:
    """model.layers.28.mlp.gate_proj → mlp.gate_proj."""
    return linear.split(f".{layer_of(linear)}.", 1)[1]


def kind_of(name: str, patterns: dict[str, list[str]]) -> str:
    """`attention` or `mlp`, by the first pattern found in a linear's name; mlp where none is."""
    return next((kind for kind in ("attention", "mlp") if any(p in name for p in patterns[kind])), "mlp")
