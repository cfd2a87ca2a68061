"""What a study demands of a model, by the keys that say so; quant.methods.refusals holds it against the model."""

from typing import Any

from quant.errors import InputError
from quant.recipe import keys

LIMITS = ("max_bits_per_weight", "max_size_mb")


def demands(config: dict[str, Any], default_limits: dict[str, Any]) -> dict[str, Any]:
    """Of a loaded configuration; limits as nobody wrote them (default_limits) demand nothing.

    No more than what counts, so that another value of a method's parameter is no reason to check again.
    """
    names = dict.fromkeys([*config["study"]["methods"], *config["sensitivity"]["methods"]])
    recipes = {name: config["methods"][name] for name in sorted(names)}
    own = {name: recipe for name, recipe in recipes.items() if "algorithm" not in recipe}
    layer = config["check_mse"]["layer"]
    limits = {key: config["choose"][key] for key in LIMITS if config["choose"][key] not in (None, default_limits[key])}
    limits = {} if config["study"]["gguf"] else limits  # what a GGUF file takes is known once it is there
    return {
        "layers": {"check_mse.layer": [layer] * (layer is not None), "deep_dive.layers": config["deep_dive"]["layers"]},
        "seq_len": {
            "calibration.seq_len": config["calibration"]["seq_len"],
            **{f"datasets.{name}.seq_len": config["datasets"][name]["seq_len"] for name in config["study"]["datasets"]},
        },
        "jacobian": [name for name, recipe in own.items() if "jacobian" in (recipe["moment"], recipe["objective"])],
        "shared": [name for name, recipe in own.items() if recipe["scope"] == "shared"],
        "sequential": [name for name, recipe in own.items() if recipe["inputs"] == "sequential"],
        "noisy": [name for name, recipe in own.items() if "noisy" in keys.statistics_files(recipe)],
        "activations": {name: recipe for name, recipe in own.items() if recipe["activations"] != "none"},
        "gguf": {name: own[name] for name in config["study"]["gguf"] if name in own},
        "library": {
            name: {key: recipe[key] for key in ("algorithm", "group_size", "clip") if key in recipe}
            for name, recipe in recipes.items()
            if "algorithm" in recipe
        },
        "embeddings": {name: recipe["embeddings"] for name, recipe in own.items() if recipe["embeddings"]},
        "types": {
            name: [each["linears"] for each in recipe["tensor_types"]]
            for name, recipe in own.items()
            if recipe["tensor_types"]
        },
        "budgets": {name: recipe for name, recipe in own.items() if recipe["budget"] is not None},
        "limits": limits,
        "moments": config["moments"],
        "recipes": {name: own[name] for name in config["study"]["methods"] if name in own} if limits else {},
    }


def refuse(model: str, found: list[str]) -> None:
    """All mistakes in one message."""
    if found:
        count = f"{len(found)} things" if len(found) > 1 else "one thing"
        raise InputError(
            f"the study asks {model} for {count} that cannot be: "
            + "; ".join(f"({i}) {line}" for i, line in enumerate(found, 1))
        )
