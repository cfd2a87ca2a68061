"""The report: a page that is whole, inert and offline, and says what it must."""

import html
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest

from quant.comparison import verdicts
from quant.report.sections import models
from quant.report.steps import with_plan
from quant.report.tables import recipes_table
from tests.unit.report.pages import BY_KL, DELTAS, HOSTILE, PAIRS, check, comparisons, page, profiles, summary


def test_an_original_that_makes_no_sense_is_said_before_any_verdict():
    frame = summary(DELTAS)
    assert "makes no sense" not in page(frame, PAIRS)
    frame.loc[frame.method == "original", "storage_reason"] = "its tokenizer gives <2.00> tokens"
    text = page(frame, PAIRS, caveat="Stored in 4 bits before.")
    doubt = text.index("On d the original makes no sense: its tokenizer gives &lt;2.00&gt; tokens. No verdict below")
    assert doubt < text.index("Did PRAQ help") < text.index("Stored in 4 bits before.")


def test_weights_quantised_before_are_a_caveat_where_the_configuration_has_none():
    caveats = {"m": "stored in <FP8> once before"}
    assert "stored in &lt;FP8&gt; once before" in page(summary(DELTAS), PAIRS, caveats=caveats)
    assert "once before" not in page(summary(DELTAS), PAIRS, caveats=caveats, caveat="Mine.")


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.95, 0.95), "95.0 % of the model's weights are quantised."),
        ((0.5, 0.5), "50.0 % of the model's weights are quantised: the rest is as it was"),
        ((0.9, 0.97), "90.0 to 97.0 % of the model's weights are quantised, by method."),
    ],
)
def test_the_page_says_which_share_is_quantised(shares: tuple[float, float], words: str):
    frame = summary({"rtn": 0.1, "gw_awq": 0.1}).assign(quantized_share=[0.0, *shares])
    assert models.share_words(frame).startswith(words)
    assert words in html.unescape(page(frame, comparisons(("rtn", "gw_awq", 0, -1, 1))))


def test_the_page_says_where_nll_and_kl_differ():
    """By KL rtn is the better of its two pairs; gw_awq and gw_praq are told apart by KL alone."""
    text = html.unescape(page(summary(DELTAS), PAIRS.assign(**BY_KL)))
    assert "Better by NLL, worse by KL, in 2 of 3 pairs: gw_awq against rtn; gw_praq against rtn." in text
    assert "Of 3 pairs 0 are told apart by NLL alone and 1 by KL alone" in text
    assert text.count('class="unlike"') >= 3 and "by NLL on d" in text
    assert (
        "no difference shown between gw_awq and gw_praq (delta_nll −0.0100 [−0.0300, +0.0100], p 0.40; one of 0.050 "
        in text
    )
    assert "; by KL it is worse (delta_kl +0.0200 [+0.0100, +0.0300], p 0.002)." in text
    assert "Better by NLL" not in page(summary(DELTAS), PAIRS)


def test_that_what_to_take_has_learnt_the_text_stands_on_the_first_screen():
    """The last of the questions' answers given to a page; here by the words that the answer gives."""
    told = [
        {
            "anchor": "learnt",
            "lines": ["gw_awq has learnt the text: on d it takes <much>.", "rtn has learnt the text: no."],
        }
    ]
    best = verdicts.ranked(summary(DELTAS), "m", "d")
    assert models.learnt_lines(told, models._shown_methods(best, None)) == [told[0]["lines"][0]]


def test_the_page_has_its_sections_in_order(tmp_path):
    steps = pd.DataFrame([("quantize", "m/rtn", 61.0, 900.0)], columns=["rule", "job", "seconds", "max_rss_mb"])
    (tmp_path / "plan.json").write_text(
        json.dumps({"jobs": [{"rule": "quantize", "seconds": 3660, "ram": 8e8, "gpu": 0}]})
    )
    steps = with_plan(steps, tmp_path / "plan.json")
    drawn = {"checks": {"m": check((0.1, 0.2))}, "profiles": profiles(summary(DELTAS))}
    text = page(summary(DELTAS), PAIRS, **drawn, steps=steps, caveat="stored in 4 bits before")
    assert "planned time" in text and "1 h 1 min" in text and "planned memory, MB" in text
    places = [
        text.index(f'id="{name}"')
        for name in (
            "verdict",
            "summary",
            "questions",
            "question-praq",
            "model-0",
            "model-0-check",
            "reproduce",
            "cost",
        )
    ]
    assert places == sorted(places)
    assert "stored in 4 bits before" in text and "corrected for all\n3 pairs of methods (Holm)" in text
    assert "1 min 1 s in all" in text
    assert text.count("<img ") == text.count(" alt=") == 11
    assert re.search(r'alt="by frequency: m on d; lowest NLL: gw_awq\. Left: tokens that stand in this text once', text)


def test_a_page_without_what_may_be_missing():
    frame = summary({"rtn": 0.0}, half=0.0)
    text = page(frame, PAIRS.iloc[:0])
    assert "rtn and the original give the same result on every sequence" in text
    assert "pairs of methods (Holm)" not in text and 'id="cost"' not in text and "model-0-check" not in text


@pytest.mark.parametrize(("rise", "words"), [(0.1, "unseen text worse:"), (-0.1, "unseen text no worse:")])
def test_the_best_is_called_worse_only_where_it_is(rise: float, words: str):
    frame = summary({"rtn": rise})
    assert words in models.plain_words(frame[frame.method == "rtn"], frame)


def test_several_models_and_data_sets_each_get_a_section():
    frame = pd.concat([summary(DELTAS, m, d) for m in ("m", "n") for d in ("d", "e")], ignore_index=True)
    pairs = pd.concat([PAIRS.assign(model=m, dataset=d) for m in ("m", "n") for d in ("d", "e")], ignore_index=True)
    text = page(frame, pairs)
    assert all(f'id="model-{i}-data-{j}"' in text for i in (0, 1) for j in (0, 1))
    assert "On e the best is gw_awq" in text


def test_a_hostile_name_is_shown_and_never_markup():
    frame = summary({HOSTILE: 0.2, "gw_awq": 0.1}, model=HOSTILE)
    pairs = comparisons((HOSTILE, "gw_awq", 0.1, 0.05, 0.15), model=HOSTILE)
    text = page(frame, pairs, caveat=HOSTILE)
    assert "<script>alert" not in text and html.escape(HOSTILE) in text
    assert text.count("<script") == 1


def test_the_page_asks_the_network_for_nothing():
    text = page(summary(DELTAS), PAIRS)
    sources = re.findall(r'(?:src|href|from)\s*=?\s*"([^"]{0,40})', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in text and not re.search(r"url\((?!['\"]?data:)", text)


def test_the_same_input_gives_the_same_page():
    assert page(summary(DELTAS), PAIRS) == page(summary(DELTAS), PAIRS)


def test_a_page_of_many_methods_and_layers_stays_small():
    """12 methods on 30 layers of 7 linears: under 10 MB."""
    names = ["gw_awq", "gw_praq", *(f"method_{i}" for i in range(10))]
    frame = summary({name: 0.1 + 0.01 * i for i, name in enumerate(names)})
    compared = comparisons(*((a, b, -0.01, -0.02, -0.005) for a, b in itertools.combinations(names, 2)))
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"model": "m", "method": name, "linear": f"model.layers.{layer}.x.{kind}", "layer": layer, "kind": "mlp",
         **{key: rng.random() for key in ("alpha", "objective", "mse", "relative_error", "damp", "milliseconds",
            "rounded_up", "rounded_down", "unchanged", "flipped", "distance_q25", "distance_median")}}
        for name in names for layer in range(30) for kind in kinds
    )  # fmt: skip
    assert len(page(frame, compared, layers=table).encode()) < 10e6


def test_the_page_says_which_methods_are_one():
    frame = summary(DELTAS)
    frame.loc[frame.method.isin(["rtn", "gw_praq"]), "tensors"] = "one"
    said = "rtn and gw_praq have the same tensors: salience (&#34;none&#34;, &#34;praq&#34;) changes no weight."
    assert said in page(frame, PAIRS)


def test_recipes_are_written_as_yaml_has_them():
    common = {"bits": 4, "clip": False, "tune": None}
    own = {"n_calib": 64, "damp": 0.01, "budget": {"size_mb": 9.0}}  # a has no damp, and b's is the built-in one
    recipes = {"a": common | {"n_calib": None}, "b": common | own}
    table, shared = recipes_table(recipes, {})
    assert shared == {"bits": "4", "clip": "false", "tune": "null", "damp": "0.01"}
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [["a", "–", "–"], ["b", "64", "{size_mb: 9}"]]
    assert [cell.css for cell in table.rows[0]] == ["", "num", ""]
