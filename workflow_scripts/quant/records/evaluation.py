"""What an evaluation leaves, as comparisons read it."""

from typing import Any, NotRequired, TypedDict

from quant.records.method import Summary


class SequenceRow(TypedDict):
    """nll, kl: summed, nats; kl and agreed over the first kl_tokens predictions, where they are compared."""

    sequence: int
    tokens: int
    nll: float
    kl_tokens: NotRequired[int]
    kl: NotRequired[float]
    agreed: NotRequired[int]


class Binned(TypedDict):
    """Of each sequence its predictions and their NLL, summed, nats, by octave (quant.evaluation.profile)."""

    tokens: list[list[int]]
    nll: list[list[float]]


class Sizes(TypedDict):
    """Of a checkpoint's parts, 10⁶ bytes."""

    linears_mb: float
    embeddings_mb: float
    head_mb: float
    other_mb: float


class Sense(TypedDict, total=False):
    """Of an original's evaluation (quant.evaluation.sanity): nats per token, and a rate."""

    unigram_nll: float
    tokens_per_character: float


class Evaluation(Summary, Sizes, Sense):
    """Of a checkpoint on a data set. kl, nats, and top1_agreement: means over kl_tokens predictions; size_mb: 10⁶
    bytes; checkpoint, tensors: marks of what made it, and of what it holds; profile: by "position" in the sequence, and
    by "frequency" in the data set."""

    model: str
    method: str
    dataset: str
    protocol: str
    seq_len: int
    kl: float
    top1_agreement: float
    kl_tokens: int
    tokens_per_s: float
    size_mb: float
    file_bits_per_weight: float
    checkpoint: str
    tensors: str
    sequences: list[SequenceRow]
    profile: dict[str, Binned]
    provenance: dict[str, Any]
