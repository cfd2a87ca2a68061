"""config.yaml: checked against its schema, defaults filled in, recipes completed; every mistake in one line."""

import copy
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from quant.data import lm_eval_names, task_yaml
from quant.data.file_size import check_size
from quant.errors import InputError
from quant.recipe import keys
from quant.recipe.choices import CHANNELS, MOMENT, ROUNDINGS
from quant.recipe.formats import INT, MOVABLE, fixed
from quant.recipe.key import shown
from quant.recipe.libraries import library_of
from quant.workflow.budgets import check_budget, with_candidates
from quant.workflow.codes import check_codes, check_gguf
from quant.workflow.paths import check_input
from quant.workflow.recipe_schema import with_recipes
from quant.workflow.schema import fill_defaults, first_error, in_order, nearest_of
from quant.workflow.shared_text import calibration_texts, name_texts, split_shared

# folders of results/, and of a model's in it
RESERVED = {"environments", "figures", "logs", "benchmarks", "sources", "best", "tasks"} | {
    *("original", "calibration", "datasets", "check_mse", "analysis")
}


def select(config: dict[str, Any], table: str, added: list[str]) -> list[str]:
    """The names of a table that the study runs, those of its list before those that are added."""
    wanted, names = config["study"][table], list(config[table])
    for where, chosen in (("", [] if wanted == "all" else wanted), ("add.", added)):
        for name in chosen:
            if name not in names:
                raise InputError(f"study.{where}{table}: no entry {name!r} in {table}; {nearest_of(name, names)}")
    return names if wanted == "all" else list(dict.fromkeys([*wanted, *added]))


def spread(wanted: str | list[str], families: dict[str, list[str]]) -> str | list[str]:
    """A selection in which each sweep's name stands for all of its methods."""
    if wanted == "all":
        return wanted
    return list(dict.fromkeys(name for chosen in wanted for name in families.get(chosen, [chosen])))


def check_names(config: dict[str, Any]) -> None:
    """Refuses names that the results directory uses itself, and names that differ only in case."""
    for table in ("models", "datasets", "methods", "tasks"):
        seen: dict[str, str] = {}
        for name in config[table]:
            if name.lower() in RESERVED:
                raise InputError(f"{table}.{name}: this name is taken by the workflow; choose another")
            if name.lower() in seen:
                raise InputError(
                    f"{table}.{name}: differs from {seen[name.lower()]!r} only in case; choose another name"
                )
            seen[name.lower()] = name


def complete(entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A method's recipe with every key, sorted: its own values, then its number format's, then `defaults`, then the
    built-in ones."""
    common = {key: config["calibration"][key] for key in ("n_calib", "seed")}
    if (library := library_of(entry)) is not None:
        known = {name: key.default for name, key in library.keys.items()} | common
        return dict(sorted((known | {k: v for k, v in config["defaults"].items() if k in known} | entry).items()))
    known = keys.defaults() | common | config["defaults"]
    own = {key: values[0] for key, values in fixed((known | entry)["format"]).items()}
    return dict(sorted(keys.filled(known | own | entry).items()))


def variants(name: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method, or, where values are lists, one method for each combination, named by what varies."""
    swept = [key for key, value in entry.items() if isinstance(value, list) and keys.KEYS[key].items is None]
    if not swept:
        yield name, entry
    for values in product(*(entry[key] for key in swept) if swept else ()):
        chosen = dict(zip(swept, values, strict=True))
        if chosen:
            label = "-".join(labelled(key, value) for key, value in chosen.items())
            yield f"{name}-{label}", entry | chosen


def labelled(key: str, value: Any) -> str:
    """What a method of a sweep is told apart by: bits3, or the contents of an object, size_mb90; of {} its key."""
    if not isinstance(value, dict):
        return f"{key}{value}"
    return "-".join(f"{name}{worded(each)}" for name, each in value.items()) or key


def worded(value: Any) -> str:
    """A number as short as it can be said."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)


def recipes(config: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Every method by name, sweeps spread out, each recipe complete and checked; and the names that each entry made."""
    methods: dict[str, dict[str, Any]] = {}
    families: dict[str, list[str]] = {}
    for family, entry in config["methods"].items():
        families[family] = []
        for name, own in variants(family, entry or {}):
            if name in methods or (name != family and name in config["methods"]):
                raise InputError(f"methods.{family}: its sweep makes a second method named {name}; rename one of them")
            recipe = methods[name] = complete(own, config)
            if recipe.get("budget") is not None:
                check_budget(name, own, recipe, {key: config["calibration"][key] for key in keys.OF_CALIBRATION})
            check_recipe(name, own, recipe)
            methods[name] = keys.without_idle(recipe)
            families[family].append(name)
    for family, names in families.items():
        check_sweep(family, {name: methods[name] for name in names}, config["calibration"]["shuffle"])
    return methods, families


def load(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A checked copy of the merged configuration, with defaults, full recipes, and lists in `study`.

    Raises InputError with one line: what was found, where, what to write instead.
    """
    config, schema = copy.deepcopy(config), with_recipes(schema)
    problem = first_error(config, schema)
    if problem:
        raise InputError(problem)
    fill_defaults(config, schema, schema)
    name_texts(config)
    config["methods"], families, config["candidates"] = with_candidates(*recipes(config))
    check_names(config)
    config["study"]["methods"] = spread(config["study"]["methods"], families)
    added = config["study"].pop("add")
    added["methods"] = spread(added["methods"], families)
    config["study"] |= {
        table: select(config, table, added[table]) for table in ("models", "datasets", "methods", "tasks")
    }
    config["study"]["task_methods"] = task_methods(config, families)
    config["study"]["gguf"] = spread(config["study"]["gguf"], families)
    for name in config["study"]["gguf"]:
        check_gguf(name, config["study"]["methods"], config["methods"])
    check_words(config)
    split_shared(config)
    for name in config["study"]["methods"]:
        check_study_method(name, config["methods"][name])
    check_sensitivity(config, families)
    # sweeps only: what their curves are drawn from
    config["families"] = {family: names for family, names in families.items() if names != [family]}
    return in_order(config, schema, schema) | {"methods": config["methods"]}


def check_words(config: dict[str, Any]) -> None:
    name = config["words"]["task"]
    if name is not None and name not in config["tasks"]:
        raise InputError(f"words.task: no entry {name!r} in tasks; {nearest_of(name, list(config['tasks']))}")


def task_methods(config: dict[str, Any], families: dict[str, list[str]]) -> list[str]:
    """Those of study.task_methods that the study runs, in its order; all where it runs none of them. Refuses what is no
    method."""
    run, wanted = config["study"]["methods"], spread(config["study"]["task_methods"], families)
    for name in () if wanted == "all" else wanted:
        if name not in config["methods"]:
            raise InputError(
                f"study.task_methods: no entry {name!r} in methods; {nearest_of(name, list(config['methods']))}"
            )
    return [name for name in run if name in wanted] or run


def check_sensitivity(config: dict[str, Any], families: dict[str, list[str]]) -> None:
    """Spreads sweeps in sensitivity.methods; refuses methods that have no parts, and data sets that do not run."""
    options = config["sensitivity"]
    options["methods"] = spread(options["methods"], families)
    for name in options["methods"]:
        if name not in config["methods"]:
            raise InputError(
                f"sensitivity.methods: no entry {name!r} in methods; {nearest_of(name, list(config['methods']))}"
            )
        recipe = config["methods"][name]
        library = library_of(recipe)
        if library is not None or recipe["scope"] != "linear":
            found = f"scope: {recipe['scope']}" if library is None else f"the {library.title} library"
            why = "may move" if library is not None else "moves"
            raise InputError(
                f"sensitivity.methods: {name} is {found}, which {why} scales into other weights, so that a part of it "
                "is no part of the model; name recipes with scope: linear"
            )
    valid = ["first", *config["study"]["datasets"]]
    if options["dataset"] not in valid:
        raise InputError(
            f"sensitivity.dataset: the study runs no {options['dataset']!r}; {nearest_of(options['dataset'], valid)}"
        )


def check_recipe(name: str, entry: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuses what a method's own entry sets to no effect; recipe: the same entry completed."""
    known = {key: each.default for key, each in keys.keys_of(recipe).items() if key not in keys.OF_CALIBRATION}
    for key in sorted(entry.keys() & known.keys()):
        if not keys.has_effect(key, recipe) and entry[key] != known[key]:
            other, values = keys.needed(key, keys.keys_of(recipe))
            choices = "" if values is None else f" to {' or '.join(map(shown, values))}"
            raise InputError(
                f"methods.{name}: {key} has no effect with {other}: {shown(recipe[other])}; set {other}{choices}, or "
                f"leave {key} out"
            )
    if "algorithm" in recipe:
        return
    check_format(name, entry, recipe)
    check_types(name, entry, recipe)
    for key in ("reconstruct", "tune"):
        if recipe[key] is not None:
            check_codes(name, key, recipe)
    if recipe["activations"] != "none" and keys.has_effect("activations", recipe):
        check_codes(name, "activations", recipe)
    if recipe["embeddings"] is not None and CHANNELS in ROUNDINGS[recipe["rounding"]].reads:
        raise InputError(
            f"methods.{name}: embeddings and rounding: {recipe['rounding']} do not go together, since an embedding has "
            "no inputs' means; use another rounding, or leave embeddings out"
        )
    if recipe["row_feedback"] and keys.has_effect("row_feedback", recipe) and recipe["parts"] > 1:
        raise InputError(
            f"methods.{name}: row_feedback and parts: {recipe['parts']} do not go together, since rows that hear "
            "of each other are rounded by one moment; leave one of them out"
        )
    try:
        re.compile(recipe["row_linears"])
    except re.error as error:
        raise InputError(f"methods.{name}: row_linears is no regular expression ({error}); mend it") from None
    moment = recipe["moment"]
    if moment not in keys.WEIGHTED:
        return
    if recipe["inputs"] == "sequential" and moment != "end_loss":
        raise InputError(
            f"methods.{name}: moment: {moment} and inputs: sequential do not go together, since it is the original's; "
            "write moment: end_loss, or leave one of them out"
        )
    if recipe["noise_std"] and keys.has_effect("noise_std", recipe):
        raise InputError(
            f"methods.{name}: noise_std and moment: {moment} do not go together, since noisy means are not weighted; "
            "leave one of them out"
        )
    if MOMENT not in keys.reads(recipe) and not recipe["clip"]:
        readers = " or ".join(reader for reader, choice in ROUNDINGS.items() if MOMENT in choice.reads)
        raise InputError(
            f"methods.{name}: moment: {moment} is read by no part of it; set a salience, clip: true, or rounding: "
            f"{readers}"
        )


def check_format(name: str, entry: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuses what a number format does not have."""
    own, found = fixed(recipe["format"]), f"format: {recipe['format']}"
    for key in sorted(own.keys() & entry.keys()):
        if entry[key] not in own[key]:
            raise InputError(
                f"methods.{name}: {key}: {shown(entry[key])} and {found} do not go together, since it has {key}: "
                f"{' or '.join(map(shown, own[key]))}; leave {key} out"
            )
    if not own:
        return
    blocks = recipe["format"] == "fp8" and recipe["group_size"] > 0
    for key, wrong, why in (
        ("budget", recipe["budget"] is not None, "a budget chooses among whole numbers of several widths"),
        ("search_bits", bool(recipe["search_bits"]), "it has one width"),
        (
            "reconstruct",
            recipe["reconstruct"] is not None and recipe["format"] not in MOVABLE,
            f"it tunes codes of {', '.join(MOVABLE)}",
        ),
        ("scope", blocks and recipe["scope"] == "shared", "scales that fold differ within the rows of a block"),
        ("row_feedback", blocks and bool(recipe["row_feedback"]), "the rows of a block share a step"),
        ("parts", blocks and recipe["parts"] > 1, "the rows of a block are rounded by one moment"),
    ):
        if wrong:
            where = f"{found} in blocks" if blocks else found
            raise InputError(f"methods.{name}: {key} and {where} do not go together, since {why}; leave {key} out")


def check_types(name: str, entry: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuses grids of some linears, or of the embedding, that cannot be."""
    given = [(f"tensor_types: {each['linears']}", each) for each in recipe["tensor_types"] or ()]
    for where, each in given:
        try:
            re.compile(each["linears"])
        except re.error as error:
            raise InputError(f"methods.{name}.{where}: is no regular expression ({error}); mend it") from None
        if not each["linears"]:
            raise InputError(f"methods.{name}.tensor_types: linears: '' is every linear; write a part of their names")
        if each["format"] not in MOVABLE and recipe["reconstruct"] is not None:
            check_format(name, {}, recipe | each)
    given += [("embeddings", entry.get("embeddings") or {})]
    for where, each in given:
        for key, own in fixed(each.get("format") or INT).items():
            if each.get(key, own[0]) not in own:
                raise InputError(
                    f"methods.{name}.{where}: {key}: {shown(each[key])} and format: {each['format']} do not go "
                    f"together, since it has {key}: {' or '.join(map(shown, own))}; leave {key} out"
                )


def check_sweep(family: str, methods: dict[str, dict[str, Any]], shuffle: bool) -> None:
    """Refuses a sweep in which a value changes no weight: its methods would be one, measured twice. shuffle:
    calibration's, without which the seed draws no sequences."""
    seen: dict[str, str] = {}
    for name, recipe in methods.items():
        drawn = keys.draws(recipe) or (shuffle and keys.statistics_files(recipe))
        weights = {key: value for key, value in recipe.items() if key != "seed" or drawn}
        twin = seen.setdefault(repr(weights), name)
        if twin != name:
            raise InputError(
                f"methods.{family}: {twin} and {name} have the same weights, since what differs has no effect on "
                "them; take it out of the list" + ("" if drawn else " (a seed draws nothing here)")
            )


def check_study_method(name: str, recipe: dict[str, Any]) -> None:
    """Refuses what `defaults` gives to a method that is a library, or `calibration` to a recipe, and it cannot do."""
    if (library := library_of(recipe)) is None:
        if recipe["tune"] is not None and recipe["n_calib"] == 1:
            raise InputError(f"methods.{name}: tune holds a sequence out, of n_calib: 1; write 2 or more, or no tune")
        return
    for key, one in library.keys.items():
        value = recipe[key]
        if Draft202012Validator(one.schema()).is_valid(value):
            continue
        wanted = " or ".join(map(shown, one.values or (one.default,)))
        wanted = "64 or another size that divides the model's inputs" if key == "group_size" else wanted
        raise InputError(
            f"methods.{name}: {library.title} cannot do {key}: {shown(value)}, which defaults give it; write {key}: "
            f"{wanted} in its own entry"
        )


def model_files(source: dict[str, Any]) -> list[str]:
    """Files that a model's conversion reads: a wheel that a rule fetches, a GGUF file, or a directory's own files."""
    gguf = source.get("gguf", {})
    if "package" in gguf:
        return ["results/sources/{package}-{version}.whl".format(**gguf)]
    if "path" in gguf:
        return [gguf["path"]]
    if "hub" in source:
        return []
    folder = Path(source["directory"])
    # where it is not there, Snakemake says so
    return sorted(str(file) for file in folder.iterdir() if file.is_file()) if folder.is_dir() else [str(folder)]


def instead(path: str, wanted: str) -> str:
    """What is at a path in place of a file or a directory."""
    found = "is a directory" if Path(path).is_dir() else "is a file" if Path(path).is_file() else f"no such {wanted}"
    return f"{path}: {found}"


def check_files(config: dict[str, Any]) -> None:
    """Refuses a study whose local models or texts are not there, or whose paths Snakemake would take for patterns."""
    for name in config["study"]["models"]:
        source = config["models"][name]["source"]
        if "directory" in source and not Path(source["directory"]).is_dir():
            raise InputError(
                f"models.{name}: {instead(source['directory'], 'directory')}; give the path of a model directory"
            )
        gguf = source.get("gguf", {}).get("path")
        if gguf is not None and not Path(gguf).is_file():
            raise InputError(f"models.{name}: {instead(gguf, 'file')}; give the path of a GGUF file")
        for path in model_files(source):
            check_input(path, f"models.{name}: ")
    for name, path in config["environments"].items():
        if not Path(path).exists():
            raise InputError(f"environments.{name}: {path}: no such file or directory; name one, or leave it out")
    written = config.get("words", {}).get("task")
    for name in dict.fromkeys([*config["study"].get("tasks", ()), *([written] if written else [])]):
        if "lm_eval" in config["tasks"][name]:
            lm_eval_names.check_name(config["tasks"][name]["lm_eval"], f"tasks.{name}")
        if path := config["tasks"][name].get("yaml"):
            task_yaml.check(path, f"tasks.{name}")
            for file in task_yaml.data_files(path):
                if not Path(file).is_file():
                    raise InputError(f"tasks.{name}: {file}: no such file; name what stands beside the task file")
                check_input(file, f"tasks.{name}: ")
    own = calibration_texts(config["calibration"])
    users = [("calibration.mix" if i else "calibration.text", text) for i, text in enumerate(own)]
    users += [(f"datasets.{name}.text", config["datasets"][name]["text"]) for name in config["study"]["datasets"]]
    for where, text in users:
        for path in text.get("files", []):
            if not Path(path).is_file():
                raise InputError(f"{where}: {instead(path, 'file')}; name a UTF-8 text file")
            check_size(path)
            check_input(path, f"{where}: ")
