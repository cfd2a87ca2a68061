"""The report: its verdicts against hand-made cases, and a page that is whole, inert and offline."""

import html
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quant.analysis import sensitivity
from quant.comparison import answers, pairs, questions, verdicts
from quant.comparison.numbers import duration, number, percent
from quant.comparison.summary import recipes_of
from quant.comparison.verdicts import Difference
from quant.report.build import build
from quant.report.figures import questions as question_figures
from quant.report.figures import style
from quant.report.figures.draw import draw
from quant.report.sections import models
from quant.report.study import Study

HOSTILE = "<script>alert(1)</script>"
RECIPE = {"salience": "none", "bits": 4, "group_size": 64, "symmetric": True, "n_grid": 20, "rounding": "nearest"}
RECIPES = {
    "rtn": RECIPE,
    "gw_awq": {**RECIPE, "salience": "l1"},
    "gw_praq": {**RECIPE, "salience": "praq"},
}


def summary(deltas: dict[str, float], model: str = "m", dataset: str = "d", half: float = 0.01) -> pd.DataFrame:
    """Rows of one model and data set; deltas in nats by method, intervals of that half width."""
    rows = []
    for method, delta in {"original": 0.0, **deltas}.items():
        quantised = method != "original"
        rows.append(
            {"model": model, "method": method, "dataset": dataset, "bits_per_weight": 4.25 if quantised else 16.0,
             "size_mb": 269.05, "ppl": math.exp(3 + delta), "nll": 3 + delta, "nll_low": 2.9 + delta,
             "nll_high": 3.1 + delta, "delta_nll": delta,
             "delta_nll_low": delta - half * quantised, "delta_nll_high": delta + half * quantised, "kl": delta,
             "kl_low": delta - half * quantised, "kl_high": delta + half * quantised,
             "top1_agreement": 0.9, "tokens_per_s": 350.0, "quantize_s": 3.0, "storage": "simulated",
             "storage_reason": "keep: awq" if method != "original" else math.nan,
             "tokens": 5120, "sequences": 10, "protocol": "windows", "seq_len": 512, "kl_tokens": 2044,
             "recipe": json.dumps(RECIPES.get(method, RECIPE)) if quantised else "{}", "seed": 42, "versions": "{}",
             "token_fingerprint": "ab", "seen_share": 0.0, "calibration_sequences": 64.0 if quantised else math.nan,
             "calibration_tokens": 32768.0 if quantised else math.nan, "quantized_share": 0.95 * quantised}
        )  # fmt: skip
    return pd.DataFrame(rows)


def comparisons(*rows: tuple[str, str, float, float, float], model: str = "m", dataset: str = "d") -> pd.DataFrame:
    """(method_a, method_b, delta_nll, low, high) by row."""
    names = ["model", "dataset", "method_a", "method_b", "delta_nll", "delta_nll_low", "delta_nll_high", "sequences",
             "p", "p_holm", "detectable"]  # fmt: skip
    small = [0.001 if row[3] > 0 or row[4] < 0 else 0.4 for row in rows]
    made = [(model, dataset, *row, 10, p, p, 0.05) for row, p in zip(rows, small, strict=True)]
    return pd.DataFrame(made, columns=names)


def layers(method: str = "rtn", model: str = "m") -> pd.DataFrame:
    row = {"model": model, "method": method, "linear": "model.layers.0.mlp.up_proj", "layer": 0, "kind": "mlp",
           "alpha": math.nan, "objective": math.nan, "mse": 1e-3, "relative_error": 0.01,
           "damp": math.nan, "milliseconds": 3.0}  # fmt: skip
    return pd.DataFrame([row])


def check(*intervals: tuple[float, float]) -> dict:
    linears = [
        {"linear": f"model.layers.28.mlp.l{i}", "kind": "mlp", "mse_awq": 1.0, "mse_praq": 1 + (low + high) / 2,
         "difference": (low + high) / 2, "low": low, "high": high, "p_holm": 0.01 if low > 0 or high < 0 else 0.5}
        for i, (low, high) in enumerate(intervals)
    ]  # fmt: skip
    return {"layer": 28, "words": "Layer 28", "keep_ratio": 0.5, "dataset": "d", "tokens": 8192, "linears": linears,
            "left_out": 0}  # fmt: skip


PAIRS = comparisons(
    ("rtn", "gw_awq", 0.2, 0.1, 0.3), ("rtn", "gw_praq", 0.19, 0.1, 0.3), ("gw_awq", "gw_praq", -0.01, -0.03, 0.01)
)
DELTAS = {"rtn": 0.3, "gw_awq": 0.1, "gw_praq": 0.11}


def evidence(frame: pd.DataFrame, compared: pd.DataFrame, table: pd.DataFrame, recipes: dict, model: str):
    """A study without sensitivity."""
    own = [rows[rows.model == model] for rows in (frame, compared, table)]
    none = pd.DataFrame(columns=sensitivity.COLUMNS)
    return answers.Evidence(model, list(dict.fromkeys(own[0].dataset)), recipes, *own, pd.DataFrame(), none, {})


def page(frame: pd.DataFrame, compared: pd.DataFrame, **more) -> str:
    methods = [name for name in dict.fromkeys(frame.method) if name != "original"]
    colours = style.method_colours(methods)
    table = more.pop("layers", layers(methods[0], frame.model[0]))
    drawn = draw(frame, compared, table, more.get("checks", {}), colours)
    recipes = {name: recipe for name, recipe in recipes_of(frame).items() if name != "original"}
    answers = {
        model: [asdict(one) for one in questions.ask(evidence(frame, compared, table, recipes, model))]
        for model in dict.fromkeys(frame.model)
    }
    drawn |= question_figures.draw(answers, colours)
    svgs = {key: style.to_svg(fig, {}) for key, fig in drawn.items()}
    config = {"study": {"datasets": "all"}, "models": {frame.model[0]: {"caveat": more.pop("caveat", "")}}}
    provenance = {"versions": {"torch": "2.13.0"}, "fingerprint": {"summary": "ab"}}
    return build(Study(frame, compared, table, svgs, colours, config, provenance, "snakemake report",
                       "snakemake --configfile more.yaml", answers=answers,
                       written={"study": {"models": [HOSTILE]}}, **more))  # fmt: skip


# ---- verdicts


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.2, -0.1, "better"), (0.1, 0.2, "worse"), (-0.1, 0.1, "none"), (0.0, 0.1, "none"), (math.nan, 0.1, "unknown")],
)
def test_an_outcome_needs_an_interval_without_zero(low: float, high: float, outcome: str):
    assert Difference((low + high) / 2, low, high, 10).outcome == outcome


@pytest.mark.parametrize(("p", "outcome"), [(0.049, "worse"), (0.05, "worse"), (0.051, "none")])
def test_with_a_corrected_p_the_interval_decides_nothing(p: float, outcome: str):
    assert Difference(0.15, 0.1, 0.2, 10, p).outcome == outcome


def test_an_original_that_makes_no_sense_is_a_caveat_of_its_model():
    frame = summary(DELTAS)
    assert "makes no sense" not in page(frame, PAIRS)
    frame.loc[frame.method == "original", "storage_reason"] = "its tokenizer gives <2.00> tokens"
    text = page(frame, PAIRS, caveat="Stored in 4 bits before.")
    assert "Stored in 4 bits before. On d the original makes no sense: its tokenizer gives &lt;2.00&gt; tokens." in text
    assert "No verdict below says anything of a working model." in text


def test_weights_quantised_before_are_a_caveat_where_the_configuration_has_none():
    caveats = {"m": "stored in <FP8> once before"}
    assert "stored in &lt;FP8&gt; once before" in page(summary(DELTAS), PAIRS, caveats=caveats)
    assert "once before" not in page(summary(DELTAS), PAIRS, caveats=caveats, caveat="Mine.")


def test_no_difference_says_what_could_have_been_seen():
    words = verdicts.difference_words("a", "b", Difference(0.01, -0.01, 0.03, 10, 0.4, 0.05))
    assert words.startswith("no difference shown between a and b") and "one of 0.050 could have been seen" in words


def test_a_difference_of_exactly_nothing_is_identical():
    assert Difference(0.0, 0.0, 0.0, 10).outcome == "identical"


@pytest.mark.parametrize(
    ("rise", "band"),
    [(-0.1, "excellent"), (0.0499, "excellent"), (0.05, "good"), (0.1, "acceptable"), (0.2, "poor"),
     (math.inf, "poor"), (math.nan, "poor")],
)  # fmt: skip
def test_quality_bands(rise: float, band: str):
    assert verdicts.quality(rise) == band


def test_a_pair_reads_the_same_both_ways_round():
    forward = verdicts.pair_difference(PAIRS, "m", "d", "rtn", "gw_awq")
    backward = verdicts.pair_difference(PAIRS, "m", "d", "gw_awq", "rtn")
    assert forward._replace(error=0.0) == Difference(0.2, 0.1, 0.3, 10, 0.001, 0.05, 0.001, 0.0)
    assert backward._replace(error=0.0) == Difference(-0.2, -0.3, -0.1, 10, 0.001, 0.05, 0.001, 0.0)
    assert verdicts.pair_difference(PAIRS, "m", "other", "rtn", "gw_awq") is None


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({}, {"salience"}),
        ({"bits": 3}, {"salience", "bits"}),
        ({"damp": 0.1}, {"salience"}),
        ({"damp": 0.1, "rounding": "gptq"}, {"salience", "damp", "rounding"}),
        ({"unheard_of": None}, {"salience"}),
        ({"unheard_of": 1}, {"salience", "unheard_of"}),
    ],
)
def test_recipes_differ_only_in_keys_with_an_effect(change: dict, keys: set[str]):
    assert pairs.differing_keys(RECIPES["gw_awq"], {**RECIPES["gw_praq"], **change}) == keys


def test_pairs_are_alike_but_for_salience():
    recipes = {**RECIPES, "praq3": {**RECIPES["gw_praq"], "bits": 3}, "awq3": {**RECIPES["gw_awq"], "bits": 3}}
    assert pairs.pairs_alike_but(recipes, {"salience": "praq"}, {"salience": "l1"}) == [
        ("gw_praq", "gw_awq"),
        ("praq3", "awq3"),
    ]


def test_experts_without_a_moment_of_their_own_are_said():
    table = pd.DataFrame({"linear": ["a", "b", "c"] * 2, "lent": [False, True, True, np.nan, np.nan, np.nan]})
    assert "2 of 3 linears, experts, have no second moment of their own" in verdicts.lent_lines(table)[0]
    assert not verdicts.lent_lines(table.assign(lent=False)) and not verdicts.lent_lines(table[["linear"]])


def test_more_damping_than_asked_is_said():
    table = pd.concat([layers("gptq").assign(damp=damp) for damp in (0.01, 0.1, 1.0)] + [layers("rtn")])
    recipes = {"gptq": {"damp": 0.01}, "rtn": {"damp": 0.01}, "autoawq": {}}
    assert verdicts.damping_lines(table, recipes) == [
        "gptq: with damp 0.01 the second moment is not positive definite in 2 linears (model.layers.0.mlp.up_proj, "
        "model.layers.0.mlp.up_proj); up to 1 was taken."
    ]
    assert verdicts.damping_lines(table[table.damp != 1], recipes)[0].count("1 linear (") == 1
    assert not verdicts.damping_lines(layers("gptq").assign(damp=0.01), recipes)


def test_the_best_method_names_runner_up_original_and_ties():
    answer = verdicts.best_answer(summary(DELTAS), PAIRS, "m", "d")
    assert answer.headline == "gw_awq"
    assert "no difference shown between gw_awq and gw_praq" in answer.lines[0]
    assert "gw_awq is worse than the original (delta_nll +0.1000 [+0.0900, +0.1100])" in answer.lines[1]
    assert answer.lines[2] == "Not told apart from it by this test: gw_praq."


def test_a_failed_method_never_wins():
    frame = summary(DELTAS)
    frame.loc[frame.method == "gw_awq", ["nll", "ppl", "delta_nll"]] = math.nan
    assert verdicts.best_answer(frame, PAIRS, "m", "d").headline == "gw_praq"


def test_best_by_bits_only_where_widths_differ():
    frame = summary(DELTAS)
    assert verdicts.best_by_bits(frame, recipes_of(frame), "m", "d") == []
    frame.loc[frame.method == "rtn", "recipe"] = json.dumps({**RECIPE, "bits": 8})
    lines = verdicts.best_by_bits(frame, recipes_of(frame), "m", "d")
    assert [line.split(",")[0] for line in lines] == ["4 bits: gw_awq", "8 bits: rtn"]


@pytest.mark.parametrize(
    ("intervals", "headline"),
    [
        ([(0.1, 0.2), (0.1, 0.2), (-0.2, -0.1)], "AWQ's choice errs less more often"),
        ([(-0.2, -0.1), (-0.1, 0.1)], "PRAQ's choice errs less more often"),
        ([(-0.1, 0.1)], "No difference shown"),
    ],
)
def test_check_answer_counts_intervals_without_zero(intervals: list[tuple[float, float]], headline: str):
    assert verdicts.check_answer(check(*intervals)).headline == headline


def test_experts_that_the_check_leaves_out_are_said():
    assert len(verdicts.check_answer(check((-0.1, 0.1))).lines) == 1
    said = verdicts.check_answer(check((-0.1, 0.1)) | {"left_out": 24}).lines
    assert said[1].startswith("24 linears of experts are left out")


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((0.95, 0.95), "95.0 % of the model's weights are quantised."),
        ((0.5, 0.5), "50.0 % of the model's weights are quantised: the rest is in 16 bit"),
        ((0.9, 0.97), "90.0 to 97.0 % of the model's weights are quantised, by method."),
    ],
)
def test_the_page_says_which_share_is_quantised(shares: tuple[float, float], words: str):
    frame = summary({"rtn": 0.1, "gw_awq": 0.1}).assign(quantized_share=[0.0, *shares])
    assert models.share_words(frame).startswith(words)
    assert words in html.unescape(page(frame, comparisons(("rtn", "gw_awq", 0, -1, 1))))


BY_KL = {"delta_kl": [-0.1, -0.1, 0.02], "delta_kl_low": [-0.2, -0.2, 0.01], "delta_kl_high": [-0.05, -0.05, 0.03],
         "kl_sequences": 9, "p_kl": 0.001, "p_holm_kl": 0.002, "detectable_kl": 0.04}  # fmt: skip


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


def test_the_best_by_kl_is_the_one_of_least_kl():
    frame = summary(DELTAS).assign(kl=[0.0, 0.05, 0.1, 0.11])
    answer = verdicts.best_answer(frame, PAIRS.assign(**BY_KL), "m", "d", "kl")
    assert answer.headline == "rtn"
    assert answer.lines[0].startswith("Against the runner-up: rtn is better than gw_awq (delta_kl −0.1000")
    assert "; by NLL it is worse (delta_nll +0.2000" in answer.lines[0]
    assert "; KL from it 0.0500 [0.2900, 0.3100]." in answer.lines[1]
    assert answer.lines[-1].startswith("By NLL the best is gw_awq: rtn is worse than gw_awq (delta_nll +0.2000")
    config = {"comparison": {"by": "kl"}}
    assert Study(frame, PAIRS, layers(), {}, {}, config, provenance={}, command="", adding="").by == "kl"


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


# ---- numbers


def test_numbers_are_short_and_missing_ones_a_dash():
    given = [(25.613, 2), (12345.6, 0), (3.2e9, 2), (math.inf, 2), (math.nan, 2), (None, 2)]
    assert [number(*each) for each in given] == ["25.61", "12,346", "3.20e+09", "∞", "–", "–"]
    assert [percent(x) for x in (0.166, -0.01, 45.0, math.nan)] == ["+16.6 %", "−1.0 %", "×46", "–"]
    assert [duration(x) for x in (5.04, 61, 3660)] == ["5.0 s", "1 min 1 s", "1 h 1 min"]


# ---- the page


def test_the_page_has_its_sections_in_order():
    steps = pd.DataFrame([("quantize", "m/rtn", 61.0, 900.0)], columns=["rule", "job", "seconds", "max_rss_mb"])
    text = page(summary(DELTAS), PAIRS, checks={"m": check((0.1, 0.2))}, steps=steps, caveat="stored in 4 bits before")
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
    assert text.count("<img ") == text.count(" alt=") == 9


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


PROBE = """<script type="module">
const rows = () => [...document.querySelectorAll("table.summary tbody tr")].map((tr) => tr.cells[0].textContent);
const wait = () => new Promise((done) => setTimeout(done, 200));
const heading = [...document.querySelectorAll("table.summary th")].find((th) => th.textContent.includes("perplexity"));
heading?.click();
await wait();
heading?.click();
await wait();
const order = rows();
const filter = document.querySelector(".dt-search input");
if (filter) {
  filter.value = "awq";
  filter.dispatchEvent(new Event("input", { bubbles: true }));
  await wait();
}
const root = document.documentElement;
const bad = [...document.images].filter((image) => {
  const box = image.getBoundingClientRect(), paper = image.parentElement.getBoundingClientRect();
  const whole = box.left >= paper.left - 1 && box.right <= paper.right + 1 && box.right <= root.clientWidth + 1;
  return !(image.complete && image.naturalWidth && box.width > 100 && box.height > 40 && whole);
});
const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
const fetched = resources.filter((name) => !/^data:/.test(name));
const drawn = [...document.querySelectorAll("figure")];
const tallest = Math.max(...drawn.map((figure) => figure.offsetHeight));
const split = drawn.filter((figure) => getComputedStyle(figure).breakInside !== "avoid").length;
const seen = { order, filtered: rows(), bad: bad.length, pictures: document.images.length, fetched, tallest, split,
  overflow: root.scrollWidth > root.clientWidth };
document.title = JSON.stringify(seen);
</script>"""
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="needs the chromium browser, which is not on the PATH: apt install chromium",
)


def chromium(tmp_path: Path, text: str, width: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Opens a page from a file in a headless browser of that width, with a profile of its own."""
    (tmp_path / "report.html").write_text(text)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-component-update", "--disable-background-networking", "--disable-sync",
               f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", f"--window-size={width},900",
               "--virtual-time-budget=8000", *arguments, (tmp_path / "report.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def probed(tmp_path: Path, text: str, width: int) -> dict:
    done = chromium(tmp_path, text.replace("</body>", PROBE + "</body>"), width, "--dump-dom")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))


def browser_page() -> str:
    """Four methods, one with a hostile name and one gone wild, with every kind of figure."""
    frame = summary({HOSTILE: 0.2, "gw_awq": 0.1, "gw_praq": 0.15, "rtn": 9.0}, model=HOSTILE)
    compared = comparisons(("gw_awq", "gw_praq", -0.05, -0.08, -0.02), model=HOSTILE)
    table = pd.concat([layers(name, HOSTILE).assign(relative_error=0.01 * (i + 1))
                       for i, name in enumerate((HOSTILE, "gw_awq", "gw_praq", "rtn"))])  # fmt: skip
    return page(frame, compared, layers=table, checks={HOSTILE: check((0.1, 0.2))})


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_tables_sort_and_filter_and_every_figure_shows(tmp_path: Path, width: int):
    seen = probed(tmp_path, browser_page(), width)
    assert seen["order"] == ["rtn", HOSTILE, "gw_praq", "gw_awq", "original"]
    assert seen["filtered"] == ["gw_awq"]
    assert seen["pictures"] == 10 and seen["bad"] == 0
    assert not seen["overflow"] and seen["fetched"] == []


@needs_chromium
def test_printed_no_figure_is_cut_off(tmp_path: Path):
    """On A4 with margins of 14 mm: 182 mm wide, 269 mm tall, at 96 pixels an inch. The rules for print are laid out on
    the screen, where they can be measured; then the browser prints."""
    text = browser_page()
    seen = probed(tmp_path, text.replace("@media print", "@media all"), round(182 / 25.4 * 96))
    assert seen["bad"] == 0 and seen["split"] == 0
    assert 0 < seen["tallest"] < 269 / 25.4 * 96
    chromium(tmp_path, text, 1280, f"--print-to-pdf={tmp_path}/report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


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
