"""A checkpoint's README.md: the hub's metadata, what made it, how good and how large it is, and how to load it."""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

TEMPLATES = Path(__file__).parents[2] / "templates"
ORIGINAL = "original"


def metadata(storage: str, bits: int, about: dict[str, Any]) -> dict[str, Any]:
    """The hub's header; what is not known of the base model is left out rather than guessed."""
    found = {
        "license": about.get("license"),
        "base_model": base_model(about),
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quantized", f"{bits}-bit", *(["compressed-tensors"] if storage == "packed" else [])],
    }
    if found["base_model"] is None:
        del found["base_model_relation"]
    return {key: value for key, value in found.items() if value is not None}


def base_model(about: dict[str, Any]) -> str | None:
    """The hub id that the configuration gives, as such or as the source."""
    return about.get("base_model") or about["source"].get("hub", {}).get("id")


def text_words(text: dict[str, Any]) -> str:
    """A text's source in a few words."""
    if "hub" in text:
        return "{path} {name} {split}".format(**{"name": ""} | text["hub"])
    if "files" in text:
        return ", ".join(Path(path).name for path in text["files"])
    return f"the Python language reference ({text.get('pydoc_topics', 'unknown')} part)"


def calibration_words(recipe: dict[str, Any], record: dict[str, Any], calibration: dict[str, Any]) -> str:
    fingerprint = record["provenance"].get("token_fingerprint")
    if fingerprint is None:
        return "none: the recipe reads no statistics"
    return (
        f"{recipe['n_calib']} sequences of at most {calibration['seq_len']} tokens of "
        f"{text_words(calibration['text'])} (seed {recipe['seed']}, token fingerprint {fingerprint})"
    )


def card(
    model: str,
    method: str,
    summary: pd.DataFrame,
    record: dict[str, Any],
    about: dict[str, Any],
    calibration: dict[str, Any],
) -> str:
    """Markdown. summary: summary.csv; record: the method's quantize.json; about: the model's license, base_model,
    caveat and source; calibration: the configuration's."""
    rows = summary[(summary.model == model) & (summary.method.isin([method, ORIGINAL]))]
    mine = rows[rows.method == method]
    recipe, first = record["provenance"]["recipe"], next(mine.itertuples())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        header=yaml.safe_dump(metadata(first.storage, recipe["bits"], about), sort_keys=False),
        model=model,
        method=method,
        base=base_model(about) or model,
        recipe=recipe,
        calibration=calibration_words(recipe, record, calibration),
        rows=list(mine.itertuples()),
        original={row.dataset: row for row in rows[rows.method == ORIGINAL].itertuples()},
        size=first,
        packed=first.storage == "packed",
        reason=record["summary"]["storage_reason"],
        license=about.get("license"),
        caveat=about.get("caveat"),
        versions=record["provenance"]["versions"],
        fingerprint=record["provenance"]["model_fingerprint"],
    )
