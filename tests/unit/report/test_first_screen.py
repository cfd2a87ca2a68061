"""The first screen: what to take and how to load it, a recipe to try where it is poor, and what a table draws."""

import ast
import html
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from quant.comparison.untried import RECIPES, idea
from quant.recipe.keys import defaults
from quant.report.page import spans
from quant.report.sections.models import deploy
from quant.report.tables import OWN_PAIRS, pair_headings, summary_table
from tests.unit.report.pages import DELTAS, HOSTILE, PAIRS, choice_of, chromium, needs_chromium, page, summary
from tests.unit.workflow.configurations import configured


def packed(deltas: dict[str, float], **more: Any):
    return summary(deltas, **more).assign(compression=2.0).replace({"storage": {"simulated": "packed"}})


def test_it_says_where_the_checkpoint_lies_and_how_it_is_loaded() -> None:
    frame = packed(DELTAS, model=HOSTILE)
    choice = choice_of(frame)
    text = page(frame, PAIRS, choices={HOSTILE: choice})
    first = text[text.index('<section class="card">') : text.index('id="summary"')]
    assert choice.path == f"results/{HOSTILE}/gw_awq/checkpoint" and html.escape(choice.path) in first
    blocks = [html.unescape(block) for block in re.findall(r"<pre[^>]*>(.*?)</pre>", first, re.DOTALL)]
    for block, words in zip(blocks[:2], ("AutoModelForCausalLM.from_pretrained(path)", "LLM("), strict=True):
        assert words in block and repr(choice.path) in block
        ast.parse(block)
    (short,) = re.findall(r'<p class="short">(.*?)</p>', first, re.DOTALL)
    assert all(
        words in short for words in ("Does PRAQ beat AWQ? <strong>", "Hurts least: <strong>", "To deploy: <strong>")
    )
    assert first.index("size delta nll") < first.index("What to deploy") < first.index("Did PRAQ help")
    assert "AWQ protects" in text[: text.index('<section class="card">')], "what the title asks about is said"


def test_no_reader_is_recommended_that_has_no_product_for_the_checkpoint() -> None:
    frame = packed(DELTAS).assign(no_kernels="wants <outputs> of 64")
    text = page(frame, PAIRS, choices={"m": choice_of(frame)})
    assert "(Marlin) wants &lt;outputs&gt; of 64." in text and "LLM(" not in text


@pytest.mark.parametrize(("rise", "said"), [(0.3, True), (0.1, False)])
def test_a_recipe_to_try_is_named_where_the_best_is_poor(rise: float, said: bool) -> None:
    frame = packed({"rtn": rise})
    text = page(frame, PAIRS.iloc[:0], choices={"m": choice_of(frame)})
    assert ("Not tried here: awq_clip_gptq_shared" in text) == said


def test_where_nothing_packed_fits_a_recipe_is_named_too() -> None:
    frame = summary(DELTAS)
    study = SimpleNamespace(rows=lambda *_: frame, config={}, colours={}, recipes={})
    found = deploy(study, choice_of(frame))
    assert found["choice"].path is None and found["idea"].name == "awq_clip_gptq_shared"


def test_what_was_tried_is_not_named_again() -> None:
    configured_methods = configured("{}")["methods"]
    tried: dict[str, dict[str, Any]] = {}
    for name, recipe, _ in RECIPES:
        found = idea(tried, configured_methods, {})
        assert found is not None and found.name == name
        tried[f"mine_{name}"] = defaults() | recipe | {"group_size": 32}
    assert idea(tried, configured_methods, {}) is None
    other = {"awq_clip_gptq_shared": defaults()}
    assert idea({}, other, {}).name == "awq_clip_gptq_shared_2"


@pytest.mark.parametrize("tried", range(len(RECIPES)))
def test_its_yaml_adds_it_to_any_study(tried: int) -> None:
    for known in (configured("{}")["methods"], {}):
        done = {name: defaults() | recipe for name, recipe, _ in RECIPES[:tried]}
        found = idea(done, known, {"max_bits_per_weight": 4.5})
        both = {"study": {"methods": ["rtn_g"]}}
        update_config(both, yaml.safe_load(found.yaml))
        config = configured(yaml.safe_dump(both))
        assert config["study"]["methods"] == ["rtn_g", found.name]
        assert found.recipe.items() <= config["methods"][found.name].items()
        assert config["choose"]["max_bits_per_weight"] == (8.5 if found.recipe.get("bits") == 8 else 4.5)


def test_intervals_share_a_scale_with_zero_and_end_where_it_ends() -> None:
    one, two, none, wild = spans([(-1, 0, 1), (1, 2, 3), (math.nan, 1, 2), (5, 50, 90)], farthest=4)
    assert one == (0, 40, 20, 20) and two == (40, 40, 60, 20) and none is None
    assert wild == (100, 0, 100, 20)


def test_perplexity_stands_second_and_the_interval_under_its_numbers() -> None:
    table = summary_table(summary(DELTAS), {})
    assert [name for name, _ in table.columns][:2] == ["method", "perplexity"]
    place = [name for name, _ in table.columns].index("delta_nll")
    drawn = [row[place].span for row in table.rows]
    assert drawn[0] is None and all(span.width > 0 and span.left >= span.zero for span in drawn[1:])


def test_what_was_not_asked_is_one_folded_list_with_the_command_that_adds() -> None:
    text = page(summary(DELTAS), PAIRS)
    folded = re.search(r'<details id="unasked">.*?</details>', text, re.DOTALL).group(0)
    assert "--configfile more.yaml" in folded and 'id="question-autoawq"' in folded
    assert 'id="question-praq"' not in folded and text.count("add: {methods:") == folded.count("add: {methods:")


def test_p_and_what_could_be_seen_are_explained_under_every_table_of_pairs() -> None:
    text = page(summary(DELTAS), PAIRS)
    assert text.count("could be seen: " + dict(pair_headings(OWN_PAIRS))["could be seen"]) == text.count(
        '<table class="data pairs"'
    ) + text.count('<table class="data answer"')


def test_bands_stand_beside_what_is_known_of_the_original() -> None:
    text = page(packed({"rtn": 0.5, "gw_awq": 0.6}), PAIRS.iloc[:1])
    low, high = math.exp(2.9), math.exp(3.1)
    assert f"the original&#39;s own perplexity is {math.exp(3):.2f} [{low:.2f}, {high:.2f}]" in text
    assert "every method is poor, so the bands tell none apart" in text
    assert "tell none apart" not in page(summary(DELTAS), PAIRS)


@needs_chromium
def test_on_a_telephone_perplexity_is_seen_without_scrolling(tmp_path: Path) -> None:
    probe = """<script type="module">
await new Promise((done) => setTimeout(done, 200));
const box = document.querySelectorAll("table.summary tbody tr")[1].cells[1].getBoundingClientRect();
document.title = JSON.stringify({ right: box.right, width: document.documentElement.clientWidth });
</script>"""
    frame = packed({"awq_clip_gptq_shared": 0.1, "gw_praq": 0.2})
    text = page(frame, PAIRS.iloc[:0]).replace("</body>", probe + "</body>")
    done = chromium(tmp_path, text, 400, "--dump-dom")
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))
    assert 0 < seen["right"] <= seen["width"]
