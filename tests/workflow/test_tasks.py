"""Tasks from their items to the page, those of lm-eval in the environment that the workflow makes for it.

The environment is built once by its own rule and kept beside other temporary files, under a name that changes with its
requirements.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from quant.data.lm_eval import lm_eval_items
from quant.errors import InputError
from quant.files.artifacts import digest
from tests import tiny

REQUIREMENTS = tiny.ROOT / "envs/lm_eval.txt"
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
HUB_TASK = "lambada_openai"  # one of lm-eval's own, of a single kind: the last word of a text
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody answers there, and what is cached is taken
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
found = evaluator.simple_evaluate(model, tasks=["choice", "lambada_openai"], log_samples=True, limit=30,
                                  task_manager=TaskManager(include_path="."),
                                  bootstrap_iters=0)
rows = {task: [{"doc": s["doc_id"], "resps": s["filtered_resps"], "acc": s["acc"], "acc_norm": s.get("acc_norm")}
               for s in samples]
        for task, samples in found["samples"].items()}
print("FOUND" + json.dumps(rows, default=str))
"""


@pytest.fixture(scope="module")
def environment() -> Path:
    """results/environments/lm_eval, made by rule build_lm_eval where an earlier run has not."""
    kept = Path(tempfile.gettempdir()) / f"quant-lm-eval-{digest(REQUIREMENTS.read_bytes())}"
    with FileLock(f"{kept}.lock"):
        if not (kept / "results/environments/lm_eval/complete").is_file():
            shutil.rmtree(kept, ignore_errors=True)
            tiny.clone(kept)
            done = tiny.snakemake(kept, "results/environments/lm_eval/complete")
            seen = done.stdout + done.stderr
            if done.returncode:
                shutil.rmtree(kept)
                if "pip install failed" in seen:
                    pytest.skip("pip cannot install lm-eval's environment here")
                raise AssertionError(seen)
    return kept / "results/environments/lm_eval"


def save_tasks(folder: Path, cache: Path) -> None:
    """30 questions with four choices of one to four words, and 30 texts whose last word is asked, of the tiny model's
    vocabulary: these as the hub's data set of HUB_TASK in a cache of `datasets`."""
    import datasets

    drawn = random.Random(3)

    def words(low: int, high: int) -> str:
        return " ".join(drawn.choice(tiny.WORDS) for _ in range(drawn.randint(low, high)))

    choices = [
        {"question": words(3, 12), "choices": [words(1, 4) for _ in range(4)], "answer": drawn.randrange(4)}
        for _ in range(30)
    ]
    texts = [{"text": words(4, 13)} for _ in range(30)]
    for name, rows in (("choice", choices), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(yaml.safe_dump(CHOICE))
    files = {"test": str(folder / "texts.jsonl")}
    datasets.load_dataset("json", data_files=files, cache_dir=str(cache / "made"))
    (made,) = (cache / "made/json").glob("*/*/*/dataset_info.json")
    kept = cache / f"EleutherAI___{HUB_TASK}/default" / made.parent.relative_to(made.parents[2])
    shutil.copytree(made.parent, kept)
    (kept / "json-test.arrow").rename(kept / f"{HUB_TASK}-test.arrow")
    told = made.read_text().replace('"dataset_name": "json"', f'"dataset_name": "{HUB_TASK}"')
    (kept / "dataset_info.json").write_text(told)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    """A clone that has answered a task file's choices and the words of a hub's task by name, by a packed method and one
    that is not."""
    folder = tiny.clone(tmp_path_factory.mktemp("tasks") / "clone")
    (folder / "mine").mkdir()
    save_tasks(folder / "mine", folder / "cache")
    (folder / "results").mkdir()
    (folder / "results/environments").symlink_to(environment.parent)
    for name in ("complete", "packages.txt"):
        os.utime(environment / name)
    study = tiny.OVERLAY["study"] | {"tasks": ["choice", "word", "module"], "task_methods": ["rtn_g", "gw_awq"]}
    tasks: dict[str, Any] = {"choice": {"yaml": "mine/choice.yaml"}, "word": {"lm_eval": HUB_TASK, "n_items": 30}}
    tiny.write_overlay(
        folder,
        tiny.OVERLAY
        | {
            "study": study,
            "tasks": tasks | {"module": {"n_items": 8}},
            "words": {"task": "module", "prompts": 6, "tokens": 5},
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (NO_HUB | {"HF_DATASETS_CACHE": str(folder / "cache")}).items():
            patch.setenv(key, value)
        done = tiny.snakemake(folder, "results/report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_answers_are_those_of_lm_eval_by_hand(asked: Path, environment: Path) -> None:
    """On a packed checkpoint: log likelihoods, greedy words and both accuracies, item by item."""
    checkpoint = asked / "results/tiny/rtn_g/checkpoint"
    command = [sys.executable, "-c", BY_HAND, str(environment), str(checkpoint.resolve()), str(asked / "mine")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(asked / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("FOUND")[2])
    for task in ("choice", "word"):
        ours = tiny.read(asked / f"results/tiny/rtn_g/tasks/{task}.json")
        theirs_of = found[task if task == "choice" else HUB_TASK]
        assert len(ours["items"]) == len(theirs_of) == 30
        for row, theirs in zip(ours["items"], sorted(theirs_of, key=lambda one: one["doc"]), strict=True):
            log_p = [float(one[0]) for one in theirs["resps"]]
            assert row["log_p"] == pytest.approx(log_p, abs=1e-4)
            assert row["right"] == bool(theirs["acc_norm" if task == "choice" else "acc"])
        table = pd.read_csv(asked / "results/tasks.csv").set_index(["task", "method"])
        key = "acc_norm" if task == "choice" else "acc"
        assert table.loc[(task, "rtn_g"), "score"] == pytest.approx(sum(one[key] for one in theirs_of) / 30)


@pytest.mark.slow
def test_every_result_says_what_made_it(asked: Path) -> None:
    table = pd.read_csv(asked / "results/tasks.csv")
    assert list(table.method) == ["original", "rtn_g", "gw_awq"] * 3 and list(table.task.unique()) == [
        "choice",
        "word",
        "module",
    ]
    assert len(pd.read_csv(asked / "results/task_pairs.csv")) == 3
    assert table.chance.tolist() == [0.25] * 3 + [0.0] * 3 + [0.25] * 3
    made = tiny.read(asked / "results/tiny/rtn_g/tasks/choice.json")["provenance"]
    assert made["recipe"]["bits"] == 4 and made["versions"]["torch"] and made["model_fingerprint"]
    task = tiny.read(asked / "results/tasks/choice.json")
    assert task["provenance"]["lm_eval"]["versions"]["lm_eval"] == "0.4.13"
    assert task["provenance"]["fingerprint"] == made["task_fingerprint"] and task["score"] == "acc_norm"
    assert tiny.read(asked / "results/tiny/calibration/texts.json")["tasks"]["choice"]["items"] == 30
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
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("helaswag", r"^tasks\.mine: lm-eval has no task 'helaswag'; did you mean 'hellaswag'\?$"),
        (
            "hellaswag",
            r"^tasks\.mine: the hub cannot be reached \(.*\), and .*; mend that, or leave it out of study.tasks$",
        ),
    ],
)
def test_a_task_that_lm_eval_cannot_give_is_one_line(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", NO_HUB["HF_ENDPOINT"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    spec = {"lm_eval": name, "n_items": 3, "num_fewshot": None}
    with pytest.raises(InputError, match=said) as caught:
        lm_eval_items(spec, environment, "tasks.mine")
    assert "\n" not in str(caught.value)


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
