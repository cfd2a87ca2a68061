"""A checkpoint's README.md: the hub's metadata, what made it, how good and how large it is, and how to load it."""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from quant.data.overlap import SHARE, percent, short_words
from quant.data.wording import source_words
from quant.files.units import embedding_words, megabytes
from quant.recipe.formats import INT, NAMES
from quant.recipe.keys import KEYS, has_effect
from quant.recipe.widths import UNTOUCHED
from quant.records.method import GGUF, REAL, MethodRecord

TEMPLATES = Path(__file__).parents[2] / "templates"
ORIGINAL = "original"


def widths(recipe: dict[str, Any], record: Any) -> list[int]:
    """The widths of a method's quantised linears; record: its quantize.json."""
    if not recipe.get("budget"):
        return [recipe["bits"]]
    return sorted({row["bits"] for row in record["linears"]} - {UNTOUCHED}) or [UNTOUCHED]


def metadata(storage: str, bits: list[int], about: dict[str, Any]) -> dict[str, Any]:
    """The hub's header; what is not known of the base model is left out rather than guessed."""
    found = {
        "license": about.get("license"),
        "base_model": base_model(about),
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quantized", *([f"{n}-bit" for n in bits] + ["compressed-tensors"] if storage in REAL else [])],
    }
    if found["base_model"] is None:
        del found["base_model_relation"]
    return {key: value for key, value in found.items() if value is not None}


def base_model(about: dict[str, Any]) -> str | None:
    """The hub id that the configuration gives, as such or as the source."""
    return about.get("base_model") or about["source"].get("hub", {}).get("id")


def calibration_words(recipe: dict[str, Any], row: Any, record: MethodRecord, calibration: dict[str, Any]) -> str:
    """What the method learnt from, as many sequences as there were; row: of summary.csv."""
    fingerprint = record["provenance"].get("token_fingerprint")
    if fingerprint is None:
        return "none: the recipe reads no statistics"
    sequences = int(row.calibration_sequences)
    texts = " and ".join(map(source_words, (calibration["text"], *calibration["mix"])))
    return (
        f"{sequences} sequences of at most {calibration['seq_len']} tokens{short_words(sequences)}, "
        f"{int(row.calibration_tokens)} tokens together, of {texts} "
        f"(seed {recipe['seed']}, token fingerprint {fingerprint})"
    )


def measured_words(row: Any) -> str:
    """What a row of summary.csv was measured on."""
    words = (
        f"{row.dataset}: {row.tokens} tokens in {row.sequences} sequences of at most {row.seq_len} ({row.protocol})"
        f"{short_words(row.sequences)}."
    )
    if row.seen_share > SHARE and not pd.isna(row.calibration_sequences):
        words += f" Calibration has seen {percent(row.seen_share)} of this text, so it proves nothing of this method."
    return words


def settings(recipe: dict[str, Any], calibrated: bool) -> dict[str, Any]:
    """The keys that have an effect on the weights; how many sequences there were is said with the calibration."""
    drawn = calibrated or recipe.get("noise_injection")
    return {
        key: said(key, value)
        for key, value in recipe.items()
        if has_effect(key, recipe) and recipe[key] is not None and key != "n_calib" and (key != "seed" or drawn)
    }


def said(key: str, value: Any) -> Any:
    """A value as YAML has it in a line, without what asks for nothing: a limit of 0, a candidate's size left out."""
    if not isinstance(value, dict | list):
        return value
    known = KEYS[key].keys or {}
    own: Any = value
    if isinstance(value, dict):
        own = {name: each for name, each in value.items() if each or name not in known or known[name].default}
    else:
        own = [{name: each for name, each in one.items() if each is not None} for one in value]
    return yaml.safe_dump(own, default_flow_style=True, sort_keys=False, width=10**6).strip()


def left_words(left: dict[str, str]) -> list[str]:
    """What stays in 16 bit: a line for each reason, with the first linear and how many more."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{reason}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for reason, names in by_reason.items()
    ]


def card(
    model: str,
    method: str,
    summary: pd.DataFrame,
    record: MethodRecord,
    about: dict[str, Any],
    calibration: dict[str, Any],
    path: str,
) -> str:
    """Markdown. summary: summary.csv; record: the method's quantize.json; about: the model's license, base_model,
    caveat and source; calibration: the configuration's; path: of the checkpoint."""
    rows = summary[(summary.model == model) & (summary.method.isin([method, ORIGINAL]))]
    mine = rows[rows.method == method]
    recipe, first = record["provenance"]["recipe"], next(mine.itertuples())
    bits = widths(recipe, record)
    doubts = [
        f"On {row.dataset} the original itself makes no sense: {row.storage_reason}."
        for row in rows[rows.method == ORIGINAL].itertuples()
        if isinstance(row.storage_reason, str) and row.storage_reason
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        header=yaml.safe_dump(metadata(first.storage, bits, about), sort_keys=False),
        model=model,
        method=method,
        base=base_model(about) or model,
        bits=f"{', '.join(map(str, bits[:-1]))} and {bits[-1]}" if len(bits) > 1 else bits[0],
        recipe=settings(recipe, record["provenance"].get("token_fingerprint") is not None),
        calibration=calibration_words(recipe, first, record, calibration),
        path=path,
        megabytes=megabytes,
        rows=list(mine.itertuples()),
        measured=[measured_words(row) for row in mine.itertuples()],
        original={row.dataset: row for row in rows[rows.method == ORIGINAL].itertuples()},
        size=first,
        large=[embedding_words(first, row) for row in rows[rows.method == ORIGINAL].head(1).itertuples()],
        packed=first.storage in REAL,
        gguf=path.removesuffix("checkpoint") + "export/gguf/model.gguf" if first.storage == GGUF else "",
        stored=NAMES.get(recipe.get("format", INT), "pack-quantized"),
        bytes=recipe.get("format", INT) in NAMES,
        reason=record["summary"]["storage_reason"],
        no_kernels=record["summary"]["no_kernels"],
        embeddings=record.get("embeddings", []),
        left=left_words(record["summary"]["left"]),
        license=about.get("license"),
        caveat=" ".join(filter(None, [about.get("caveat"), *doubts])) or None,
        versions=record["provenance"]["versions"],
        fingerprint=record["provenance"]["model_fingerprint"],
    )
