"""What the page says of one model: the verdicts of the first screen, its data sets, and its figures."""

from typing import Any

import pandas as pd

from quant.comparison.answers import NO_ANSWER
from quant.comparison.measures import MEASURES
from quant.comparison.numbers import number, percent
from quant.comparison.pairs import full_words
from quant.comparison.pick import Choice
from quant.comparison.text_answers import learnt_lines
from quant.comparison.twins import said, twins
from quant.comparison.untried import idea
from quant.comparison.verdicts import (
    ORIGINAL,
    best_answer,
    best_by_bits,
    check_answer,
    contradictions,
    damping_lines,
    increase,
    lent_lines,
    quality,
    ranked,
)
from quant.data.overlap import seen_words
from quant.records.method import GGUF, REAL
from quant.report.page import Picture, data_uri
from quant.report.sections.changes import changes
from quant.report.study import Study
from quant.report.tables import BANDS, check_table, pairs_table


def caveat(study: Study, model: str) -> str:
    """What the configuration says of a model, or convert of one quantised before."""
    return study.config.get("models", {}).get(model, {}).get("caveat") or study.caveats.get(model, "")


def doubts(study: Study, model: str) -> list[str]:
    """Why its original makes no sense, where it does not: first of all, since every verdict rests on it."""
    rows = study.summary[(study.summary.model == model) & (study.summary.method == ORIGINAL)]
    return [
        f"On {row.dataset} the original makes no sense: {row.storage_reason}. No verdict below says anything of a "
        "working model."
        for row in rows.itertuples()
        if isinstance(row.storage_reason, str) and row.storage_reason
    ]


def share_words(rows: pd.DataFrame) -> str:
    """How much of the model is quantised, of what little there is said more."""
    shares = rows[rows.method != ORIGINAL].quantized_share.dropna()
    if shares.empty:
        return ""
    low, high = (f"{100 * share:.1f}" for share in (shares.min(), shares.max()))
    words = f"{low} % of the model's weights are quantised" if low == high else (
        f"{low} to {high} % of the model's weights are quantised, by method"
    )  # fmt: skip
    if shares.min() >= FEW:
        return f"{words}."
    return f"{words}: the rest is as it was, so that files are larger, and harm is less, than the bits per weight say."


FEW = 0.9  # of the weights


def model_section(study: Study, model: str, place: int) -> dict[str, Any]:
    """All that the page says about one model, the one at that place."""
    first, *others = study.datasets(model)
    rows, best = study.rows(model, first), ranked(study.summary, model, first, study.by)
    check, choice = study.checks.get(model), study.choices.get(model)
    channels = None if study.channels is None else study.channels[study.channels.model == model]
    linears = study.linears[study.linears.model == model]
    return {
        "name": model,
        "anchor": f"model-{place}",
        "caveat": caveat(study, model),
        "doubts": doubts(study, model),
        "share": share_words(rows),
        "twins": [said(found, study.recipes) for found in twins(study.summary) if found.model == model],
        "dataset": first,
        "n_methods": len(best),
        "best": best_answer(study.summary, study.comparisons, model, first, study.by),
        "facts": _best_facts(best, rows, study.recipes),
        "colour": "" if best.empty else study.colours.get(best.method.iloc[0], ""),
        "by_bits": best_by_bits(study.summary, study.recipes, model, first, study.by),
        "learnt": learnt_lines(study.answers.get(model, []), _shown_methods(best, choice)),
        "elsewhere": [_elsewhere(study, model, dataset) for dataset in others],
        "plain": plain_words(best, rows),
        "changes": next((changes(study, model, first, name) for name in _shown_methods(best, choice)[::-1]), None),
        "praq": praq_words(study.answers.get(model, []), best),
        "overview": _overview(study, model, first),
        "deploy": None if choice is None else deploy(study, choice),
        "sections": [_dataset(study, model, dataset, f"model-{place}-data-{i}")
                     for i, dataset in enumerate([first, *others])],
        "pictures": pictures(study.figures, f"{model}/", MODEL_PICTURES, model),
        "notes": [*damping_lines(linears, study.recipes), *lent_lines(linears)],
        "check": None if check is None else {
            "answer": check_answer(check),
            "pictures": pictures(study.figures, f"{model}/", CHECK_PICTURES, model),
            "table": check_table(check, channels),
        },
    }  # fmt: skip


def _shown_methods(best: pd.DataFrame, choice: Choice | None) -> list[str]:
    """The best, and what to deploy: what the first screen names."""
    return list(dict.fromkeys([*best.method[:1], *([choice.method] if choice and choice.method else [])]))


def _best_facts(best: pd.DataFrame, rows: pd.DataFrame, recipes: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The few numbers beside the best method's name."""
    if best.empty:
        return []
    row, original = next(best.itertuples()), rows[rows.method == ORIGINAL]
    facts = [("perplexity", number(row.ppl, 2)), ("rise", f"{percent(increase(row))}, {quality(increase(row))}")]
    facts += [("original", number(ppl, 2)) for ppl in original.ppl]
    return [*facts, ("bits/weight", number(row.bits_per_weight, 2)), ("recipe", full_words(recipes[row.method]))]


PRAQ_WORDS = {
    "first": "Yes",
    "second": "No, it made it worse",
    "mixed": "It depends",
    "no difference shown": "No difference shown",
    NO_ANSWER: "Not asked",
}


def praq_words(answered: list[dict[str, Any]], rows: pd.DataFrame) -> dict[str, Any]:
    """Whether PRAQ helped, for a reader in a hurry: a word or two, the verdict, and the pairs behind it."""
    one = next((one for one in answered if one["anchor"] == "praq"), None)
    if one is None:
        return {"short": PRAQ_WORDS[NO_ANSWER], "verdict": "", "plain": "", "lines": []}
    ppl = dict(zip(rows.method, rows.ppl, strict=True))
    against = [
        f"{number(ppl[row['first']], 2)} ({row['first']}) against {number(ppl[row['second']], 2)} ({row['second']})"
        for row in one["pairs"]
        if row["dataset"] == one["pairs"][0]["dataset"] and {row["first"], row["second"]} <= ppl.keys()
    ]
    plain = f"Perplexity {'; '.join(against[:3])}{'; …' if len(against) > 3 else ''}." if against else ""
    return {"short": PRAQ_WORDS[one["outcome"]], "verdict": one["verdict"], "plain": plain, "lines": one["lines"]}


def plain_words(best: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What the best method costs, for a reader who knows none of this."""
    original = rows[rows.method == ORIGINAL]
    if best.empty or original.empty:
        return ""
    row, before = next(best.itertuples()), next(original.itertuples())
    smaller = before.bits_per_weight / row.bits_per_weight
    stores = "stores" if row.storage in REAL else "would store"
    worse = "worse" if row.ppl > before.ppl else "no worse"
    return (
        f"It {stores} a weight in {number(row.bits_per_weight, 2)} bits instead of {number(before.bits_per_weight, 0)} "
        f"({number(smaller, 1)} times smaller) and predicts the next word of {seen_words(row.seen_share)} {worse}: "
        f"perplexity, where lower is better, goes from {number(before.ppl, 2)} to {number(row.ppl, 2)} "
        f"({percent(increase(row))}, {quality(increase(row))})."
    )


def _overview(study: Study, model: str, dataset: str) -> Picture | None:
    """Size against damage, with what to take."""
    choice = study.choices.get(model)
    take = f"; to deploy: {choice.headline}" if choice is not None else ""
    found = pictures(study.figures, f"{model}/{dataset}/", OVERVIEW, f"{model} on {dataset}{take}")
    return found[0] if found else None


def deploy(study: Study, choice: Choice) -> dict[str, Any]:
    """What to take, the lines that load it, and, where it is poor or nothing fits, a recipe that was not tried."""
    rows = study.rows(choice.model, choice.dataset)
    chosen = rows[rows.method == choice.method]
    poor = quality(increase(next(chosen.itertuples()))) == "poor" if len(chosen) else set(rows.storage).isdisjoint(REAL)
    options, configured = study.config.get("choose", {}), study.config.get("methods", {})
    is_gguf = choice.storage == GGUF
    folder, _, file = (choice.path or "").rpartition("/")
    return {
        "choice": choice,
        "colour": study.colours.get(choice.method or "", ""),
        "gguf": is_gguf,
        "transformers": OF_GGUF.format(path=repr(folder), file=repr(file))
        if is_gguf
        else TRANSFORMERS.format(path=repr(choice.path)),
        "vllm": VLLM.format(path=repr(choice.path)),
        "no_kernels": next((row.no_kernels for row in chosen.itertuples() if isinstance(row.no_kernels, str)), ""),
        "why": "Nothing here is packed." if chosen.empty else "A poor one, by the research's bands.",
        "idea": idea(study.recipes, configured, options) if poor else None,
    }


TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = {path}
model = AutoModelForCausalLM.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)"""
OF_GGUF = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path, file = {path}, {file}
model = AutoModelForCausalLM.from_pretrained(path, gguf_file=file)
tokenizer = AutoTokenizer.from_pretrained(path, gguf_file=file)"""
VLLM = """\
from vllm import LLM

llm = LLM({path})
print(llm.generate("Once upon a time"))"""


def _elsewhere(study: Study, model: str, dataset: str) -> str:
    """The best method on another data set in one line."""
    answer = best_answer(study.summary, study.comparisons, model, dataset, study.by)
    return f"On {dataset} the best is {answer.headline}. {answer.lines[0] if answer.lines else ''}"


def _dataset(study: Study, model: str, dataset: str, anchor: str) -> dict[str, Any]:
    """The figures and the table of pairs of one model on one data set."""
    compared, prefix = study.compared(model, dataset), f"{model}/{dataset}/"
    best = best_answer(study.summary, study.comparisons, model, dataset, study.by).headline
    words = MEASURES[study.by].words
    where = f"{model} on {dataset}; lowest {words}: {best}"
    matrix = {"pairs": PAIR_WORDS.format(words=words)}
    # the first data set's stands on the first screen
    shown = DATASET_PICTURES | ({} if dataset == study.datasets(model)[0] else OVERVIEW)
    return {
        "name": dataset,
        "anchor": anchor,
        "pictures": pictures(study.figures, prefix, shown | _sweeps(study.figures), where),
        "matrix": pictures(study.figures, prefix, matrix, where),
        "contradictions": contradictions(compared),
        "pairs": pairs_table(compared, study.colours, study.by) if len(compared) else None,
    }


OVERVIEW = {
    "size_delta_nll": "Lower and further left is better. The size is the checkpoint's on disk, embeddings and head "
    "included. An arrow: off the scale."
}
DATASET_PICTURES = {
    "perplexity_bits": "Lower and further left is better. For every method off the grey line, one on it has a lower "
    "perplexity with no more bits. An arrow: off the scale.",
    "delta_nll": "Further left is better; an arrow: off the scale. The shades are the quality bands by rise of "
    f"perplexity, from green to red: {BANDS}. "
    "Grey, on top: how far the original's own NLL is known from as many sequences.",
    "by_frequency": "Left: tokens that stand in this text once; to the right the common ones. Lower is better. "
    "Intervals are 95 %, each on its own, and end where the axis does.",
    "by_position": "Left: tokens at the beginning of a sequence, with little before them. Lower is better. "
    "Intervals are 95 %, each on its own, and end where the axis does.",
}


def _sweeps(figures: dict[str, str]) -> dict[str, str]:
    """The sweeps' figures and what each shows."""
    names = dict.fromkeys(key.rsplit("/", 1)[1] for key in figures if "/sweep-" in key)
    return {name: f"The methods that {name.removeprefix('sweep-')} makes of its list of values." for name in names}


PAIR_WORDS = (
    "Read along a row: blue means that the row's method has the lower {words}. Only differences that are "
    "shown after correction for all pairs have a colour."
)


MODEL_PICTURES = {
    "error_by_layer": "Error of a linear's output over its size, tr(DHDᵀ)/tr(WHWᵀ) with D the change of W, on "
    "calibration inputs.",
    "error_by_kind": "The same error by kind of linear, over all layers; the best method on top.",
    "alpha_by_layer": "What the search chose: the inputs are scaled by salience^α before rounding.",
}


CHECK_PICTURES = {
    "check_mse": "Left of 0 PRAQ's choice of kept channels errs less, right of it AWQ's; grey: no difference shown."
}


def pictures(figures: dict[str, str], prefix: str, captions: dict[str, str], where: str) -> list[Picture]:
    """Those of the figures that exist."""
    return [
        Picture(data_uri("image/svg+xml", figures[prefix + name]), f"{name.replace('_', ' ')}: {where}. {text}", text)
        for name, text in captions.items()
        if prefix + name in figures
    ]
