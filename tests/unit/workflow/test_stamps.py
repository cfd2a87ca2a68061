"""A user's file counts by what it holds, or by its size and time, whichever way the time goes."""

import os
from pathlib import Path

import pytest

from quant.workflow.stamps import SMALL, stamps


def test_another_file_has_another_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text("a")
    large.write_bytes(bytes(SMALL + 1))
    os.utime(large, (9, 9))
    names = [str(small), str(large)]
    before = stamps([*names, "none", "results/made"])
    assert sorted(before) == sorted(names) and stamps(reversed(names)) == before
    os.utime(small, (5, 5))
    os.utime(large, ns=(9 * 10**9, 9 * 10**9 + 7))  # a file system that keeps no parts of a second
    assert stamps(names) == before
    small.write_text("b")
    os.utime(small, (5, 5))
    os.utime(large, (3, 3))
    after = stamps(names)
    assert all(after[name] != before[name] for name in names), "older, and as large as it was"
    large.write_bytes(b"\1" * (SMALL + 1))
    os.utime(large, (3, 3))
    assert stamps(names)[str(large)] != after[str(large)], "other weights, of the same second"
    (tmp_path / "results").mkdir()
    (tmp_path / "results/made").write_text("by a rule")
    assert stamps(["results/made"]) == {}


def test_a_file_that_cannot_be_read_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("closed")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert stamps([str(tmp_path / "a")]) == {}
