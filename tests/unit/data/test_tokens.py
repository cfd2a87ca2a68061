"""Token ids as artifacts: fingerprints, batches, windows, and files that were tampered with."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.data import tokens
from quant.data.held_out import check_held_out
from quant.errors import InputError


def ragged(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, 1000, (length,), generator=generator) for length in lengths]


def test_one_sequence_is_refused_where_methods_tune() -> None:
    sets = {"n8-s1": tokens.Tokens(ragged(5), "", {}), "n8-s2": tokens.Tokens(ragged(5, 4), "", {})}
    check_held_out({"n8-s2": ["a"]}, sets)
    with pytest.raises(InputError, match=r"^methods a, b: tune: the calibration text gives one sequence"):
        check_held_out({"n8-s1": ["a", "b"], "n8-s2": ["c"]}, sets)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_fingerprint_changes_with_any_id() -> None:
    sequences = ragged(4, 3, 5)
    marks = {tokens.fingerprint(sequences)}
    for i, sequence in enumerate(sequences):
        for j in range(len(sequence)):
            changed = [s.clone() for s in sequences]
            changed[i][j] += 1
            marks.add(tokens.fingerprint(changed))
    assert len(marks) == 1 + 12
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in marks)


def test_fingerprint_changes_with_any_boundary_or_order() -> None:
    ids = torch.arange(8)
    marks = {tokens.fingerprint([ids[:cut], ids[cut:]]) for cut in range(1, 8)}
    marks |= {tokens.fingerprint([ids]), tokens.fingerprint([ids[4:], ids[:4]])}
    assert len(marks) == 9


def test_fingerprint_does_not_depend_on_the_integer_type() -> None:
    sequences = ragged(4, 3)
    assert tokens.fingerprint(sequences) == tokens.fingerprint([s.to(torch.int32) for s in sequences])


def test_save_and_load(tmp_path: Path) -> None:
    sequences = ragged(4, 1, 7)
    mark = tokens.save(tmp_path / "t.safetensors", sequences, {"from": "here"})
    found = tokens.load(tmp_path / "t.safetensors")
    assert same(found.sequences, sequences)
    assert all(s.dtype == torch.int64 for s in found.sequences)
    assert (found.fingerprint, found.provenance, found.count) == (mark, {"from": "here"}, 12)
    assert mark == tokens.fingerprint(sequences)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ids", [1, 2, 3, 5]), ("lengths", [2, 2]), ("lengths", [3, 2]), ("lengths", [3]), ("ids", [1, 2, 3])],
    ids=["id", "boundary", "long_lengths", "short_lengths", "ids_cut_off"],
)
def test_corrupted_ids_are_refused_in_one_line(tmp_path: Path, name: str, value: list[int]) -> None:
    path = tmp_path / "t.safetensors"
    tokens.save(path, [torch.tensor([1, 2, 3]), torch.tensor([4])], {})
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors[name] = torch.tensor(value, dtype=tensors[name].dtype)
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=r"t\.safetensors") as caught:
        tokens.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [1, 7, 12, 24, 40, 1000])
def test_batches_cover_all_in_order_within_the_budget(budget: int) -> None:
    sequences = ragged(9, 5, 12, 12, 1, 7, 12, 3, 3, 3)
    found = list(tokens.batches(sequences, budget))
    rebuilt = [batch.ids[row, :length] for batch in found for row, length in enumerate(batch.lengths.tolist())]
    assert same(rebuilt, sequences)
    assert [batch.first for batch in found] == [sum(len(b.ids) for b in found[:i]) for i in range(len(found))]
    for batch, following in zip(found, [*found[1:], None], strict=True):
        assert batch.ids.numel() <= budget or len(batch.ids) == 1
        assert batch.ids.shape[1] == batch.lengths.max()
        if following is not None:  # one more would not have fitted
            width = max(batch.ids.shape[1], int(following.lengths[0]))
            assert width * (len(batch.ids) + 1) > budget


def test_no_sequences_make_no_batches() -> None:
    assert list(tokens.batches([], 10)) == []


def test_mask_marks_real_tokens() -> None:
    (batch,) = tokens.batches(ragged(2, 4, 3), 100)
    expected = [[True, True, False, False], [True] * 4, [True, True, True, False]]
    assert batch.mask is not None and batch.mask.tolist() == expected
    (even,) = tokens.batches(ragged(4, 4), 100)
    assert even.mask is None


@pytest.mark.parametrize(("n", "seq_len", "expected"), [(10, 3, 3), (9, 3, 3), (2, 3, 0), (3, 3, 1), (5, 1, 5)])
def test_windows(n: int, seq_len: int, expected: int) -> None:
    ids = torch.arange(n)
    found = tokens.windows(ids, seq_len)
    assert [len(window) for window in found] == [seq_len] * expected
    assert torch.cat([*found, ids[:0]]).tolist() == list(range(expected * seq_len))


def test_choose() -> None:
    sequences = [torch.tensor([i]) for i in range(50)]
    first = tokens.choose(sequences, 5, None)
    assert torch.cat(first).tolist() == [0, 1, 2, 3, 4]
    drawn = torch.cat(tokens.choose(sequences, 5, 42)).tolist()
    assert len(set(drawn)) == 5 and drawn == sorted(drawn) and drawn != [0, 1, 2, 3, 4]
    assert drawn == torch.cat(tokens.choose(sequences, 5, 42)).tolist()
    assert drawn != torch.cat(tokens.choose(sequences, 5, 43)).tolist()
    for seed in (None, 42):
        for n in (50, 99):
            assert torch.cat(tokens.choose(sequences, n, seed)).tolist() == list(range(50))
