"""A task file that names code is refused, and what its data are is found."""

from pathlib import Path

import pytest

from quant.data import task_yaml
from quant.errors import InputError

GOOD = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl, train: [a.jsonl, sub/b.jsonl]}}
output_type: multiple_choice
doc_to_text: "{{question}} ____"
doc_to_target: answer
unsafe_code: false
metric_list: [{metric: acc, hf_evaluate: false}]
"""


def written(folder: Path, text: str) -> str:
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


def test_data_stand_beside_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    task_yaml.check(path, "tasks.mine")
    names = [str(Path(file).relative_to(tmp_path)) for file in task_yaml.data_files(path)]
    assert names == ["mine.yaml", "mine.jsonl", "a.jsonl", "sub/b.jsonl"]
    hub = written(tmp_path, GOOD.replace("dataset_path: json", "dataset_path: OWNER/NAME"))
    assert task_yaml.data_files(hub) == [hub]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("process_docs: !function utils.clean", "process_docs: !function names code"),
        ("doc_to_text: !!python/name:os.system x", "!!python/name:os.system names code"),
        ("metadata: !custom {a: 1}", "metadata: !custom names code"),
        ("unsafe_code: true", "unsafe_code runs code"),
        ("class: mine.Task", "class runs code"),
        ("include: other.yaml", "write the keys of that file into this one"),
        ("filter_list: [{filter: [{trust_remote_code: true}]}]", "take a data set without code"),
        ("x: {hf_evaluate: true}", "take a metric of lm-eval itself"),
        ("dataset_path: loader.py", "loader.py is code"),
        ("output_type: generate_until", "output_type: generate_until; write multiple_choice or loglikelihood"),
    ],
)
def test_code_is_refused_in_one_line_that_says_where(tmp_path: Path, line: str, said: str) -> None:
    path = written(tmp_path, GOOD + line + "\n")
    with pytest.raises(InputError) as caught:
        task_yaml.check(path, "tasks.mine")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"tasks.mine: {path}:{GOOD.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(("text", "said"), [("a: [", "is no YAML"), ("- a", "holds no task"), (None, "cannot be read")])
def test_what_is_no_task_file_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = str(tmp_path / "none.yaml") if text is None else written(tmp_path, text)
    with pytest.raises(InputError, match=said):
        task_yaml.check(path, "tasks.mine")
