"""Texts in words, for messages, cards and the report."""

from pathlib import Path
from typing import Any


def source_words(text: dict[str, Any]) -> str:
    """Where a text comes from, in a few words."""
    if "hub" in text:
        found = " ".join(text["hub"][key] for key in ("path", "name", "split") if text["hub"].get(key))
    elif "files" in text:
        found = ", ".join(Path(path).name for path in text["files"])
    elif "docstrings" in text:
        found = f"docstrings of {', '.join(text['docstrings'])}"
    else:
        found = f"the Python language reference ({text['pydoc_topics']} part)"
    return f"{found} (its {text['part']} part)" if "part" in text else found
