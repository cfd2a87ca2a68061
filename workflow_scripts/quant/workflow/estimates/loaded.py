"""What a model takes that is asked for logits, whole or block by block. Pure, and without torch."""

from quant.workflow.estimates.amounts import MB, Ask

RESIDENT = 2**30  # calibration.hidden: of hidden states on a GPU
CHUNK, CHUNK_BYTES = 512, 2**29  # evaluation.head: rows of logits on a CPU, bytes of them on a GPU
TRANSFORMERS = 400 * MB  # a process that has imported as much
OF_CHUNK = {False: 1.9, True: 4.9}  # times those bytes: of one model's logits, of two models' that are compared


def logits(ask: Ask, tokens: int) -> float:
    """Bytes of a device for the logits of a chunk of tokens, and what is made of them."""
    return OF_CHUNK["method" in ask.wildcards] * min(CHUNK_BYTES, 4.0 * tokens * ask.shape.vocabulary)


def padded(ask: Ask) -> float:
    """Bytes of a copy of the head on a GPU, whose products take multiples of 8 words."""
    return ask.shape.embedding * ask.width if ask.on_gpu and ask.shape.vocabulary % 8 else 0.0


def beside(ask: Ask, tokens: int) -> float:
    """Bytes of a device beside the model that is asked for logits: of a batch in a block, or of its logits."""
    return padded(ask) + max(ask.passing(tokens), logits(ask, tokens))


def by_block(ask: Ask, tokens: int) -> bool:
    """Whether that is more than there is."""
    return ask.shape.weights * ask.width + beside(ask, tokens) > ask.room


def loaded(ask: Ask, tokens: int, made: float, packed: bool) -> tuple[float, float]:
    """Bytes of the host and the card for a model that is asked for logits: whole, or block by block."""
    shape = ask.shape
    size = shape.weights * ask.width
    if by_block(ask, tokens):
        ends = shape.embedding * ask.width * 2 + padded(ask) + logits(ask, tokens)  # once all blocks have run
        hidden = tokens * shape.hidden * ask.width
        held = max(shape.block * ask.width + ask.passing(tokens), ends) + min(hidden, RESIDENT)
        if ask.on_gpu:
            return ask.host(
                TRANSFORMERS, mapped=made, own=max(0, hidden - RESIDENT) + 2 * shape.block * ask.width
            ), held
        return ask.host(TRANSFORMERS, mapped=made, own=held + max(0, hidden - RESIDENT)), 0.0
    if ask.on_gpu:
        return ask.host(TRANSFORMERS, mapped=made / 3), size + beside(ask, tokens)  # whose pages go again
    chunk = 8.0 * min(CHUNK, tokens) * shape.vocabulary
    unpacked = 4.0 * shape.quantised if packed else 0
    return ask.host(TRANSFORMERS, mapped=made, own=size + chunk / 2 + unpacked + ask.passing(tokens)), 0.0


def unpacking(ask: Ask) -> float:
    """Bytes of the host that transformers takes for a GGUF file's weights, in float32, before the model has them."""
    of_file = ask.wildcards.get("method") in ask.config.get("study", {}).get("gguf", ())
    return 4.0 * ask.shape.weights if of_file else 0.0
