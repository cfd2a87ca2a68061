"""What a quantisation leaves beside its checkpoint, quantize.json."""

from typing import Any, NotRequired, TypedDict

GGUF = "gguf"
REAL = ("packed", GGUF)  # storage of files that hold low-bit codes


class Provenance(TypedDict):
    """What a checkpoint was made from. recipe: as the configuration has it; calibration_tokens: of a library that does
    not take all of them; candidates: of a budget, by method, a mark of what each was made from."""

    model: NotRequired[str]
    method: NotRequired[str]
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    model_fingerprint: str
    token_fingerprint: NotRequired[str | None]
    calibration_tokens: NotRequired[int]
    candidates: NotRequired[dict[str, str]]


class Coverage(TypedDict):
    """quantized_share: of all the model's numbers, how many are weights of quantised linears; parameters: how many
    there are, a tied head once."""

    quantized_share: float
    parameters: int


class Summary(Coverage):
    """bits_per_weight: of the quantised linears; quantize_s: seconds; storage: packed, simulated, original, or gguf
    where that file was measured, and why; no_kernels: why no product takes packed weights; left: other linears, and
    why; packed_mb: 10⁶ bytes of a library's own checkpoint."""

    bits_per_weight: float
    quantize_s: float
    storage: str
    storage_reason: str
    no_kernels: NotRequired[str]
    left: NotRequired[dict[str, str]]
    packed_mb: NotRequired[float]


class MethodRecord(TypedDict):
    """linears: a row each, with `linear`, `layer`, `alpha`, `objective` and how it was rounded; reconstruction: each
    block's error before and after; tuning: how that went; predicted_nats: of a budget, what its choice is predicted to
    cost the model, nats a token; swaps: by how much they corrected that; embeddings: a row for each weight of the
    embedding and the head that is quantised."""

    linears: list[dict[str, Any]]
    summary: Summary
    provenance: Provenance
    reconstruction: NotRequired[dict[str, tuple[float, float]]]
    tuning: NotRequired[dict[str, Any]]
    predicted_nats: NotRequired[float]
    swaps: NotRequired[str]
    embeddings: NotRequired[list[dict[str, Any]]]
