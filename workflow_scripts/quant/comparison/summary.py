"""summary.csv: what its columns are and how each is found; a recipe travels in it as JSON, and is read here alone."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from quant.comparison.paired import Estimate, compare_pair, corrected, paired_difference
from quant.data.overlap import text_columns
from quant.records.evaluation import Evaluation


@dataclass(frozen=True)
class SummaryRow:
    """A model's method on a data set, in the order of the columns; p_holm and detectable follow.

    bits_per_weight: of the quantised linears, which hold quantized_share of the model's numbers; file_bits_per_weight:
    of the whole file, by all of them.
    nll, delta_nll and kl with their 95 % intervals: nats per token; kl and top1_agreement over kl_tokens predictions;
    sizes: 10⁶ bytes; tokens_per_s of the evaluation, quantize_s in seconds; compression: how many times smaller than
    the original; recipe, versions: JSON; p: of no difference from the original, NaN for itself; error: delta_nll's
    standard error. seen_share: of the data set's text, how much has been seen in calibration; calibration_sequences and
    _tokens: that the method learnt from, if from any. tensors: a mark of the checkpoint's, equal where they are;
    no_kernels: of a packed one, why vLLM has no product for it.
    """

    model: str
    method: str
    dataset: str
    bits_per_weight: float
    size_mb: float
    ppl: float
    nll: float
    nll_low: float
    nll_high: float
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    kl: float
    kl_low: float
    kl_high: float
    top1_agreement: float
    tokens_per_s: float
    quantize_s: float
    storage: str
    storage_reason: str | None
    linears_mb: float
    embeddings_mb: float
    head_mb: float
    other_mb: float
    compression: float
    linears_compression: float
    tokens: int
    sequences: int
    protocol: str
    seq_len: int
    kl_tokens: int
    seen_share: float
    calibration_sequences: int | None
    calibration_tokens: int | None
    p: float
    error: float
    recipe: str
    seed: int | None
    versions: str
    token_fingerprint: str
    quantized_share: float
    file_bits_per_weight: float
    tensors: str
    no_kernels: str | None


# taken from the evaluation's record as they are
MEASURED = (
    *("model", "method", "dataset", "bits_per_weight", "size_mb", "kl", "top1_agreement", "tokens_per_s", "quantize_s"),
    *("storage", "storage_reason", "linears_mb", "embeddings_mb", "head_mb", "other_mb"),
    *("protocol", "seq_len", "kl_tokens", "quantized_share", "file_bits_per_weight", "tensors"),
)


def mean_rate(sums: pd.Series, counts: pd.Series, resamples: int, seed: int) -> Estimate:
    """Σsums/Σcounts over the sequences that were counted, with its interval."""
    some = counts.to_numpy() > 0
    totals = sums.to_numpy(float)[some]
    return paired_difference(totals, np.zeros(len(totals)), counts.to_numpy(float)[some], resamples, seed)


def summary_row(
    evaluation: Evaluation, original: Evaluation, texts: dict[str, Any], resamples: int, seed: int
) -> SummaryRow:
    """From a method's evaluation and the original's on the same sequences; the original is compared with nothing.
    texts: of the model, as check_texts writes them."""
    rows, reference = pd.DataFrame(evaluation["sequences"]), pd.DataFrame(original["sequences"])
    difference, made = compare_pair(rows, reference, resamples, seed), evaluation["provenance"]
    nll = rows["nll"].sum() / rows["tokens"].sum()
    own = mean_rate(rows["nll"], rows["tokens"], resamples, seed)
    kl = mean_rate(rows["kl"], rows["kl_tokens"], resamples, seed)
    measured: Mapping[str, Any] = evaluation
    return SummaryRow(
        **{key: measured[key] for key in MEASURED},
        no_kernels=measured.get("no_kernels") or None,
        ppl=float(np.exp(nll)),
        nll=nll,
        nll_low=own.low,
        nll_high=own.high,
        delta_nll=difference.mean,
        delta_nll_low=difference.low,
        delta_nll_high=difference.high,
        kl_low=kl.low,
        kl_high=kl.high,
        compression=original["size_mb"] / evaluation["size_mb"],
        linears_compression=original["linears_mb"] / evaluation["linears_mb"],
        tokens=int(rows["tokens"].sum()),
        sequences=len(rows),
        **text_columns(texts, evaluation["dataset"], made.get("recipe")),
        p=np.nan if evaluation["method"] == original["method"] else difference.p,
        error=difference.error,
        recipe=json.dumps(made.get("recipe")),
        seed=made.get("seed"),
        versions=json.dumps(made["versions"]),
        token_fingerprint=made["evaluated_tokens"],
    )


def summary_table(rows: Iterable[SummaryRow]) -> pd.DataFrame:
    """All of a study's rows as one family of comparisons."""
    return corrected(pd.DataFrame(map(asdict, rows)))


def recipes_of(summary: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Every method's recipe; the original's is empty."""
    cells = dict(zip(summary["method"], summary["recipe"], strict=True))
    return {method: (json.loads(cell) or {}) if isinstance(cell, str) else {} for method, cell in cells.items()}
