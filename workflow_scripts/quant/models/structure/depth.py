"""Which decoder layer `auto` means, and how to say it."""

LAYER, LAYERS = 28, 40  # the research looked at layer 28, from 0, of MiniCPM-2B's 40


def layer_at(wanted: int | str, layers: int) -> int:
    """The layer asked for; `auto` is layer 28 where the model has it, else the one at the same relative depth.

    Layers count from 0, so the relative depth is that of 28 among 0 … 39: round(28/39 · (layers - 1)).
    """
    if wanted != "auto":
        return int(wanted)
    return LAYER if layers > LAYER else round(LAYER / (LAYERS - 1) * (layers - 1))


def layer_words(wanted: int | str, layer: int, layers: int) -> str:
    """`Layer 8, which lies as deep in this model of 12 as layer 28 in one of 40`."""
    if wanted != "auto" or layer == LAYER:
        return f"Layer {layer}"
    return f"Layer {layer}, which lies as deep in this model of {layers} as layer {LAYER} in one of {LAYERS}"
