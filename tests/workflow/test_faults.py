"""What happens to a study in the world: killed jobs, interrupts, full disks, damaged files, two runs at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests import tiny

# kills a rule's first job once, when its first output is complete but for its name
KILLER = """
import os, pathlib, signal, sys

fsync, script = os.fsync, sys.argv[0] if hasattr(sys, "argv") else ""

def once(file):
    name = pathlib.Path(sys.argv[0]).name.split(".", 1)[-1]
    marker = pathlib.Path(os.environ["KILLED"], name)
    if name.endswith(".py") and ".snakemake" in sys.argv[0] and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = once
"""
TIMES = {"quantize_s", "milliseconds", "tokens_per_s", "checksum"}
RULES = [
    *("convert", "tokenize_calibration", "tokenize_dataset", "collect_statistics", "quantize", "measure_error"),
    *("evaluate_original", "evaluate", "check_mse", "measure_heldout", "summarize", "plot", "report"),
    *("measure_sensitivity", "summarize_sensitivity", "answer_questions", "describe"),
    *("analyse_preactivations", "plot_preactivations", "deep_dive", "plot_deep_dive"),
    *("synthetic_benchmark", "plot_synthetic"),
]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """A result's bytes, or what it says besides times."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=TIMES & set(table.columns)).to_csv()
    return path.read_bytes()


def results(folder: Path) -> dict[str, Path]:
    """Every result by name; the report holds times, so it is only there."""
    root = folder / "results"
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if not name.startswith(("logs/", "benchmarks/"))}


def same_results(folder: Path, undisturbed: Path) -> None:
    found, wanted = results(folder), results(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in found if name != "report.html" and content(found[name]) != content(wanted[name])] == []


def test_every_rule_killed_in_the_middle_ends_in_the_same_bytes(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.clone(tmp_path / "clone")
    for name in ("site", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))
    for _ in range(len(RULES) + 1):
        done = tiny.snakemake(folder, "results/report.html", "--keep-going")
        assert "Traceback" not in done.stdout + done.stderr
        if done.returncode == 0:
            break
    assert {path.stem for path in (tmp_path / "killed").iterdir()} == set(RULES)
    same_results(folder, study)


def test_an_interrupt_leaves_no_half_output(copy: Path, study: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, once a job has begun to compute."""
    command = [sys.executable, "-m", "snakemake", "results/report.html", "--forcerun", "collect_statistics"]
    command += ["--configfile", "tiny.yaml", "--cores", "1"]
    log = copy / "results/logs/collect_statistics/tiny/n12-s42.log"
    log.unlink()
    process = subprocess.Popen(command, cwd=copy, start_new_session=True, stderr=subprocess.PIPE)
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    assert [name for name in results(copy) if name.endswith(".part")] == []
    done = tiny.snakemake(copy, "results/report.html", "--forcerun", "collect_statistics")
    assert done.returncode == 0, done.stdout + done.stderr
    same_results(copy, study)


def damage(path: Path, how: str) -> None:
    """Cut in half, or one bit of its last quarter flipped; its time stamp stays."""
    stamp, data = path.stat(), bytearray(path.read_bytes())
    data[-len(data) // 4] ^= 1
    path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


# artifact: rules that read it
READERS = {
    "original/checkpoint/model.safetensors": ["quantize"],
    "original/convert.json": ["tokenize_dataset"],
    "calibration/n12-s42/tokens.safetensors": ["collect_statistics"],
    "calibration/n12-s42/channels.safetensors": ["check_mse"],
    "calibration/n12-s42/second_moments.safetensors": ["measure_error"],
    "datasets/heldout/tokens.safetensors": ["evaluate_original"],
    "original/evaluation/heldout.reference.safetensors": ["evaluate"],
    "rtn_g/checkpoint/model.safetensors": ["evaluate"],
    "rtn_g/quantize.json": ["measure_error"],
    "rtn_g/folds.safetensors": ["measure_error"],
    "rtn_g/evaluation/heldout.json": ["summarize"],
}
TARGETS = {
    "quantize": "rtn_g/quantize.json",
    "tokenize_dataset": "datasets/heldout/tokens.safetensors",
    "collect_statistics": "calibration/n12-s42/channels.safetensors",
    "check_mse": "check_mse/linears.json",
    "measure_error": "rtn_g/linears.csv",
    "evaluate_original": "original/evaluation/heldout.json",
    "evaluate": "rtn_g/evaluation/heldout.json",
}


@pytest.mark.parametrize("how", ["cut", "flipped"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_artifact_is_named_with_what_rebuilds_it(copy: Path, name: str, how: str) -> None:
    path = copy / "results/tiny" / name
    damage(path, how)
    for rule in READERS[name]:
        target = f"results/tiny/{TARGETS[rule]}" if rule in TARGETS else "results/summary.csv"
        done = tiny.snakemake(copy, target, "--force")
        seen = done.stdout + done.stderr
        assert done.returncode == 1 and "Traceback" not in seen, seen
        lines = [line for line in seen.splitlines() if line.startswith("ERROR")]
        relative = path.relative_to(copy)
        assert lines and str(relative) in lines[0] and f"rebuild it: snakemake --cores 1 --force {relative}" in lines[0]


def test_what_another_model_made_is_refused_though_its_time_stamp_is_fresh(copy: Path) -> None:
    """Statistics, tokens and a checkpoint of another model put in the place of this one's."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    tiny.save_model(copy / "inputs/second", seed=1)
    overlay["models"]["second"] = {"source": {"directory": "inputs/second"}}
    overlay["study"]["models"] = ["second"]
    tiny.write_overlay(copy, overlay)
    moments = "calibration/n12-s42/second_moments.safetensors"
    made = [f"results/second/{name}" for name in (moments, "rtn_g/quantize.json")]
    assert tiny.snakemake(copy, *made).returncode == 0
    evaluation = "rtn_g/evaluation/heldout.json"
    for name, target, what in (
        (moments, "gw_awq/quantize.json", "model_fingerprint"),
        ("rtn_g/checkpoint/model.safetensors", evaluation, "record"),
        ("rtn_g/quantize.json", evaluation, "model_fingerprint"),
    ):
        (copy / "results/tiny" / name).write_bytes((copy / "results/second" / name).read_bytes())
        done = tiny.snakemake(copy, f"results/tiny/{target}", "--force")
        seen = done.stdout + done.stderr
        assert f"ERROR results/tiny/{name}: was made from another {what}" in seen, seen


def test_a_packed_checkpoint_is_refused_where_its_config_names_another_grid(copy: Path) -> None:
    """By every rule that reads it: the file's name, the tensor's and both shapes."""
    config = copy / "results/tiny/rtn_g/checkpoint/config.json"
    made = json.loads(config.read_text())
    made["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 8
    config.write_text(json.dumps(made))
    for target in ("evaluation/heldout.json", "linears.csv", "export/dense/export.json"):
        done = tiny.snakemake(copy, f"results/tiny/rtn_g/{target}", "--force")
        seen = done.stdout + done.stderr
        line = r"ERROR results/tiny/rtn_g/checkpoint/model\.safetensors: .*weight_scale is \[\d+, \d+\] .*group_size 8 "
        assert done.returncode == 1 and re.search(line, seen) and "Traceback" not in seen, seen


def test_a_full_disk_is_one_line_that_names_the_file(copy: Path) -> None:
    folder = copy / "results/tiny/gw_awq"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    mounted = folder / "mounted"  # Snakemake removes an empty folder of outputs, which a mounted one cannot be
    try:
        mounted.touch()
        done = tiny.snakemake(copy, "results/tiny/gw_awq/quantize.json", "--force")
        left = [path for path in folder.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", folder], check=True)
    seen = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in seen, seen
    line = "ERROR results/tiny/gw_awq/checkpoint/model.safetensors: cannot be written (No space left on device)"
    assert line in seen and left == [mounted]


def test_two_runs_in_one_directory_are_refused(copy: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "results/report.html", "--forcerun", "collect_statistics"]
    first = subprocess.Popen([*command, "--configfile", "tiny.yaml", "--cores", "1"], cwd=copy, stderr=subprocess.PIPE)
    while not list((copy / ".snakemake/locks").glob("*")) and first.poll() is None:
        time.sleep(0.05)
    done = tiny.snakemake(copy, "results/report.html", "--forcerun", "collect_statistics")
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert done.returncode == 1 and "Directory cannot be locked" in done.stdout + done.stderr


def test_a_failing_method_leaves_a_report_that_says_why(copy: Path) -> None:
    """Its noise overflows float32; the others go on, and the option makes the report without it."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    overlay["methods"] = {"bad": {"noise_injection": 1e300}}
    overlay["study"]["methods"].append("bad")
    tiny.write_overlay(copy, overlay)
    done = tiny.snakemake(copy, "results/report.html", "--keep-going")
    seen = done.stdout + done.stderr
    assert done.returncode == 1
    assert "quantize failed: " in seen and "log: results/logs/quantize/tiny/bad.log" in seen, seen
    overlay["study"]["allow_missing"] = True
    tiny.write_overlay(copy, overlay)
    done = tiny.snakemake(copy, "results/report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (copy / "results/report.html").read_text()
    assert "Left out, since their jobs failed" in page and "bad on tiny: quantize: " in page
    assert "bad" not in set(pd.read_csv(copy / "results/summary.csv")["method"])
    overlay["study"]["allow_missing"] = False
    tiny.write_overlay(copy, overlay)
    assert "quantize" in tiny.pending(copy), "without the option it is tried again"
