"""config.yaml: checked against its schema, defaults filled in, recipes completed; every mistake in one line."""

import copy
import difflib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from quant.errors import InputError

RECIPE_DEFAULTS: dict[str, Any] = {
    "salience": "none",
    "noise_std": 0.0,
    "n_noise_samples": 3,
    "bits": 4,
    "group_size": 128,
    "symmetric": False,
    "clip": False,
    "n_grid": 20,
    "objective": "uniform",
    "moment": "plain",
    "residual": False,
    "plain_share": 0.0,
    "scope": "linear",
    "rounding": "nearest",
    "outlier_percent": 0.05,
    "damp": 0.01,
    "keep": "none",
    "keep_ratio": 0.5,
    "beta": 3.0,
    "tau": -3.0,
    "noise_factor": 0.2,
    "noise_injection": 0.0,
}

# of a method that is the AutoAWQ library; what else it does is its own
AUTOAWQ_DEFAULTS: dict[str, Any] = {"bits": 4, "group_size": 128, "clip": True}

# keys that do nothing unless another key has one of these values: said so instead of ignored
NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "n_grid": ("salience", ("l1", "l2", "praq")),
    "noise_std": ("salience", ("l1", "l2", "praq")),
    "objective": ("salience", ("l1", "l2", "praq")),
    "scope": ("salience", ("l1", "l2", "praq")),
    "residual": ("moment", ("jacobian",)),
    "plain_share": ("moment", ("jacobian",)),
    "outlier_percent": ("rounding", ("greedy_flip",)),
    "damp": ("rounding", ("gptq",)),
    "keep_ratio": ("keep", ("awq", "praq")),
    "beta": ("keep", ("praq",)),
    "tau": ("keep", ("praq",)),
    "noise_factor": ("keep", ("praq",)),
}
RESERVED = {
    *(
        "original",
        "figures",
        "logs",
        "benchmarks",
        "sources",
        "calibration",
        "datasets",
        "best",
        "check_mse",
        "analysis",
    ),
}


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A schema with its $ref followed; keys beside the $ref win."""
    if "$ref" not in schema:
        return schema
    target = root
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return resolve(target, root) | {key: value for key, value in schema.items() if key != "$ref"}


def fill_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> None:
    """Puts the schema's defaults into the objects of `value`, in place."""
    schema = resolve(schema, root)
    if not isinstance(value, dict):
        return
    for key, part in schema.get("properties", {}).items():
        part = resolve(part, root)
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
        if key in value:
            fill_defaults(value[key], part, root)
    if isinstance(schema.get("additionalProperties"), dict):
        for entry in value.values():
            fill_defaults(entry, schema["additionalProperties"], root)


def nearest_of(found: Any, valid: list[Any]) -> str:
    """`; did you mean X?` or the list of what is valid."""
    close = difflib.get_close_matches(str(found), [str(item) for item in valid], n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "valid: " + ", ".join("null" if item is None else str(item) for item in valid)


def explain(error: ValidationError) -> str:
    """One line for a schema violation: where, what was found, what to write instead."""
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    found = repr(error.instance) if len(repr(error.instance)) < 80 else repr(error.instance)[:77] + "..."
    match error.validator:
        case "additionalProperties":
            valid = sorted(error.schema["properties"])
            key = next(key for key in error.instance if key not in error.schema["properties"])
            owner = error.schema.get("title") if error.absolute_path else None
            found = f"{owner} has no {key!r}" if owner else f"unknown key {key!r}"
            return f"{where}: {found}; {nearest_of(key, valid)}"
        case "enum":
            return f"{where}: {found}; {nearest_of(error.instance, error.validator_value)}"
        case "required":
            key = next(key for key in error.validator_value if key not in error.instance)
            return f"{where}: lacks {key!r}, which it needs"
        case "type":
            wanted = error.validator_value
            return f"{where}: {found} is not of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            sign = {
                "minimum": "at least",
                "exclusiveMinimum": "more than",
                "maximum": "at most",
                "exclusiveMaximum": "less than",
            }
            return f"{where}: {found} must be {sign[error.validator]} {error.validator_value}"
        case "pattern":
            return f"{where}: {found} is not of the form {error.validator_value}"
        case "oneOf" if "const" in error.schema["oneOf"][0]:
            rest = error.schema["oneOf"][1]
            other = "a list of different names" if rest.get("type") == "array" else f"at least {rest['minimum']}"
            return f"{where}: {found} must be {error.schema['oneOf'][0]['const']} or {other}"
        case "oneOf" | "minProperties" | "maxProperties":
            keys = ", ".join(error.schema.get("properties", {})) or "an entry"
            return (
                f"{where}: {found} must hold exactly one of: {keys}"
                if error.validator != "oneOf"
                else (f"{where}: {found} must hold either path, or package, version, sha256 and member")
            )
        case _:
            return f"{where}: {error.message.splitlines()[0]}"


def first_error(config: Any, schema: dict[str, Any]) -> str | None:
    """The first violation in file order, as one line; None where there is none."""
    errors = sorted(
        Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.absolute_path))
    )
    return explain(errors[0]) if errors else None


def in_order(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The same value with its keys in the schema's order, names by the alphabet, however the file had them.

    Snakemake compares parameters by their repr, so an order that means nothing must not show.
    """
    if not isinstance(value, dict):
        return value
    schema = resolve(schema, root)
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    keys = [*(key for key in known if key in value), *sorted(value.keys() - known.keys())]
    others = others if isinstance(others, dict) else {}
    return {key: in_order(value[key], known.get(key, others), root) for key in keys}


def select(config: dict[str, Any], table: str) -> list[str]:
    """The names of a table that the study runs."""
    wanted = config["study"][table]
    names = list(config[table])
    if wanted == "all":
        return names
    for name in wanted:
        if name not in names:
            raise InputError(f"study.{table}: no entry {name!r} in {table}; {nearest_of(name, names)}")
    return list(wanted)


def name_texts(config: dict[str, Any]) -> None:
    """Puts each text's source in the place of its name, so that a job's parameters hold what it reads."""
    users = {"calibration": config["calibration"]} | {f"datasets.{k}": v for k, v in config["datasets"].items()}
    for where, user in users.items():
        if user["text"] not in config["texts"]:
            raise InputError(
                f"{where}.text: no entry {user['text']!r} in texts; {nearest_of(user['text'], list(config['texts']))}"
            )
        user["text"] = config["texts"][user["text"]]


def spread(wanted: str | list[str], families: dict[str, list[str]]) -> str | list[str]:
    """A selection in which each sweep's name stands for all of its methods."""
    if wanted == "all":
        return wanted
    return list(dict.fromkeys(name for chosen in wanted for name in families.get(chosen, [chosen])))


def check_names(config: dict[str, Any]) -> None:
    """Refuses names that the results directory uses itself, and names that differ only in case."""
    for table in ("models", "datasets", "methods"):
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
    """A method's recipe with every key, sorted: its own values, then `defaults`, then the built-in ones."""
    common = {key: config["calibration"][key] for key in ("n_calib", "seed")}
    if "algorithm" in entry:
        known = AUTOAWQ_DEFAULTS | common
        return dict(sorted((known | {k: v for k, v in config["defaults"].items() if k in known} | entry).items()))
    return dict(sorted((RECIPE_DEFAULTS | common | config["defaults"] | entry).items()))


def without_idle(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the built-in value of every key that has no effect on it, so that a change there changes nothing.

    n_calib is None where no statistics are read.
    """
    if "algorithm" in recipe:
        return recipe
    settled = {key: value if has_effect(key, recipe) else RECIPE_DEFAULTS[key] for key, value in recipe.items()}
    return settled if statistics_files(recipe) else settled | {"n_calib": None}


def variants(name: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method, or, where values are lists, one method for each combination, named by what varies."""
    swept = [key for key, value in entry.items() if isinstance(value, list)]
    if not swept:
        yield name, entry
    for values in product(*(entry[key] for key in swept) if swept else ()):
        chosen = dict(zip(swept, values, strict=True))
        if chosen:
            label = "-".join(f"{key}{value}" for key, value in chosen.items())
            yield f"{name}-{label}", entry | chosen


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
            if "algorithm" not in recipe:
                check_recipe(name, own, recipe)
                methods[name] = without_idle(recipe)
            families[family].append(name)
    return methods, families


def load(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A checked copy of the merged configuration, with defaults, full recipes, and lists in `study`.

    Raises InputError with one line: what was found, where, what to write instead.
    """
    config = copy.deepcopy(config)
    problem = first_error(config, schema)
    if problem:
        raise InputError(problem)
    fill_defaults(config, schema, schema)
    name_texts(config)
    config["methods"], families = recipes(config)
    check_names(config)
    config["study"]["methods"] = spread(config["study"]["methods"], families)
    config["study"] |= {table: select(config, table) for table in ("models", "datasets", "methods")}
    for name in config["study"]["methods"]:
        check_library(name, config["methods"][name])
    check_sensitivity(config, families)
    # sweeps only: what their curves are drawn from
    config["families"] = {family: names for family, names in families.items() if names != [family]}
    return in_order(config, schema, schema) | {"methods": config["methods"]}


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
        if "algorithm" in recipe or recipe["scope"] != "linear":
            found = "the AutoAWQ library" if "algorithm" in recipe else f"scope: {recipe['scope']}"
            raise InputError(
                f"sensitivity.methods: {name} is {found}, which moves scales into other weights, so that a part of it "
                "is no part of the model; name recipes with scope: linear"
            )
    valid = ["first", *config["study"]["datasets"]]
    if options["dataset"] not in valid:
        raise InputError(
            f"sensitivity.dataset: the study runs no {options['dataset']!r}; {nearest_of(options['dataset'], valid)}"
        )


def has_effect(key: str, recipe: dict[str, Any]) -> bool:
    """Whether a recipe's value of `key` reaches its weights, given its other keys."""
    if key == "n_noise_samples":
        return bool(recipe.get("noise_std"))
    other, values = NEEDS.get(key, ("", ()))
    return not other or recipe.get(other) in values


def check_recipe(name: str, entry: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuses what a method's own entry sets to no effect; recipe: the same entry completed."""
    for key in entry.keys() & NEEDS.keys():
        other, values = NEEDS[key]
        if not has_effect(key, recipe) and entry[key] != RECIPE_DEFAULTS[key]:
            choices = " or ".join(map(str, values))
            raise InputError(
                f"methods.{name}: {key} has no effect with {other}: {recipe[other]}; set {other} to {choices}, "
                f"or leave {key} out"
            )
    if recipe["n_noise_samples"] != RECIPE_DEFAULTS["n_noise_samples"] and not has_effect("n_noise_samples", recipe):
        raise InputError(
            f"methods.{name}: n_noise_samples has no effect with noise_std: 0; set noise_std, or leave it out"
        )
    if recipe["moment"] == "jacobian" and recipe["noise_std"]:
        raise InputError(
            f"methods.{name}: noise_std and moment: jacobian do not go together, since noisy means are not weighted; "
            "leave one of them out"
        )
    reads_moment = recipe["salience"] != "none" or recipe["rounding"] == "gptq" or recipe["clip"]
    if recipe["moment"] == "jacobian" and not reads_moment:
        raise InputError(
            f"methods.{name}: moment: jacobian is read by no part of it; set a salience, clip: true, or rounding: gptq"
        )


def check_library(name: str, recipe: dict[str, Any]) -> None:
    """Refuses what `defaults` gives to a method of the AutoAWQ library and it cannot do."""
    if "algorithm" not in recipe:
        return
    for key, possible, wanted in (
        ("bits", recipe["bits"] == 4, "bits: 4"),
        ("group_size", recipe["group_size"] > 0, "group_size: 64 or another size that divides the model's inputs"),
    ):
        if not possible:
            raise InputError(
                f"methods.{name}: AutoAWQ cannot do {key}: {recipe[key]}, which defaults give it; write {wanted} in "
                "its own entry"
            )


def statistics_files(recipe: dict[str, Any]) -> dict[str, str]:
    """The statistics that a recipe reads, by name, as files of its calibration set; none where it rounds only.

    A library takes the tokens themselves.
    """
    folder = f"calibration/n{recipe['n_calib']}-s{recipe['seed']}"
    if "algorithm" in recipe:
        return {"tokens": f"{folder}/tokens.safetensors"}
    searches = recipe["salience"] != "none"
    files = {}
    if searches or recipe["clip"] or recipe["rounding"] == "greedy_flip" or recipe["keep"] != "none":
        files["channels"] = "channels.safetensors"
    if searches or recipe["rounding"] == "gptq":
        files["moments"] = "second_moments.safetensors"
    if recipe["noise_std"]:
        files["noisy"] = "noisy-{noise_std:g}x{n_noise_samples}.safetensors".format(**recipe)
    jacobian = f"jacobian{'_residual' if recipe['residual'] else ''}.safetensors"
    files |= {"weighted": jacobian} if recipe["moment"] == "jacobian" else {}
    files |= {"row_weight": jacobian} if recipe["objective"] == "jacobian" else {}
    return {key: f"{folder}/{name}" for key, name in files.items()}


def calibration_files(recipe: dict[str, Any]) -> dict[str, str]:
    """Its statistics, and the tokens that they must be of."""
    files = statistics_files(recipe)
    tokens = f"calibration/n{recipe['n_calib']}-s{recipe['seed']}/tokens.safetensors"
    return {"tokens": tokens} | files if files else {}


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


def check_files(config: dict[str, Any]) -> None:
    """Refuses a study whose local models or texts are not there."""
    for name in config["study"]["models"]:
        source = config["models"][name]["source"]
        if "directory" in source and not Path(source["directory"]).is_dir():
            raise InputError(
                f"models.{name}: {source['directory']}: no such directory; give the path of a model directory"
            )
        gguf = source.get("gguf", {}).get("path")
        if gguf is not None and not Path(gguf).is_file():
            raise InputError(f"models.{name}: {gguf}: no such file; give the path of a GGUF file")
    users = {"calibration": config["calibration"]}
    users |= {f"datasets.{name}": config["datasets"][name] for name in config["study"]["datasets"]}
    for where, user in users.items():
        for path in user["text"].get("files", []):
            if not Path(path).is_file():
                raise InputError(f"{where}.text: {path}: no such file; name a UTF-8 text file")
