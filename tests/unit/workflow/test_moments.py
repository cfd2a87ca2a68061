"""A budget of second moments that decides nothing new makes nothing stale."""

import json
import os
from pathlib import Path

import pytest

from quant.workflow.moments import settled


def test_what_a_budget_decides_is_known_once_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keeping = {"store": "bfloat16", "budget_gb": 1e-6}
    record = tmp_path / "results/m/original/convert.json"
    assert settled(keeping, "m") == keeping, "not converted yet"
    record.parent.mkdir(parents=True)
    for stamp, (content, known) in enumerate(
        [
            ({"linears": {}}, 1e-6),  # of an earlier version
            ({"experts": []}, None),
            ({"experts": [[[4, 2], [16, 2]]]}, None),  # 2 · 40 + 2 · 544 bytes in float32, half of them here
            ({"experts": [[[4, 2], [32, 2]]]}, 0.5 * 80.5e-9),
        ]
    ):
        record.write_text(json.dumps(content))

        os.utime(record, (stamp, stamp))
        found = settled(keeping, "m")
        assert found["store"] == "bfloat16" and found["budget_gb"] == pytest.approx(known)
    assert settled(keeping | {"budget_gb": 3e-6}, "m")["budget_gb"] is None
