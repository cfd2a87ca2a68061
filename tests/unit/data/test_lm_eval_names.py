"""Names of lm-eval's tasks, without lm-eval."""

import pytest

from quant.data.lm_eval_names import check_name, names
from quant.errors import InputError


@pytest.mark.parametrize("name", ["hellaswag", "lambada_openai", "arc_easy", "mmlu"])
def test_a_task_or_a_group_is_known(name: str) -> None:
    check_name(name, "tasks.mine")
    assert len(names()) > 10_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("helaswag", "tasks.mine.lm_eval: lm-eval has no task 'helaswag'; did you mean 'hellaswag'?"),
        ("Zzz-1", "tasks.mine.lm_eval: lm-eval has no task 'Zzz-1'; `lm-eval ls tasks` lists them"),
    ],
)
def test_one_that_it_has_not_is_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_name(name, "tasks.mine")
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
