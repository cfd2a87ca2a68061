"""Text to measure on that calibration has seen: one text is split, others are refused before the long jobs, or said."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests import tiny


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with a long text, and a copy of half of it under another name."""
    folder = tiny.clone(tmp_path_factory.mktemp("texts") / "clone")
    tiny.save_text(folder / "inputs/long.txt", 200, seed=3)
    lines = (folder / "inputs/long.txt").read_text().splitlines()
    (folder / "inputs/copy.txt").write_text("\n\n".join(random.Random(4).sample(lines[:100], 60)))
    return folder


def write(folder: Path, evaluated: str, **calibration: Any) -> str:
    """An overlay that calibrates on the long text and measures on another."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    names = ("long", "copy")
    overlay["texts"] |= {name: {"files": [f"inputs/{name}.txt"]} for name in names}
    overlay["calibration"] |= {"text": "long", "n_calib": 64} | calibration
    overlay["datasets"]["heldout"] |= {"text": evaluated, "protocol": "windows", "n_samples": 32}
    overlay["study"]["methods"], overlay["sensitivity"]["methods"] = ["rtn_g", "gw_awq"], []
    overlay["compute"]["threads"] = 8  # as in config.yaml: a long job takes every core
    overlay["check_mse"], overlay["deep_dive"] = {"layer": None}, {"layers": []}
    (folder / "texts.yaml").write_text(json.dumps(overlay))
    return "texts.yaml"


def test_one_text_is_split_by_itself(project: Path) -> None:
    targets = [f"results/tiny/{name}" for name in ("calibration/texts.json", "datasets/heldout/tokens.safetensors")]
    done = tiny.snakemake(project, *targets, config=write(project, "long"))
    assert done.returncode == 0, done.stdout + done.stderr
    facts = tiny.read(project / targets[0])
    assert facts["datasets"]["heldout"]["seen_share"] == 0
    assert facts["datasets"]["heldout"]["sequences"] == 32 and facts["calibrations"]["n64-s42"]["sequences"] == 64


@pytest.mark.parametrize("calibration", [{}, {"text": "tiny_calibration", "mix": ["long"]}], ids=["alone", "mixed"])
def test_a_copy_is_refused_before_the_long_jobs(project: Path, calibration: dict[str, Any]) -> None:
    done = tiny.snakemake(project, "results/report.html", config=write(project, "copy", **calibration))
    seen = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in seen
    (line,) = {line for line in seen.splitlines() if line.startswith("ERROR")}
    assert re.search(r"datasets\.heldout: \d+ % of the evaluated text has been seen in calibration", line)
    assert "calibration: {allow_overlap: true}" in line
    for name in ("calibration/n64-s42/channels.safetensors", "original/evaluation/heldout.json", "rtn_g/quantize.json"):
        assert not (project / "results/tiny" / name).exists()


@pytest.mark.slow
def test_what_was_seen_is_said_where_it_was_asked_for(project: Path) -> None:
    """And one text is then used whole for both."""
    done = tiny.snakemake(project, "results/report.html", config=write(project, "long", allow_overlap=True))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = pd.read_csv(project / "results/summary.csv").set_index("method")
    assert (summary["seen_share"] == 1).all()
    assert summary["calibration_sequences"].fillna(0).to_dict() == {"original": 0, "rtn_g": 0, "gw_awq": 64}
    page = re.sub(r"data:[^\"]*|<pre.*?</pre>", "", (project / "results/report.html").read_text(), flags=re.DOTALL)
    assert not re.search(r"unseen|held.out", page.replace("heldout", ""))
    assert "calibration has seen 100 % of this text" in page
    cards = {m: (project / f"results/tiny/{m}/checkpoint/README.md").read_text() for m in ("rtn_g", "gw_awq")}
    assert "Calibration has seen 100 % of this text" in cards["gw_awq"] and "has seen" not in cards["rtn_g"]
    assert "64 sequences of at most 32 tokens, 2048 tokens together, of long.txt" in cards["gw_awq"]
