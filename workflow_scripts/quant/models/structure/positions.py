"""How many tokens a model was made for."""

from typing import Any

KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def positions_of(config: dict[str, Any]) -> int | None:
    """By a config.json under whichever name its family has; None where it does not say."""
    text = config.get("text_config", config)
    return next((text[key] for key in KEYS if text.get(key) is not None), None)
