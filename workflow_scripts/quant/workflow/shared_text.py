"""Which texts a study reads. One for calibration and evaluation is read as two parts that share no paragraph
(quant.data.split)."""

from pathlib import Path
from typing import Any

from quant.errors import InputError
from quant.workflow.schema import nearest_of


def identity(text: dict[str, Any]) -> dict[str, Any]:
    """A text's source, by which the same file is the same however its path is written."""
    return text | ({"files": [str(Path(path).resolve()) for path in text["files"]]} if "files" in text else {})


def name_texts(config: dict[str, Any]) -> None:
    """Puts each text's source in the place of its name, so that a job's parameters hold what it reads."""
    users = {"calibration": config["calibration"]} | {f"datasets.{k}": v for k, v in config["datasets"].items()}

    def source(where: str, name: str) -> dict[str, Any]:
        if name not in config["texts"]:
            raise InputError(f"{where}: no entry {name!r} in texts; {nearest_of(name, list(config['texts']))}")
        return config["texts"][name]

    for where, user in users.items():
        user["text"] = source(f"{where}.text", user["text"])
    calibration = config["calibration"]
    calibration["mix"] = [source("calibration.mix", name) for name in calibration["mix"]]
    if calibration["text"] in calibration["mix"]:
        raise InputError("calibration.mix: holds calibration.text; name other texts, which it is mixed with")
    if calibration["n_calib"] < (n := len(calibration_texts(calibration))):
        found = calibration["n_calib"]
        raise InputError(f"calibration.n_calib: {found}, and {n} texts to take it of; write at least {n}")


def calibration_texts(calibration: dict[str, Any]) -> list[dict[str, Any]]:
    """What it reads, the texts among it that it is mixed with."""
    return [calibration["text"], *calibration.get("mix", ())]


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
    """Gives the calibration one part of each of its texts that a data set of the study has too, and the other to that;
    in place. Where overlap is asked for, the whole text is used for both."""
    calibration = config["calibration"]
    if calibration["allow_overlap"]:
        return
    users = [config["datasets"][name] for name in config["study"]["datasets"]]
    found = []
    for own in calibration_texts(calibration):
        sharing = [user for user in users if identity(user["text"]) == identity(own)]
        for user in sharing:
            user["text"] = user["text"] | {"part": "heldout"}
        found.append(own | {"part": "calibration"} if sharing else own)
    calibration["text"], *calibration["mix"] = found
