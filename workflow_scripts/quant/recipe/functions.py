"""The function that an entry of quant.recipe.choices names, found by its module so that a job depends on those of its
recipe alone: `tracking.code_of` is told which."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from quant.errors import InputError


def function_of(kind: str, name: str, parameters: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function `name` of quant/recipe/{kind}/{name}.py with its parameters, which are its keyword-only arguments;
    None for none. kind: saliences, roundings or scores."""
    if name == "none":
        return None
    function = getattr(importlib.import_module(f"quant.recipe.{kind}.{name}"), name)
    wanted = [each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    if missing := [key for key in wanted if key not in parameters]:
        raise InputError(
            f"quant/recipe/{kind}/{name}.py: {name} wants {missing[0]}, which is no key of a recipe; write it in "
            f"its entry of quant/recipe/choices.py"
        )
    return partial(function, **{key: parameters[key] for key in wanted})
