"""Which checkpoint is picked, in what words; what its card says; what its bytes are."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from quant.checkpoints.card import card
from quant.checkpoints.sizes import parts_mb
from quant.comparison.pick import Choice, choose
from quant.evaluation.perplexity import load_model
from tests.unit.comparison.studies import ABOUT, CALIBRATION, row
from tests.unit.recipe.cases import PLAIN, recast, run

OPTIONS = {"model": "m", "dataset": "d", "by": "delta_nll", "max_bits_per_weight": 4.5}


ROWS = [
    row("original", 0.0, 16.0, "original"),
    row("wide", 0.01, 8.25),
    row("good", 0.10, 4.25),
    row("near", 0.11, 4.31),
    row("far", 0.30, 4.16),
    row("best", 0.05, 4.4, "simulated"),
    row("original", 0.0, 16.0, "original", dataset="e"),
    row("good", 0.02, 4.25, dataset="e"),
]
PAIRS = [("near", "good", 0.01, -0.005, 0.02), ("good", "far", -0.2, -0.25, -0.15), ("good", "wide", 0.09, 0.08, 0.1)]
COLUMNS = ["model", "dataset", "method_a", "method_b", "delta_nll", "delta_nll_low", "delta_nll_high", "sequences"]


def chosen(rows: list[dict[str, Any]] = ROWS, **options: Any) -> Choice:
    return choose(
        pd.DataFrame(rows), pd.DataFrame([("m", "d", *p, 9) for p in PAIRS], columns=COLUMNS), OPTIONS | options
    )


def test_the_least_delta_nll_within_the_limit_is_chosen() -> None:
    found = chosen()
    assert (found.method, found.runner_up, found.shown) == ("good", "near", False)
    assert found.difference[:3] == (-0.01, -0.02, 0.005), "first minus second, whichever way it was stored"
    words = " ".join(found.lines)
    assert "3 packed checkpoints with at most 4.5 bits per weight" in words
    assert "no difference shown between good and near (delta_nll −0.0100 [−0.0200, +0.0050])" in words
    assert "best has a lower delta_nll, but is not packed: scope: linear" in words
    assert (
        "Perplexity 22.10 (+10.5 % against the original, acceptable), 4.25 bits per weight; the file takes 85 MB"
        in words
    )


def test_the_curve_is_what_no_smaller_file_betters() -> None:
    found = chosen()
    assert [each["method"] for each in found.curve] == ["far", "good", "wide"]
    assert found.lines[-1] == (
        "What size buys, by delta_nll: far (83 MB, 0.3000); good (85 MB, 0.1000); wide (165 MB, 0.0100)."
    )
    assert [each["method"] for each in chosen(max_bits_per_weight=1).curve] == ["far", "good", "wide"]
    assert not any("What size buys" in line for line in chosen(by="size_mb").lines)


def test_where_the_choice_is_poor_the_next_in_size_that_is_not_is_named() -> None:
    room = "More room helps: good takes 85 MB and costs +10.5 %, acceptable."
    assert chosen(max_size_mb=84).method == "far" and chosen(max_size_mb=84).lines[1] == room
    assert not any("More room" in line for line in chosen().lines)


@pytest.mark.parametrize(
    ("options", "method", "runner_up", "shown"),
    [
        ({"max_bits_per_weight": None}, "wide", "good", True),
        ({"max_bits_per_weight": 4.3}, "good", "far", True),
        ({"max_bits_per_weight": 4.2}, "far", None, False),
        ({"by": "size_mb"}, "far", "good", True),
        ({"max_size_mb": 85}, "good", "far", True),
        ({"max_delta_nll": 0.105}, "good", None, False),
        ({"dataset": "e"}, "good", None, False),
        ({"max_bits_per_weight": 4.32, "by": "kl", "max_delta_nll": 0.2}, "good", "near", False),
    ],
)
def test_limits_and_columns(options: dict[str, Any], method: str, runner_up: str | None, shown: bool) -> None:
    found = chosen(**options)
    assert (found.method, found.runner_up, found.shown) == (method, runner_up, shown)


KL = ["p_holm", "delta_kl", "delta_kl_low", "delta_kl_high", "kl_sequences", "p_holm_kl"]


def near_by_kl(p: float, **options: Any) -> Choice:
    """good has the lower delta_nll than near, with that p, and near the lower KL, which is shown."""
    rows = [row | ({"kl": 0.05} if row["method"] == "near" else {}) for row in ROWS]
    low = -0.005 if p > 0.05 else 0.005
    pair = ("m", "d", "near", "good", 0.01, low, 0.02, 9, p, -0.05, -0.07, -0.03, 8, 0.001)
    return choose(pd.DataFrame(rows), pd.DataFrame([pair], columns=[*COLUMNS, *KL]), OPTIONS | options)


def test_by_kl_the_difference_is_kls_and_what_nll_would_take_is_said() -> None:
    """near has the lower KL than good, and is better by it; good is shown to be better by delta_nll."""
    found = near_by_kl(0.03, by="kl")
    assert (found.method, found.runner_up, found.shown) == ("near", "good", True)
    assert found.difference is not None and found.difference[:4] == (-0.05, -0.07, -0.03, 8)
    words = " ".join(found.lines)
    assert "near is better than good (delta_kl −0.0500 [−0.0700, −0.0300], p 0.001); by NLL it is worse" in words
    assert "By delta_nll it would be good: near is worse than good (delta_nll +0.0100" in words
    other = near_by_kl(0.03)
    words = " ".join(other.lines)
    assert (other.method, other.runner_up) == ("good", "near")
    assert (
        "; by KL it is worse (delta_kl +0.0500" in words and "By kl it would be near: good is worse than near" in words
    )
    assert near_by_kl(0.03, max_kl=0.06).method == "near"
    assert "at most 4.5 bits per weight and a KL of 0.04" in near_by_kl(0.03, max_kl=0.04).lines[0]


def test_of_those_that_delta_nll_does_not_tell_apart_the_least_kl_is_taken() -> None:
    """Noise chose the lower delta_nll, p 0.6, of a method whose KL is twice as large."""
    found = near_by_kl(0.6)
    assert (found.method, found.runner_up, found.shown) == ("near", "good", False)
    assert found.difference is not None and found.difference.by == "nll"
    assert (
        "good has the lowest delta_nll of 3 packed checkpoints with at most 4.5 bits per weight, but 2 are not told "
        "apart by it: of these near has the lowest KL, 0.0500, and good 0.1000 (near minus good: delta_nll +0.0100 "
        "[−0.0050, +0.0200], p 0.60)."
    ) in found.lines
    assert not any("it would be" in line for line in found.lines + near_by_kl(0.6, by="kl").lines)
    assert near_by_kl(0.6, max_bits_per_weight=4.3).method == "good", "near does not fit"
    assert near_by_kl(0.6, by="size_mb").method == "far"


def test_what_was_not_compared_or_has_no_kl_is_taken_by_delta_nll() -> None:
    rows = pd.DataFrame([row | ({"kl": 0.05} if row["method"] == "near" else {}) for row in ROWS])
    pairs = pd.DataFrame([("m", "d", *PAIRS[0], 9)], columns=COLUMNS)
    assert choose(rows, pairs, OPTIONS).method == "near" and choose(rows, pairs.iloc[:0], OPTIONS).method == "good"
    assert choose(rows.assign(kl=rows.kl.mask(rows.method == "good")), pairs, OPTIONS).method == "good"


def test_of_the_same_kl_the_smaller_is_taken() -> None:
    rows = pd.DataFrame([row | ({"kl": 0.1, "size_mb": 70.0} if row["method"] == "near" else {}) for row in ROWS])
    assert choose(rows, pd.DataFrame([("m", "d", *PAIRS[0], 9)], columns=COLUMNS), OPTIONS).method == "near"


def test_nothing_that_fits_is_said_with_what_is_nearest() -> None:
    found = chosen(max_bits_per_weight=4)
    assert found.method is None and "the smallest, far, has 4.16 bits per weight" in found.lines[0]
    assert found.lines[0].endswith("; to take it, allow more in choose: max_bits_per_weight.")
    found = chosen([r for r in ROWS if r["storage"] != "packed"])
    assert found.method is None and "No method of the study is stored packed" in found.lines[0]


@pytest.mark.parametrize("storage", ["packed", "gguf"])
def test_the_smallest_is_of_those_that_could_be_taken(storage: str) -> None:
    """So that with the limits that are named put aside it is taken."""
    other = {"packed": "gguf", "gguf": "packed"}[storage]
    rows = [row("tiny", 0.4, 2.25, other), row("small", 0.2, 3.4, storage), row("large", 0.1, 4.5, storage)]
    tight = {"storage": storage, "max_bits_per_weight": 3.0, "max_delta_nll": 0.15}
    (line,) = chosen(rows, **tight).lines
    assert line.startswith(
        f"Of 2 packed ones none has at most 3 bits per weight and a delta_nll of 0.15 and storage: {storage}"
    )
    assert "the smallest, small, has 3.40 bits" in line
    named = line.partition("allow more in choose: ")[2].rstrip(".").split(", ")
    assert named == ["max_bits_per_weight", "max_delta_nll"]
    assert chosen(rows, **tight | dict.fromkeys(named, 3.5)).method is not None
    (line,) = chosen(rows[:1], **tight).lines
    assert line == f"Of 1 packed ones none has storage: {storage}; to take another, leave choose: storage out."


def test_what_is_not_finite_is_never_chosen() -> None:
    found = chosen([*ROWS, row("broken", math.nan, 4.2), row("wild", math.inf, 4.2)])
    assert found.method == "good"


def test_a_tie_goes_to_the_smaller() -> None:
    assert chosen([*ROWS, row("alike", 0.10, 4.2)]).method == "alike"


RECORD = {
    "summary": {"storage_reason": "", "no_kernels": "", "left": {"lm_head": "output head"}},
    "provenance": {
        "recipe": PLAIN | {"bits": 4, "n_calib": 12, "seed": 3},
        "versions": {"torch": "2.13.0"},
        "model_fingerprint": "abc",
        "token_fingerprint": "def",
    },
}


def of(method: str, about: dict[str, Any], record: dict[str, Any] = RECORD, **more: Any) -> tuple[dict[str, Any], str]:
    """A card's metadata and text; more: of the summary's rows."""
    rows = pd.DataFrame([row | more for row in ROWS])
    text = card("m", method, rows, record, about, CALIBRATION, "results/m/good/checkpoint")
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_card_has_the_hubs_header_and_the_figures() -> None:
    header, body = of("good", ABOUT)
    assert header["license"] == "apache-2.0" and header["base_model"] == "o/n"
    assert header["base_model_relation"] == "quantized" and "compressed-tensors" in header["tags"]
    assert "| d | 22.10 | 20.00 | 0.1000 [0.0900, 0.1100] |" in body
    assert "9 sequences of at most 32 tokens, 288 tokens together, of Salesforce/wikitext raw train (seed 3" in body
    for words in ("AutoModelForCausalLM", "from vllm import LLM", "| group_size |", "torch 2.13.0", "apache-2.0"):
        assert words in body
    assert 'from_pretrained("results/m/good/checkpoint")' in body and 'LLM("results/m/good/checkpoint")' in body
    assert "4-bit" in header["tags"] and "3.76 times smaller than the original" in body
    assert "PATH" not in body and "None" not in body and "short" not in body and "seen" not in body


UNREAD = {
    **RECORD,
    "provenance": {key: value for key, value in RECORD["provenance"].items() if key != "token_fingerprint"}
    | {"recipe": PLAIN | {"n_calib": None, "seed": 3}},
}


def test_a_card_shows_the_keys_that_have_an_effect() -> None:
    """PLAIN only rounds: no search, no protection, no damping; and no calibration where none was read."""
    _, body = of("good", ABOUT)
    shown = {line.split(" | ")[0].removeprefix("| ") for line in body.splitlines() if line.startswith("| ")}
    assert {"bits", "group_size", "symmetric", "salience", "seed"} <= shown
    assert not {"n_grid", "scope", "keep_ratio", "beta", "damp", "outlier_percent", "n_calib", "noise_std"} & shown
    _, body = of("good", ABOUT, UNREAD, calibration_sequences=math.nan, calibration_tokens=math.nan)
    assert "Calibration: none: the recipe reads no statistics." in body and "seed" not in body and "None" not in body


def test_a_card_says_objects_as_yaml_has_them() -> None:
    """Without a limit of 0, or what candidates leave to the recipe."""
    given = {"budget": {"bits_per_weight": 0.0, "size_mb": 90}, "candidates": [{"bits": 4, "group_size": None}]}
    recipe = PLAIN | given | {"embeddings": {"bits": 8, "group_size": -1}, "n_calib": 12, "seed": 3}
    record = {**RECORD, "provenance": RECORD["provenance"] | {"recipe": recipe}, "linears": [{"bits": 4}]}
    _, body = of("good", ABOUT, record)
    for line in (
        "| budget | {size_mb: 90} |",
        "| candidates | [{bits: 4}] |",
        "| embeddings | {bits: 8, group_size: -1} |",
    ):
        assert line in body


@pytest.mark.parametrize(("own", "said"), [(50.0, True), (30.0, False), (25.0, False)])
def test_an_embedding_that_is_half_of_a_file_is_said(own: float, said: bool) -> None:
    """By the choice and by the card, with what 8 bits make of it; not where it is quantised or small."""
    sizes = [{"embeddings_mb": own if each["method"] != "original" or own > 40 else 50.0} for each in ROWS]
    rows = [each | more for each, more in zip(ROWS, sizes, strict=True)]
    words = "is 59% of this file: with embeddings: {bits: 8} in its recipe it is of about 60 MB, which transformers and"
    text = card("m", "good", pd.DataFrame(rows), RECORD, ABOUT, CALIBRATION, "p")
    assert (words in " ".join(chosen(rows).lines)) == (words in text) == said


def test_a_dense_checkpoint_is_called_neither_small_nor_4_bit() -> None:
    header, body = of("best", ABOUT)
    assert header["tags"] == ["quantized"] and "times smaller" not in body
    assert "rounded to a grid of 4 bits and stored dense" in body and "No smaller than the original" in body


def test_a_card_says_what_is_short_and_what_was_seen() -> None:
    mixed = CALIBRATION | {"mix": [{"docstrings": ["argparse"]}]}
    body = card("m", "good", pd.DataFrame(ROWS), RECORD, ABOUT, mixed, "p")
    assert "of Salesforce/wikitext raw train and docstrings of argparse (seed 3" in body
    _, body = of("good", ABOUT, sequences=3, calibration_sequences=2.0, seen_share=0.43)
    assert "99 tokens in 3 sequences of at most 32 (windows), a short text (under 8 sequences" in body
    assert "2 sequences of at most 32 tokens, a short text" in body
    assert "Calibration has seen 43 % of this text, so it proves nothing of this method." in body
    _, body = of("good", ABOUT, UNREAD, seen_share=0.43, calibration_sequences=math.nan)
    assert "seen" not in body, "a method that reads no statistics has seen nothing"


def test_a_tiny_file_is_not_0_mb() -> None:
    rows = [row("original", 0.0, 16.0, "original"), row("good", 0.1, 4.25, size_mb=0.0527, compression=4.0)]
    assert "the file takes 0.053 MB instead of 0.21" in " ".join(chosen(rows).lines)


def test_a_card_says_what_share_is_quantised_and_what_stays_in_16_bit() -> None:
    left = {"left": {"lm_head": "output head", "a.gate": "router", "b.gate": "router"}}
    _, body = of("good", ABOUT, RECORD | {"summary": RECORD["summary"] | left})
    assert "95.0 % of the model's weights are quantised" in body and "5.25 bits a weight" in body
    assert "router: a.gate and 1 more." in body and "Less than 90 %" not in body
    assert "Less than 90 %" in of("good", ABOUT, quantized_share=0.4)[1]


def test_a_card_recommends_only_what_has_kernels() -> None:
    none = {"no_kernels": "has no product for groups of 16 inputs"}
    _, body = of("good", ABOUT, RECORD | {"summary": RECORD["summary"] | none})
    assert "import LLM" not in body and "groups of 16 inputs" in body


def test_a_card_guesses_nothing() -> None:
    header, body = of("best", {"license": None, "base_model": None, "caveat": "Mind this.", "source": {"gguf": {}}})
    assert not {"license", "base_model", "base_model_relation"} & header.keys()
    assert "vllm" not in body and "Mind this." in body and "That of the base model, m." in body


def test_a_card_says_that_the_original_makes_no_sense() -> None:
    """Whatever else there is to mind; nothing where it makes sense."""
    why = "its NLL of 9.00 nats per token is no clear gain over 8.00"
    rows = [one | {"storage_reason": why if one["method"] == "original" else ""} for one in ROWS]
    text = card("m", "good", pd.DataFrame(rows), RECORD, ABOUT | {"caveat": "Mind this."}, CALIBRATION, "p")
    assert f"Mind this. On d the original itself makes no sense: {why}." in text
    sane = [one | {"storage_reason": "" if one["method"] == "original" else why} for one in ROWS]
    assert "no sense" not in card("m", "good", pd.DataFrame(sane), RECORD, ABOUT, CALIBRATION, "p")


@pytest.mark.parametrize("tied", [False, True])
def test_parts_add_up_to_the_file(tiny_checkpoint: Path, tmp_path: Path, tied: bool) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        if tied:
            del tensors["lm_head.weight"]

    source = recast(tiny_checkpoint, tmp_path / "model", drop)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    run(source, tmp_path / "out", {}, group_size=16)
    for folder, packed in ((source, False), (tmp_path / "out", True)):
        model = load_model(folder, "cpu", torch.float32)
        weights = folder / "model.safetensors"
        found = parts_mb(weights, model)
        assert sum(found.values()) == pytest.approx(weights.stat().st_size / 1e6)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        assert found["embeddings_mb"] == embedding.weight.numel() * 4 / 1e6
        assert found["head_mb"] == (0 if tied else found["embeddings_mb"])
        linears = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in name]
        dense = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in linears) * 4 / 1e6
        assert found["linears_mb"] < dense / 3 if packed else found["linears_mb"] == pytest.approx(dense)


def test_a_gguf_file_is_weighed_by_its_own_size() -> None:
    """Beside packed checkpoints; it is what is taken, and the card says of what its figures are."""
    rows = [*ROWS, row("file", 0.09, 4.4, "gguf", size_mb=70.0)]
    found = chosen(rows, max_size_mb=75)
    assert (found.method, found.storage) == ("file", "gguf")
    assert found.path == "results/m/file/export/gguf/model.gguf" and found.folder == "results/m/file/checkpoint"
    assert chosen(rows, storage="gguf").method == "file" and chosen(rows, storage="packed").method == "good"
    none = chosen(rows, storage="gguf", max_size_mb=69)
    assert none.method is None and "has at most 4.5 bits per weight and 69 MB and storage: gguf" in none.lines[0]
    assert chosen(rows, max_size_mb=69).method is None and chosen().path == "results/m/good/checkpoint"
    header, body = of("good", ABOUT, storage="gguf")
    assert "compressed-tensors" in header["tags"] and "packed as compressed-tensors" in body
    assert "**Figures and sizes are of its GGUF file**, `results/m/good/export/gguf/model.gguf`" in body
    assert "GGUF" not in of("good", ABOUT)[1]
