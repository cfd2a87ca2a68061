"""One text for calibration and evaluation is read as two parts that share no paragraph (quant.data.split)."""

from pathlib import Path
from typing import Any


def identity(text: dict[str, Any]) -> dict[str, Any]:
    """A text's source, by which the same file is the same however its path is written."""
    return text | ({"files": [str(Path(path).resolve()) for path in text["files"]]} if "files" in text else {})


def same_kind(text: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two texts are of one kind, as far as their sources say: parts of one text, docstrings, splits of one hub
    data set, files of one folder."""
    if "hub" in text and "hub" in other:
        return all(text["hub"].get(key) == other["hub"].get(key) for key in ("path", "name"))
    if "files" in text and "files" in other:
        folders = [{Path(path).resolve().parent for path in each["files"]} for each in (text, other)]
        return bool(folders[0] & folders[1])
    return any(source in text and source in other for source in ("pydoc_topics", "docstrings"))


def split_shared(config: dict[str, Any]) -> None:
    """Gives the calibration one part of its text, and the other to every data set of the study that has the same text;
    in place. Where overlap is asked for, the whole text is used for both."""
    calibration = config["calibration"]
    own = calibration["text"]
    users = [config["datasets"][name] for name in config["study"]["datasets"]]
    sharing = [user for user in users if identity(user["text"]) == identity(own)]
    if sharing and not calibration["allow_overlap"]:
        calibration["text"] = own | {"part": "calibration"}
        for user in sharing:
            user["text"] = user["text"] | {"part": "heldout"}
