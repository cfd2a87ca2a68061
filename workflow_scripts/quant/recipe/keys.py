"""The keys of a recipe: their defaults, when a key has an effect, and which files it makes a recipe read."""

from typing import Any

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


def has_effect(key: str, recipe: dict[str, Any]) -> bool:
    """Whether a recipe's value of `key` reaches its weights, given its other keys."""
    if key == "n_noise_samples":
        return bool(recipe.get("noise_std"))
    other, values = NEEDS.get(key, ("", ()))
    return not other or recipe.get(other) in values


def without_idle(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the built-in value of every key that has no effect on it, so that a change there changes nothing.

    n_calib is None where no statistics are read.
    """
    if "algorithm" in recipe:
        return recipe
    settled = {key: value if has_effect(key, recipe) else RECIPE_DEFAULTS[key] for key, value in recipe.items()}
    return settled if statistics_files(recipe) else settled | {"n_calib": None}


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
