"""Tasks from their items to the page, those of lm-eval in the environment that the workflow makes for it."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from quant.data.lm_eval_names import names
from tests import hub, tiny
from tests.workflow.environments import environment_of, link

TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "metadata": {"version": 1.0},
}
CHOICE = TASK | {
    "task": "choice",
    "dataset_kwargs": {"data_files": {"test": "choice.jsonl"}},
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
WORD, ENDING = (
    "lambada_openai",
    "hellaswag",
)  # lm-eval's own: the last word of a text, and the right one of four endings
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody answers there
EXPERIMENT = yaml.safe_load((tiny.ROOT / "experiments/minicpm-2b.yaml").read_text())
PINNED = {name: spec["hub"] for name, spec in EXPERIMENT["texts"].items()}
WIKITEXT = PINNED["wikitext2_train"]["name"]
COMMITS = {spec["path"]: spec["revision"] for spec in PINNED.values()}
# lm-eval by hand on a checkpoint: its own model, tokens and batches; argv: environment, checkpoint, folder of the tasks
BY_HAND = """
import glob, json, os, sys
sys.path += glob.glob(f"{sys.argv[1]}/lib/python*/site-packages")  # behind our own transformers and torch
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
os.chdir(sys.argv[3])
model = HFLM(pretrained=sys.argv[2], device="cpu", dtype="float32", batch_size=4)
found = evaluator.simple_evaluate(model, tasks=["choice", "lambada_openai", "hellaswag"],
                                  log_samples=True, limit=30,
                                  task_manager=TaskManager(include_path="."),
                                  bootstrap_iters=0)
rows = {task: [{"doc": s["doc_id"], "resps": s["filtered_resps"], "acc": s["acc"], "acc_norm": s.get("acc_norm")}
               for s in samples]
        for task, samples in found["samples"].items()}
print("FOUND" + json.dumps(rows, default=str))
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    return environment_of("lm_eval")


def words(drawn: random.Random, low: int, high: int) -> str:
    """Of the tiny model's vocabulary."""
    return " ".join(drawn.choice(tiny.WORDS) for _ in range(drawn.randint(low, high)))


def save_choices(folder: Path) -> None:
    """A task file: 30 questions with four choices of one to four words."""
    drawn = random.Random(3)
    rows = [
        {"question": words(drawn, 3, 12), "choices": [words(drawn, 1, 4) for _ in range(4)], "answer": i % 4}
        for i in range(30)
    ]
    folder.mkdir()
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(yaml.safe_dump(CHOICE))


def save_hub(root: Path) -> None:
    """The data sets of the hub's tasks and of the full study's texts, with their columns, files and configurations;
    what is not asked for holds other rows."""
    drawn, splits = random.Random(4), ("train", "validation", "test")

    def ending(i: int) -> dict[str, Any]:
        begun, next_words = words(drawn, 3, 8), words(drawn, 1, 4)
        row = {"ind": i, "activity_label": words(drawn, 1, 2), "ctx_a": begun, "ctx_b": next_words}
        row |= {"ctx": f"{begun} {next_words}", "endings": [words(drawn, 1, 5) + " [title] w1" for _ in range(4)]}
        return row | {"source_id": "a", "split": "val", "split_type": "indomain", "label": str(i % 4)}

    files = {f"data/{split}-00000-of-00001.parquet": [ending(i) for i in range(30)] for split in splits}
    hub.save(root, "Rowan/hellaswag", {"default": {split: f"data/{split}-*" for split in splits}}, files)
    languages = {name: {"test": f"{name}/test-*"} for name in ("default", "de")}
    passages = {f"{name}/test-00000-of-00001.parquet": [{"text": words(drawn, 4, 13)} for _ in range(30)]
                for name in languages}  # fmt: skip
    hub.save(root, "EleutherAI/lambada_openai", languages, passages)
    sizes = {name: {split: f"{name}/{split}-*" for split in splits} for name in (WIKITEXT, "wikitext-103-raw-v1")}
    lines = {f"{name}/{split}-00000-of-00001.parquet": [{"text": words(drawn, 5, 60) + "\n"} for _ in range(60)]
             for name, part in sizes.items() for split in part}  # fmt: skip
    hub.save(root, "Salesforce/wikitext", sizes, lines)
    parts = {"train": "en/c4-train.*.json.gz", "validation": "en/c4-validation.*.json.gz"}
    pages = {f"en/c4-validation.0000{i}-of-00008.json.gz": [{"text": words(drawn, 5, 60), "url": ""} for _ in range(40)]
             for i in range(8)}  # fmt: skip
    pages |= {f"en/c4-train.0000{i}-of-01024.json.gz": [] for i in range(3)}
    hub.save(root, "allenai/c4", {"en": parts, "realnewslike": {"train": "realnewslike/*"}}, pages)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    root = tmp_path_factory.mktemp("hub")
    save_hub(root)
    with hub.serving(root, COMMITS) as found:
        yield found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, environment: Path, served: hub.Hub) -> Path:
    """A clone that has answered a task file's choices and two of a hub's tasks by name, by a packed method and one that
    is not, on texts of the same hub that the full study names."""
    folder = tiny.clone(tmp_path_factory.mktemp("tasks") / "clone")
    save_choices(folder / "mine")
    link(folder, environment)
    study = tiny.OVERLAY["study"] | {"tasks": ["choice", "word", "ending"], "task_methods": ["rtn_g", "gw_awq"]}
    tasks: dict[str, Any] = {"choice": {"yaml": "mine/choice.yaml"}, "word": {"lm_eval": WORD, "n_items": 30}}
    heldout = tiny.OVERLAY["datasets"]["heldout"]
    changed = {
        "study": study,
        "tasks": tasks | {"ending": {"lm_eval": ENDING, "n_items": 30}, "module": {"n_items": 8}},
        "words": {"task": "module", "prompts": 6, "tokens": 5},
        "texts": tiny.OVERLAY["texts"] | EXPERIMENT["texts"],
        "calibration": tiny.OVERLAY["calibration"] | {"text": "wikitext2_train"},
        "datasets": {"heldout": heldout | {"text": "c4"}, "stories": heldout | {"text": "lambada"}},
    }
    tiny.write_overlay(folder, tiny.OVERLAY | changed)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(folder / "cache")}.items():
            patch.setenv(key, value)
        done = tiny.snakemake(folder, "results/report.html", "results/tiny/datasets/stories/tokens.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_of_a_hub_the_files_alone_that_are_read_are_fetched(asked: Path, served: hub.Hub) -> None:
    """Of C4 the one that is named; of WikiText-2 and HellaSwag every split, which the library wants."""
    fetched = {name for name in served.asked if not name.endswith("README.md")}
    splits = ("train", "validation", "test")
    assert fetched == {
        f"allenai/c4/{PINNED['c4']['data_files']}",
        "EleutherAI/lambada_openai/default/test-00000-of-00001.parquet",
        *(f"Salesforce/wikitext/{WIKITEXT}/{split}-00000-of-00001.parquet" for split in splits),
        *(f"Rowan/hellaswag/data/{split}-00000-of-00001.parquet" for split in splits),
    }


@pytest.mark.slow
def test_answers_are_those_of_lm_eval_by_hand(asked: Path, environment: Path, served: hub.Hub, tmp_path: Path) -> None:
    """On a packed checkpoint: log likelihoods, greedy words and both accuracies, item by item."""
    checkpoint = asked / "results/tiny/rtn_g/checkpoint"
    command = [sys.executable, "-c", BY_HAND, str(environment), str(checkpoint.resolve()), str(asked / "mine")]
    variables = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    for task, theirs_name, key in (
        ("choice", "choice", "acc_norm"),
        ("word", WORD, "acc"),
        ("ending", ENDING, "acc_norm"),
    ):
        ours = tiny.read(asked / f"results/tiny/rtn_g/tasks/{task}.json")
        theirs_of = found[theirs_name]
        assert len(ours["items"]) == len(theirs_of) == 30
        for row, theirs in zip(ours["items"], sorted(theirs_of, key=lambda one: one["doc"]), strict=True):
            log_p = [float(one[0]) for one in theirs["resps"]]
            assert row["log_p"] == pytest.approx(log_p, abs=1e-4)
            assert row["right"] == bool(theirs[key])
        table = pd.read_csv(asked / "results/tasks.csv").set_index(["task", "method"])
        assert table.loc[(task, "rtn_g"), "score"] == pytest.approx(sum(one[key] for one in theirs_of) / 30)


@pytest.mark.slow
def test_every_result_says_what_made_it(asked: Path) -> None:
    table = pd.read_csv(asked / "results/tasks.csv")
    assert list(table.method) == ["original", "rtn_g", "gw_awq"] * 3
    assert list(table.task.unique()) == ["choice", "word", "ending"]
    assert len(pd.read_csv(asked / "results/task_pairs.csv")) == 3
    assert table.chance.tolist() == [0.25] * 3 + [0.0] * 3 + [0.25] * 3
    made = tiny.read(asked / "results/tiny/rtn_g/tasks/choice.json")["provenance"]
    assert made["recipe"]["bits"] == 4 and made["versions"]["torch"] and made["model_fingerprint"]
    task = tiny.read(asked / "results/tasks/choice.json")
    assert task["provenance"]["lm_eval"]["versions"]["lm_eval"] == "0.4.13"
    assert task["provenance"]["fingerprint"] == made["task_fingerprint"] and task["score"] == "acc_norm"
    sources = {name: tiny.read(asked / f"results/tasks/{name}.json")["provenance"]["lm_eval"]["sources"]
               for name in ("choice", "word", "ending")}  # fmt: skip
    words_of = f"EleutherAI/lambada_openai default@{COMMITS['EleutherAI/lambada_openai']}"
    assert sources == {"choice": ["json"], "word": [words_of], "ending": [f"Rowan/hellaswag@{hub.COMMIT}"]}
    known = tiny.read(asked / "results/tiny/calibration/texts.json")["tasks"]
    assert {name: one["items"] for name, one in known.items()} == {"choice": 30, "word": 30, "ending": 30, "module": 8}
    words = pd.read_csv(asked / "results/words.csv").set_index("method")
    assert words.texts.tolist() == [6] * 3 and words.loc["original", "agreed"] == words.tokens.max() == 5
    page = (asked / "results/report.html").read_text()
    for anchor in ("tasks", "words"):
        assert f'<section id="{anchor}">' in page and f'href="#{anchor}"' in page
    assert tiny.pending_in(tiny.snakemake(asked, "--dry-run", "results/tasks.csv").stdout) == {}


@pytest.mark.slow
def test_another_item_asks_that_task_again_and_no_other(asked: Path) -> None:
    path = asked / "mine/choice.jsonl"
    before = path.read_text()
    path.write_text(before + before.splitlines()[0] + "\n")
    seen = tiny.snakemake(asked, "--dry-run", "results/tasks.csv")
    path.write_text(before)
    found = tiny.pending_in(seen.stdout + seen.stderr)
    assert found["make_task"] == 1 and found["evaluate_task"] == 3 and "quantize" not in found


@pytest.mark.slow
def test_a_hub_that_is_out_of_reach_is_one_line_and_nothing_has_run(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.clone(tmp_path / "clone")
    link(folder, environment)
    for key, value in (NO_HUB | {"HF_HOME": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(key, value)
    tiny.write_overlay(folder, overlay(mine={"lm_eval": ENDING, "n_items": 3}))
    done = tiny.snakemake(folder, "results/report.html")
    (line,) = {one for one in (done.stdout + done.stderr).splitlines() if one.startswith("ERROR tasks")}
    said = r"ERROR tasks\.mine: the hub cannot be reached \(.*\), and .*; mend that, or leave it out of study.tasks"
    assert done.returncode == 1 and re.fullmatch(said, line), done.stdout + done.stderr
    assert {path.name for path in (folder / "results").iterdir()} <= {"environments", "logs", "benchmarks"}
    assert [path.name for path in (folder / "results/logs").rglob("*.log")] == ["mine.log"]


@pytest.mark.slow
def test_the_names_that_are_known_are_those_of_the_library(environment: Path) -> None:
    ask = "from lm_eval.tasks import TaskManager; print(*TaskManager().all_tasks, sep='\\n')"
    done = subprocess.run([environment / "bin/python", "-c", ask], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == names()


def overlay(**tasks: Any) -> dict[str, Any]:
    return tiny.OVERLAY | {"study": tiny.OVERLAY["study"] | {"tasks": list(tasks)}, "tasks": tasks}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clone(tmp_path_factory.mktemp("fresh") / "clone")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"mine": {"yaml": "none.yaml"}}, "tasks.mine: none.yaml: cannot be read"),
        ({"mine": {"yaml": "code.yaml"}}, "tasks.mine: code.yaml:2: process_docs: !function names code"),
        ({"mine": {"yaml": "data.yaml"}}, "tasks.mine: missing.jsonl: no such file"),
        ({"mine": {"lm_eval": "helaswag"}}, "lm-eval has no task 'helaswag'; did you mean 'hellaswag'?"),
        ({"mine": {"embedded": "last_words"}}, "tasks.mine.embedded: 'last_words'; did you mean last_word?"),
        ({"mine": {"embedded": "module", "lm_eval": "hellaswag"}}, "must hold exactly one of: embedded, lm_eval, yaml"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_before_anything_runs(
    fresh: Path, tasks: dict[str, Any], said: str
) -> None:
    (fresh / "code.yaml").write_text("task: code\nprocess_docs: !function utils.f\n")
    (fresh / "data.yaml").write_text(
        yaml.safe_dump(CHOICE | {"dataset_kwargs": {"data_files": {"test": "missing.jsonl"}}})
    )
    tiny.write_overlay(fresh, overlay(**tasks))
    status, seen = tiny.dry_run(fresh)
    assert status == 1 and said in seen and "Traceback" not in seen, seen
