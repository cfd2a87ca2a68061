"""`make report MODEL=… TEXT=…` and `make best …`: what they say, as an experiment's file.

Its path is printed; the file stays, so that a study can be repeated, read, and gone on with.
"""

import copy
import csv
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from quant.errors import InputError
from quant.files.artifacts import write_text
from quant.models.structure.architectures import SHARING
from quant.workflow import gguf_methods
from quant.workflow.configuration import RESERVED
from quant.workflow.estimates.shape import holds_experts
from quant.workflow.model_source import config_of, model_type_of, source_of, words_of
from quant.workflow.paths import found, home

SCALES = 0.5  # bits a weight, at most, of the steps and zeros of groups of 64 and more
WITHIN = "within_size"  # the method of SIZE_MB
FEWER = "within_bits"  # the method of BITS below the study's own
EIGHT = "rtn_8bit"  # beside the study's own, of 4 bits: what a file of twice the size buys
UNSHARED = "gptq_clip"  # packed, without scales: in the place of what shares them, where nothing is known to take them
SYMMETRIC = "gptq_symmetric"  # where a mixture's experts, which transformers reads without zero points, leave no other
OF_FILES = (gguf_methods.FEWER, *gguf_methods.GGUFS)
FOR_LIMITS = (WITHIN, FEWER, EIGHT, SYMMETRIC, *OF_FILES)
LIMITS = ("SIZE_MB", "BITS", "FILE")  # one wish, said anew as a whole
WRITTEN = "# written by make:"  # the first line of a file that may be written again
BUILT_IN = Path(__file__).parents[3] / "config.yaml"


def name_of(path: str) -> str:
    """The last part of a path or hub id, as a name that configurations and folders take."""
    last = re.sub(r"\.(gguf|txt|md|jsonl)$", "", path.rstrip("/").rpartition("/")[2], flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-._")[:60] or "mine"
    return f"{name}-own" if name.lower() in RESERVED else name


def check_text(text: str, path: str) -> None:
    """Refuses at once what tokenize_calibration would refuse."""
    from quant.data.split import halves
    from quant.data.text_files import JSON_LINES, read_file

    if Path(path).is_dir():
        raise InputError(f"TEXT={text}: is a directory; give a UTF-8 text file (cat FILES > all.txt)")
    if not Path(path).is_file():
        raise InputError(f"TEXT={text}: no such file; give a UTF-8 text file")
    lines = read_file(path)
    halves(lines if path.lower().endswith(JSON_LINES) else ["".join(lines)], f"TEXT={text}")


def limit(key: str, value: str) -> float:
    """A limit as a number above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"{key}={value}: must be a number above 0")
    return number


def choice_of(size_mb: str, bits: str) -> dict[str, Any]:
    """The limits that `choose` gets. A whole number of bits is that of the codes, to which their scales come; a size
    alone leaves the bits to the choice."""
    chosen: dict[str, Any] = {"max_bits_per_weight": None} if size_mb else {}
    if size_mb:
        chosen["max_size_mb"] = limit("SIZE_MB", size_mb)
    if bits:
        number = limit("BITS", bits)
        chosen["max_bits_per_weight"] = number + SCALES if number.is_integer() else number
    return chosen


def fewer_bits(bits: str, limit: float) -> dict[str, Any]:
    """The grid of the method that a limit of bits a weight asks for where the study's own, of 4 bits, are beyond it."""
    if limit >= 4:
        return {}
    if limit < 2 + SCALES:
        raise InputError(f"BITS={bits}: fewer than codes of 2 bits take with their scales; give BITS=2, or SIZE_MB")
    width = int(limit - SCALES)
    # ten codes of 3 bits are packed into 32, 3.2 to 3.25 a weight: zero points, too, fit from 3.6 on
    return {"bits": width} | ({"symmetric": True} if width == 3 and limit < 3.6 else {})


def source_in(
    study: Mapping[str, Any], built_in: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Of the first model of a study; None where a name stands for none."""
    models = built_in["models"] | before.get("models", {}) | study.get("models", {})
    names = study.get("study", {}).get("models") or before.get("study", {}).get("models") or built_in["study"]["models"]
    return dict(models[names[0]]["source"]) if names[0] in models else None


def unshared(built_in: Mapping[str, Any]) -> dict[str, list[str]]:
    """The study's methods, and those that are asked tasks, for a model of which `scope: shared` is not known."""
    shared = {name for name, each in built_in["methods"].items() if each.get("scope") == "shared"}
    lists = {key: built_in["study"][key] for key in ("methods", "task_methods")}
    return {
        key: list(dict.fromkeys(UNSHARED if name in shared else name for name in names)) for key, names in lists.items()
    }


def why_unshared(study: Mapping[str, Any], built_in: Mapping[str, Any]) -> str:
    """A line of comment on an experiment whose methods are those."""
    if study.get("study", {}).get("methods") != (names := unshared(built_in)["methods"]):
        return ""
    left = ", ".join(name for name in built_in["study"]["methods"] if name not in names)
    return f"# {UNSHARED} stands for {left}: it is not known which linears of this model could share a scale\n"


def study_of(given: Mapping[str, str], built_in: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment, {} where nothing is given. given: MODEL, TEXT, SIZE_MB, BITS, FILE; built_in: the configuration
    that it changes; before: the experiment of an earlier run."""
    model, text = given.get("MODEL", ""), given.get("TEXT", "")
    study: dict[str, Any] = {"study": {}}
    if model in built_in["models"]:
        study["study"]["models"] = [model]
    elif model:
        name = name_of(model.partition("@")[0])
        name = f"{name}-own" if name in built_in["models"] else name
        earlier = before.get("models", {}).get(name, {}).get("source", {})
        study["study"]["models"] = [name]
        study["models"] = {name: {"source": source_of(model, earlier)}}
    if text:
        path = found(text, Path())
        check_text(text, path)
        name, file = name_of(text), str(Path(path).absolute())
        common = next(iter(built_in["datasets"].values()))
        study["study"]["datasets"] = [name]
        study["calibration"] = {"text": {"files": [file]}}
        study["datasets"] = {name: common | {"text": {"files": [file]}}}
    config = config_of(source_in(study, built_in, before))
    grid = {"symmetric": True} if holds_experts(config) else {}
    if (kind := model_type_of(config)) is not None and kind not in SHARING:
        study["study"] |= unshared(built_in)
    chosen = choice_of(given.get("SIZE_MB", ""), given.get("BITS", ""))
    study |= {"choose": chosen} if chosen else {}
    if file_kind := given.get("FILE"):
        if file_kind != "gguf":
            raise InputError(f"FILE={file_kind}: must be gguf; leave it out for a checkpoint of transformers and vLLM")
        study["choose"] = {"max_bits_per_weight": None} | chosen | {"storage": file_kind}
        study["methods"] = gguf_methods.ggufs(config, chosen.get("max_bits_per_weight"), given.get("BITS", ""))
        study["study"] |= {"add": {"methods": list(study["methods"])}, "gguf": list(study["methods"])}
    elif "max_size_mb" in chosen:  # the widths that use such a file best, and each for all, beside the study's own
        limits = {"size_mb": chosen["max_size_mb"], "bits_per_weight": chosen["max_bits_per_weight"] or 0.0}
        ends = {"bits": 8, "needed": False}  # in 16 bit where there is room for it
        study["methods"] = {WITHIN: {"budget": limits, "clip": True, "rounding": "gptq", "embeddings": ends} | grid}
        study["study"]["add"] = {"methods": [WITHIN]}
    else:
        fewer = fewer_bits(given["BITS"], chosen["max_bits_per_weight"]) if chosen else {}
        methods = {FEWER: fewer | {"clip": True, "rounding": "gptq"} | grid} if fewer else {}
        if model or "models" in before.get("study", {}):
            methods |= {EIGHT: {"bits": 8, "group_size": -1, "symmetric": True}}
            methods |= {SYMMETRIC: {"clip": True, "rounding": "gptq"} | grid} if grid else {}
        study["methods"] = methods
        study["study"] |= {"add": {"methods": list(methods)}} if methods else {}
    return {key: value for key, value in study.items() if value}


def replaced(summary: Path, models: list[str]) -> str:
    """What a study of other models leaves and loses, where there is one; else nothing."""
    if not summary.is_file():
        return ""
    with summary.open(encoding="utf-8", newline="") as file:
        there = list(dict.fromkeys(row["model"] for row in csv.DictReader(file)))
    if set(there) & set(models):
        return ""
    folders = ", ".join(f"{summary.parent / model}" for model in there)
    return (
        f"{summary.parent}/report.html and the tables beside it were of {', '.join(there)} and become those of "
        f"{', '.join(models)}; checkpoints stay ({folders}). IN=FOLDER keeps a study apart"
    )


def taken_over(results: Path, model: str, source: Mapping[str, Any] | None) -> str:
    """What a study loses of another model of the same name, where one was converted; else nothing."""
    try:
        was = json.loads((results / model / "original/convert.json").read_text(encoding="utf-8"))["source"]
        said = words_of(was)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    if source is None or was == source:
        return ""
    return (
        f"{results / model} was of {said} and becomes that of {words_of(source)}, which has the same name: what is "
        "there is made anew. IN=FOLDER keeps a study apart"
    )


def without(study: dict[str, Any], names: set[str]) -> None:
    """Takes methods out of an experiment."""
    part = study.setdefault("study", {})
    for holder, key in ((study, "methods"), (part.get("add", {}), "methods"), (part, "gguf")):
        if key in holder:
            kept = [name for name in holder[key] if name not in names]
            holder[key] = {name: holder[key][name] for name in kept} if holder is study else kept


def gone_on(
    before: Mapping[str, Any],
    study: Mapping[str, Any],
    limited: bool,
    written: Mapping[str, list[str]],
    source: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """An experiment with what is said anew. limited: limits are among it, and replace those before with their methods;
    else those that there are stay, on a grid that a model said anew can have. written: lists of `study` that were not
    written by hand, and go where the model no longer asks for them (see unshared). source: its model's."""
    old, new = copy.deepcopy(dict(before)), copy.deepcopy(dict(study))
    for key, names in written.items():
        if key in old.get("study", {}):
            (old if old["study"][key] == names else new)["study"].pop(key, None)
    there = {*FOR_LIMITS} & {*old.get("methods", {})}
    other_model = "models" in new.get("study", {})
    mixture = SYMMETRIC in new.get("methods", {})
    for name in {WITHIN, FEWER} & there if other_model and not limited else ():
        was = old["methods"][name]
        kept = {key: value for key, value in was.items() if key != "symmetric"}
        whatever = was.get("bits") == 3 and was.get("symmetric", False)  # the model: see fewer_bits
        old["methods"][name] = kept | ({"symmetric": True} if mixture or whatever else {})
    if (of_files := {*OF_FILES} & there) and other_model and not limited:
        limit = old.get("choose", {}).get("max_bits_per_weight")
        due = gguf_methods.ggufs(config_of(source), limit, str(limit))
        for name in of_files & due.keys():
            kept = {key: value for key, value in old["methods"][name].items() if key not in gguf_methods.CODES}
            old["methods"][name] = kept | {key: due[name][key] for key in gguf_methods.CODES if key in due[name]}
    by_bits = other_model and there <= {FEWER, EIGHT, SYMMETRIC}
    without(old, {*FOR_LIMITS} if limited else {SYMMETRIC} if by_bits else set())
    without(new, set() if limited or not there else {EIGHT} & there if by_bits else {*FOR_LIMITS})
    both = {"methods": old.get("methods", {}) | new.get("methods", {}), "study": old["study"] | new["study"]}
    parts = [each["study"].get("add", {}) for each in (old, new)]
    for name in dict.fromkeys(name for part in parts for name in part):
        both["study"].setdefault("add", {})[name] = list(dict.fromkeys(parts[0].get(name, []) + parts[1].get(name, [])))
    if not both["study"].get("gguf", True):
        del both["study"]["gguf"]
    return {key: value for key, value in (old | new | both).items() if value}


def gone_on_from(found: Any, path: Path) -> dict[str, Any]:
    """What an experiment's file holds; refused where that is another kind of thing than what is changed in it. A table
    of nothing is none."""
    before = {"all": found}
    tables = ("all", "all.study", "all.models", "all.methods", "all.study.add")
    for where in (*tables, "all.study.gguf", "all.study.models", "all.study.add.methods"):
        *parents, last = where.split(".")
        holder: Any = before
        for key in parents:
            holder = holder.get(key, {})
        due = dict if where in tables else list
        if holder.get(last, due()) is None:
            holder[last] = due()
        if not isinstance(holder.get(last, due()), due):
            said = where.partition(".")[2] or "it"
            raise InputError(
                f"{path}: {said} is no {'table' if due is dict else 'list'} of names; mend it, or delete it"
            )
    return dict(before["all"])


def write(given: Mapping[str, str], folder: Path, apart: bool) -> Path | None:
    """The experiment's file, written: under results/, or, in an experiment's own folder, its config.yaml, which keeps
    what is not given anew. None where nothing is given; a file that was not written here stays as it is."""
    built_in = yaml.safe_load(BUILT_IN.read_text(encoding="utf-8"))
    names = [name_of(given[key].partition("@")[0]) for key in ("MODEL", "TEXT") if given.get(key)]
    path = folder / ("config.yaml" if apart else f"results/{'-'.join(names) or 'default'}.yaml")
    if not any(given.values()) and (path.is_file() or not apart):
        return path if apart else None
    try:
        there = path.read_text(encoding="utf-8") if path.is_file() else WRITTEN
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save it as UTF-8, or give another folder") from None
    if not there.startswith(WRITTEN):
        raise InputError(f"{path}: is no file that make wrote; change it yourself, or give another folder")
    try:
        before = gone_on_from(yaml.safe_load(there), path)
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise InputError(f"{path}: is no YAML ({words}); mend it, or delete it and say all of it again") from None
    study = study_of(given, built_in, before)
    if apart:
        limited = any(given.get(key) for key in LIMITS)
        study = gone_on(before, study, limited, unshared(built_in), source_in(study, built_in, before))
    models = study.get("study", {}).get("models", built_in["study"]["models"])
    source = source_in(study, built_in, {})
    for note in (replaced(folder / "results/summary.csv", models), taken_over(folder / "results", models[0], source)):
        if note:
            print(note, file=sys.stderr)
    said = " ".join(f"{key}={value}" for key, value in given.items() if value)
    write_text(path, f"{WRITTEN} {said}\n{why_unshared(study, built_in)}{yaml.safe_dump(study, sort_keys=False)}")
    return path


def main() -> None:
    """Reads MODEL, TEXT, SIZE_MB, BITS, FILE and IN from the environment."""
    given = {key: os.environ.get(key, "").strip() for key in ("MODEL", "TEXT", "SIZE_MB", "BITS", "FILE")}
    folder = os.environ.get("IN", "").strip()
    try:
        path = write(given, home(folder or "."), bool(folder))
    except InputError as error:
        sys.exit(f"ERROR {error}")
    except OSError as error:
        sys.exit(f"ERROR {error.filename}: cannot be read or written ({error.strerror}); name another file or folder")
    if path:
        print(path.absolute())


if __name__ == "__main__":
    main()
