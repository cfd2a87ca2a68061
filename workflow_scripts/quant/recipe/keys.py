"""The keys of a recipe, each once: type, default, bounds, words, when it has an effect, and which files a recipe reads.

The schema, the words in config.yaml and docs/keys.md come from here (quant/workflow/recipe_schema.py).
"""

from collections.abc import Mapping
from typing import Any

from quant.recipe.choices import CHANNELS, CHOICES, MOMENT, RANDOM, ROUNDINGS, SALIENCES, SCORES, chosen, own_keys
from quant.recipe.formats import BY_TOKEN, EMBEDDED, FORMATS, INT, fixed
from quant.recipe.key import Key
from quant.recipe.libraries import library_of
from quant.recipe.widths import CANDIDATES, UNTOUCHED

WEIGHTED = ("jacobian", "end_loss")  # moments of weighted tokens
ROW_MOMENTS = ("end_loss", "attention")


def table() -> dict[str, Key]:
    """Every key, in the order of the schema; those of the choices stand after the key that chooses."""
    searched, kept, noisy, weighted = ("salience", None), ("keep", None), ("noise_std", None), ("moment", WEIGHTED)
    return {
        "salience": Key("none", "what makes an input channel important (none: no scale search)", tuple(SALIENCES)),
        **own_keys("salience"),
        "noise_std": Key(0.0, "noise on the inputs in units of their std, for Robust-PRAQ", minimum=0, when=searched),
        "n_noise_samples": Key(3, "draws that each of its expectations is averaged over", minimum=1, when=noisy),
        "format": Key(
            INT,
            "number format of the codes; int: whole numbers; nvfp4: E2M1 in groups of 16 with E4M3 steps; mxfp4: E2M1 "
            "in groups of 32 with powers of two; fp8: E4M3 per channel, or with group_size 128 in blocks of 128 by "
            "128; int8: per channel, a byte each; nf4: quantiles of the normal distribution; iq4_nl, q3_k: llama.cpp's "
            "for a GGUF export, 4.5 and 3.44 bits a weight there; all but int have bits and symmetry of their own",
            tuple(FORMATS),
        ),
        "activations": Key(
            "none",
            "dynamic: inputs of linears are rounded too as they run, to the weights' format, by each token's largest "
            "(blocks: by that of 128 inputs); transformers simulates it, vLLM has products for it",
            ("none", "dynamic"),
            when=("format", BY_TOKEN),
        ),
        "bits": Key(4, "bits of a code", (2, 3, 4, 8), when=("budget", (None,))),
        "group_size": Key(128, "inputs that share a range; -1: one range per output channel", minimum=1, apart=-1),
        "symmetric": Key(False, "true: codes about 0; false: a range with a zero point"),
        "tensor_types": Key(
            None,
            "linears on another grid than the rest: a linear takes the first entry whose pattern is found in its name",
            items={
                "linears": Key("", "a regular expression: mlp.down_proj"),
                "format": Key(None, "the recipe's where it is left out", tuple(FORMATS)),
                "bits": Key(None, "the format's, else the recipe's, where it is left out", (2, 3, 4, 8)),
                "group_size": Key(None, "the same", minimum=1, apart=-1),
            },
            when=("budget", (None,)),
        ),
        "clip": Key(False, "true: shrink each range to where its weighted error is least"),
        "n_grid": Key(20, "α is searched in {0, 1/n_grid, …, 1}", minimum=1, maximum=1000, when=searched),
        "search_bits": Key(
            0,
            "bits for which the scale is searched; 0: its own; a budget's candidates share one",
            (0, 2, 3, 4, 8),
            when=searched,
        ),
        "search_group_size": Key(
            0,
            "group_size for which the scale is searched; 0: its own; a budget's candidates share one",
            minimum=-1,
            when=searched,
        ),
        "objective": Key(
            "uniform", "whose error counts in that search", ("uniform", "praq", "jacobian"), when=searched
        ),
        "moment": Key(
            "plain",
            "what is minimised; jacobian weighs tokens by what their error does after the activation, end_loss by what "
            "it costs the model's predictions",
            ("plain", *WEIGHTED),
        ),
        "residual": Key(False, "true: weighs tokens by their residual's size too", when=("moment", ("jacobian",))),
        "parts": Key(1, "parts of a linear's outputs that have a moment each", (1, 4), when=("moment", ("end_loss",))),
        "plain_share": Key(
            0.0,
            "share of the plain moment in the weighted one, since an error of a step is not small enough for a "
            "derivative alone",
            minimum=0,
            maximum=1,
            when=weighted,
        ),
        "scope": Key(
            "linear",
            "a scale for each linear; or one for those that read the same input, folded into the operation before, so "
            "that the checkpoint needs no scales of its own",
            ("linear", "shared"),
            when=searched,
        ),
        "rounding": Key("nearest", "how a weight finds its grid point", tuple(ROUNDINGS)),
        **own_keys("rounding"),
        "row_feedback": Key(
            0.0,
            "rows are rounded together, each taking up what the others' errors do; the share of that in what they are "
            "rounded by, 0.7 is good; 0: each for itself",
            minimum=0,
            below=1,
            when=("rounding", ("gptq",)),
        ),
        "row_moment": Key(
            "end_loss",
            "to what they do it; end_loss: to the model's predictions, by a pass back through it; attention: to the "
            "weights of attention, by a short pass, of the linears alone that these depend on (q and k)",
            ROW_MOMENTS,
            when=("row_feedback", None),
        ),
        "row_linears": Key(
            "",
            "a regular expression: the linears whose rows are rounded together, q_proj|k_proj; all where it is empty",
            when=("row_feedback", None),
        ),
        "refine": Key(
            0,
            "rounds of better codes (coordinate descent) and better steps (least squares) after rounding; 3 are enough",
            minimum=0,
            maximum=100,
        ),
        "inputs": Key(
            "parallel",
            "what a linear is quantised for: what it gets in the original, or in the model quantised so far, which is "
            "run over the calibration tokens",
            ("parallel", "sequential"),
        ),
        "correction": Key(
            0.0,
            "share of the earlier linears' damage that a linear takes back; 0.5 is best",
            minimum=0,
            maximum=1,
            when=("inputs", ("sequential",)),
        ),
        "reconstruct": Key(
            None,
            "{}: once a block's linears are rounded, their codes and steps are tuned together so that its output comes "
            "near to the original's; needs inputs: sequential",
            keys={
                "iterations": Key(64, "in each block", minimum=1, maximum=10000),
                "batch": Key(8, "sequences in each", minimum=1),
                "code_rate": Key(0.25, "how far a weight may move in all, in steps", minimum=0, maximum=100),
                "step_rate": Key(0.005, "Adam's, of a step's logarithm", minimum=0, maximum=1),
            },
            when=("inputs", ("sequential",)),
        ),
        "tune": Key(
            None,
            "{}: steps and norms tuned so that predictions come near to the original's on the calibration text; codes "
            "stay, and what serves the part held out best is kept, the start included",
            keys={
                "epochs": Key(4, "passes over the text", minimum=1, maximum=1000),
                "rate": Key(0.002, "AdamW's", above=0, maximum=1),
                "batch": Key(8, "sequences a step", minimum=1),
                "held_out": Key(0.125, "share of the sequences held out", above=0, maximum=0.5),
            },
        ),
        "budget": Key(
            None,
            "{bits_per_weight: 3.5} or {size_mb: 90}: each linear gets the candidate with which the model is damaged "
            "least, by the end loss, within that; with inputs: sequential or tune the candidate's width, and the model "
            "is then quantised with these",
            keys={
                "bits_per_weight": Key(0.0, "of the linears, as they are stored; 0: no limit", minimum=0),
                "size_mb": Key(0.0, "of the whole file, 10⁶ bytes; 0: no limit", minimum=0),
            },
        ),
        "candidates": Key(
            None,
            "what a linear may get: the recipe at these bits; 2, 3, 4, 8 and 16 where it is left out",
            items={
                "bits": Key(4, "16: as it is", (2, 3, 4, 8, 16)),
                "group_size": Key(None, "the recipe's where it is left out", minimum=1, apart=-1),
            },
            when=("budget", None),
        ),
        "swaps": Key(
            None,
            "{}: real swaps correct what a budget predicts: what attention or MLP of a section of the blocks costs "
            "from each candidate, all else as it is, on calibration text",
            keys={
                "sections": Key(4, "of the depth", minimum=1, maximum=100),
                "sequences": Key(8, "of the calibration text", minimum=1),
            },
            when=("budget", None),
        ),
        "embeddings": Key(
            None,
            "{bits: 8}: the token embedding and the output head are quantised too, on a symmetric grid of their own; "
            "null: they stay in 16 bit",
            keys={
                "bits": Key(8, "of a code", (4, 8)),
                "group_size": Key(-1, "inputs that share a step; -1: a step for each token", minimum=1, apart=-1),
                "format": Key(INT, "iq4_nl: 4 bits in groups of 32, for a GGUF export", EMBEDDED),
                "needed": Key(True, "false: where the model's cannot be, they stay in 16 bit"),
            },
        ),
        "keep": Key("none", "score by which output channels stay in 16 bit", tuple(SCORES)),
        "keep_ratio": Key(0.5, "share of them (the research: 0.2, 0.3, 0.5, 0.7)", above=0, below=1, when=kept),
        **own_keys("keep"),
        "noise_injection": Key(
            0.0, "std of noise added to quantised weights, in steps (the research: 0.1 in the hybrid)", minimum=0
        ),
        "n_calib": Key(None, "calibration's where it is left out; another number has statistics of its own", minimum=1),
        "seed": Key(
            None,
            "calibration's where it is left out; another one has statistics of its own",
            minimum=0,
            maximum=2**32 - 1,
        ),
    }


KEYS: dict[str, Key] = table()
# of one salience, rounding or score, by name: a recipe that chooses no such one has none of them
OF_CHOICES: dict[str, Key] = {name: key for choice in CHOICES for name, key in own_keys(choice).items()}
OF_CALIBRATION = ("n_calib", "seed")


def defaults() -> dict[str, Any]:
    """The built-in value of every key but calibration's."""
    return {name: key.default for name, key in KEYS.items() if name not in OF_CALIBRATION}


def of_format(name: str) -> dict[str, Any]:
    """What a number format says of a grid."""
    return {key: values[0] for key, values in fixed(name).items()}


def on_own_grid(entry: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """One of `tensor_types`, with its whole grid."""
    said = {key: value for key, value in entry.items() if value is not None}
    common = {key: recipe[key] for key in ("format", "bits", "group_size", "symmetric")}
    return common | of_format(said.get("format", recipe["format"])) | said


def filled(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the keys that an object in it leaves out, and a budget's candidates."""
    nested = {name: key.keys for name, key in KEYS.items() if key.keys is not None and recipe.get(name) is not None}
    found = {name: {k: key.default for k, key in keys.items()} | recipe[name] for name, keys in nested.items()}
    if "embeddings" in found:
        own = of_format(found["embeddings"]["format"])
        found["embeddings"] |= {key: own[key] for key in ("bits", "group_size") if key in own}
    if recipe.get("tensor_types"):
        found["tensor_types"] = [on_own_grid(each, recipe) for each in recipe["tensor_types"]]
    if "budget" in found:
        most = UNTOUCHED - 1 if runs_model(recipe) else UNTOUCHED
        listed = recipe["candidates"] or [{"bits": bits} for bits in CANDIDATES if bits <= most]
        found["candidates"] = [
            {"bits": each["bits"], "group_size": None if each["bits"] == UNTOUCHED else each.get("group_size")}
            for each in listed
        ]
    return recipe | found


def reads(recipe: Mapping[str, Any]) -> set[str]:
    """What the functions of a recipe read: of channels, moment, random."""
    read = {name for choice in chosen(recipe) for name in choice.reads}
    return read | ({CHANNELS} if recipe["clip"] else set()) | ({MOMENT} if recipe["refine"] else set())


def draws(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe's seed draws anything of its own, a calibration set's sequences aside."""
    if (library := library_of(recipe)) is not None:
        return library.draws
    return bool(recipe["noise_std"] or recipe["noise_injection"]) or RANDOM in reads(recipe)


def keys_of(recipe: Mapping[str, Any]) -> Mapping[str, Key]:
    """The keys that a method may have: a library's own, or every one; calibration's beside the former."""
    library = library_of(recipe)
    return KEYS if library is None else {**library.keys, **{name: KEYS[name] for name in OF_CALIBRATION}}


def has_effect(key: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe's value of `key` reaches its weights, given its other keys."""
    if key in OF_CALIBRATION:
        complete = "algorithm" not in recipe and all(name in recipe for name in KEYS.keys() - OF_CHOICES.keys())
        return not complete or bool(calibration_files(recipe)) or (key == "seed" and draws(recipe))
    known = keys_of(recipe)
    when = known[key].when if key in known else None
    if when is None:
        return True
    other, values = when
    value = recipe.get(other, known[other].default)
    fits = value != known[other].default if values is None else value in values
    return fits and has_effect(other, recipe)


def needed(key: str, known: Mapping[str, Key] = KEYS) -> tuple[str, tuple[Any, ...] | None]:
    """The key that gives this one its effect, and with which values; None for any number but its default."""
    when = known[key].when
    assert when is not None
    other, values = when
    own = known[other].values
    return other, tuple(v for v in own if v != known[other].default) if values is None and own else values


def without_idle(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the built-in value of every key that has no effect on it, so that a change there changes nothing;
    and without those of salience, rounding and score that it does not choose, so that a new one's key does not either.

    n_calib is None where no calibration is read; the seed stays, since each result names it.
    """
    if (library := library_of(recipe)) is not None:
        own = {name: key.default for name, key in library.keys.items() if not has_effect(name, recipe)}
        return recipe | own
    known = defaults()
    effective = {k for k in recipe if k not in known or has_effect(k, recipe)}
    settled = {k: v if k in effective else known[k] for k, v in recipe.items() if k in effective or k not in OF_CHOICES}
    return settled if calibration_files(settled) else settled | {"n_calib": None}


def whole(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the built-in values of what `without_idle` leaves out, to be held against another; a library's
    and the original's, which is empty, as they are."""
    if not recipe or "algorithm" in recipe:
        return recipe
    return dict(sorted(({name: key.default for name, key in OF_CHOICES.items()} | recipe).items()))


def statistics_files(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The statistics that a recipe reads, by name, as files of its calibration set; none where it rounds only.

    A library takes the tokens themselves.
    """
    folder = f"calibration/n{recipe['n_calib']}-s{recipe['seed']}"
    if "algorithm" in recipe:
        return {"tokens": f"{folder}/tokens.safetensors"}
    read, files = reads(recipe), {}
    if recipe["inputs"] == "sequential" and recipe["salience"] == "none":
        read -= {MOMENT}  # of the quantised model's inputs, which no file holds
    if CHANNELS in read:
        files["channels"] = "channels.safetensors"
    if MOMENT in read:
        files["moments"] = "second_moments.safetensors"
    if recipe["noise_std"]:
        files["noisy"] = "noisy-{noise_std:g}x{n_noise_samples}.safetensors".format(**recipe)
    jacobian = f"jacobian{'_residual' if recipe['residual'] else ''}.safetensors"
    weighted = {"jacobian": jacobian, "end_loss": f"end_loss-{recipe['parts']}.safetensors"}
    files |= {"weighted": weighted[recipe["moment"]]} if recipe["moment"] in WEIGHTED else {}
    files |= {"rows": f"{recipe['row_moment']}-rows.safetensors"} if recipe["row_feedback"] else {}
    files |= {"row_weight": jacobian} if recipe["objective"] == "jacobian" else {}
    files |= {"end_loss": f"end_loss-{recipe['parts']}.safetensors"} if recipe["budget"] is not None else {}
    learns = recipe["clip"] or MOMENT in reads(recipe)
    files |= {"embedding_moments": f"end_loss-{recipe['parts']}.safetensors"} if recipe["embeddings"] and learns else {}
    return {key: f"{folder}/{name}" for key, name in files.items()}


def runs_model(recipe: Mapping[str, Any]) -> bool:
    """Whether it runs the model over the calibration tokens."""
    return recipe["inputs"] == "sequential" or recipe["tune"] is not None


def way_of(recipe: Mapping[str, Any]) -> str:
    """What quantising takes: weights (and statistics), the model, run over the calibration tokens, a library, or the
    finished candidates of a budget. One that runs the model takes widths from such candidates."""
    if "algorithm" in recipe:
        return "library"
    if runs_model(recipe):
        return "model"
    return "weights" if recipe["budget"] is None else "candidates"


def calibration_files(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Its statistics, and the tokens that they must be of."""
    files = statistics_files(recipe)
    tokens = f"calibration/n{recipe['n_calib']}-s{recipe['seed']}/tokens.safetensors"
    return {"tokens": tokens} | files if files or way_of(recipe) == "model" else {}
