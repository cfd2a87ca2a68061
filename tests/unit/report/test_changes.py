"""What a method would change, for a reader who knows no perplexity."""

import re

import numpy as np
import pandas as pd
import pytest

from quant.comparison.pick import Choice
from quant.comparison.tasks import task_tables
from quant.report.sections import changes
from tests.unit.comparison.items import answers, likelihoods
from tests.unit.report.pages import DELTAS, HOSTILE, PAIRS, choice_of, page, summary


def frame(**more: object) -> pd.DataFrame:
    """Packed methods of half the original's size, of which rtn agrees least."""
    found = summary(DELTAS, **more)
    quantised = found.method != "original"
    return found.assign(
        size_mb=np.where(quantised, 112.4, 269.05),
        storage=np.where(quantised, "packed", "original"),
        compression=np.where(quantised, 2.39, 1.0),
        top1_agreement=found.method.map({"original": 1.0, "rtn": 0.61, "gw_awq": 0.884, "gw_praq": 0.87}),
    )


def asked(effects: dict[str, float], n: int = 60, model: str = "m") -> pd.DataFrame:
    """tasks.csv of methods that make the right answer less likely by so much."""
    log_p = likelihoods(np.random.default_rng(3), np.array([0.0, *effects.values()]), n)
    group = {
        name: answers(name, one > -1, one, "last_word") for name, one in zip(["original", *effects], log_p, strict=True)
    }
    return task_tables({(model, "last_word"): group}, 999, 0)[0]


def first_words(text: str) -> str:
    return text[text.index('<div class="changes">') : text.index('<div class="first">')]


def test_the_page_begins_with_what_would_change() -> None:
    rows = frame()
    table = asked({"rtn": 1.5, "gw_awq": 0.05, "gw_praq": 0.1})
    said = first_words(page(rows, PAIRS, choices={"m": choice_of(rows)}, sources={"tasks.csv": table}))
    assert "What would change for you, with" in said and "gw_awq" in said
    assert "No loss of right answers shown on 60 questions." in said
    assert "Its file takes 112 MB instead of 269 MB: 2.4 times smaller." in said
    right = {row.method: round(row.score * 60) for row in table.itertuples()}
    assert f"Of 60 questions (a rule) it answers {right['gw_awq']} right, the original {right['original']} (a" in said
    assert f"The worst method asked, rtn, answers {right['rtn']} right." in said
    assert "picks the original&#39;s in 88 of 100; rtn, the worst of all, in 61" in said
    for jargon in ("perplexity", "NLL", "KL", "nats", "quantil"):
        assert jargon not in said


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (2.5, "fewer questions right"),
        (0.1, "less sure"),
        (0.0, "No loss of right answers shown on 300"),
        (-0.5, "no worse than"),
    ],
)
def test_its_headline_says_no_more_than_is_shown(effect: float, said: str) -> None:
    table = asked({"a": effect}, 60 if abs(effect) > 1 else 300)
    assert said in changes.headline(table, "a")


def test_where_the_original_guesses_no_loss_is_not_said_to_be_unseen() -> None:
    """Questions of which it answers none right show nothing, and do not count among those that do."""
    telling = asked({"a": 0.0}, 300)
    never = answers("a", np.zeros(60, bool), np.zeros(60), "module")
    group = {name: never | {"method": name} for name in ("original", "a")}
    guessed = task_tables({("m", "module"): group}, 99, 0)[0]
    said = "Nothing shown: the original itself answers 60 questions no better than by guessing"
    assert changes.headline(guessed, "a") == said
    both = pd.concat([telling, guessed], ignore_index=True)
    assert changes.headline(both, "a") == "No loss of right answers shown on 300 questions"


def test_without_tasks_it_says_what_there_is_and_names_are_escaped() -> None:
    rows = frame(model=HOSTILE)
    said = first_words(page(rows, PAIRS, choices={HOSTILE: choice_of(rows)}))
    assert 'class="best"' not in said and re.findall(r"<li>(\w+)", said) == ["Its", "Asked"]
    simulated = rows.assign(storage=rows.storage.replace("packed", "simulated"))
    said = first_words(page(simulated, PAIRS))
    assert "as large as the original" in said and "gw_awq" in said
    hostile = asked({HOSTILE: 0.0}, model="m")
    rows = frame().replace({"method": {"gw_awq": HOSTILE}}).assign(top1_agreement=0.9)
    text = page(rows, PAIRS.iloc[:0], sources={"tasks.csv": hostile})
    assert HOSTILE not in text and "&lt;script&gt;" in first_words(text)


def test_how_long_it_writes_alike_is_said() -> None:
    rows = frame()
    words = pd.DataFrame([{"model": "m", "method": "gw_awq", "agreed": 8.8, "tokens": 32, "texts": 20}])
    said = first_words(page(rows, PAIRS, choices={"m": choice_of(rows)}, sources={"words.csv": words}))
    assert "it writes what the original writes for 9 of 32 words" in said
    assert isinstance(choice_of(rows), Choice)
