"""What happens to a study in the world: killed jobs, interrupts, full disks, damaged files, two runs at once."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.workflow.strike import INTERRUPT, KILL, content, damage, site, strike

RULES = [
    *("convert", "tokenize_calibration", "tokenize_dataset", "collect_statistics", "quantize", "measure_error"),
    *("evaluate_original", "evaluate", "check_mse", "measure_heldout", "summarize", "plot", "report"),
    *("measure_sensitivity", "summarize_sensitivity", "answer_questions", "describe"),
    *("analyse_preactivations", "plot_preactivations", "deep_dive", "plot_deep_dive"),
    *("synthetic_benchmark", "plot_synthetic", "check_study", "check_texts"),
]
# rules that the tiny study does not run, and what asks for them
ASKED = {
    "collect_noisy": "tiny/calibration/n12-s42/noisy-0.05x3.safetensors",
    "collect_jacobian": "tiny/calibration/n12-s42/jacobian.safetensors",
    "collect_end_loss": "tiny/calibration/n12-s42/end_loss-1.safetensors",
    "collect_attention": "tiny/calibration/n12-s42/attention-rows.safetensors",
    "quantize_with_model": "tiny/streamed/quantize.json",
    "check_best": "tiny/original/packs.json",
    "pick": "best/choice.json",
    "check_export": "half/blocks/export/gguf.checked.json",
    "export": "tiny/rtn_g/export/dense/export.json",
    "export_gguf": "half/blocks/export/gguf/export.json",
    "fetch_package": "sources/good-wheel-1.0.whl",
    "build_library": "environments/autoawq/complete",
    "build_lm_eval": "environments/lm_eval/complete",
    "make_task": "tasks/module.json",
    "evaluate_task": "tiny/rtn_g/tasks/module.json",
    "summarize_tasks": "tasks.csv",
    "plot_tasks": "figures/tiny/tasks.svg",
    "write_words": "tiny/rtn_g/words.json",
    "summarize_words": "words.csv",
}
# test_autoawq.py has a library, test_budgets.py a study of candidates
SHARDS = {"collect_shard", "evaluate_original_shard", "evaluate_shard", "quantize_shard"}
ELSEWHERE = {"quantize_library", "measure_swaps", "choose_widths", "quantize_budget", "plan"} | SHARDS


def hear_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so do its children, unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def results(folder: Path) -> dict[str, Path]:
    """Every result by name; the report holds times, so it is only there."""
    root = folder / "results"
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if not name.startswith(("logs/", "benchmarks/"))}


def same_results(folder: Path, undisturbed: Path) -> None:
    found, wanted = results(folder), results(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in found if name != "report.html" and content(found[name]) != content(wanted[name])] == []


def test_the_matrix_has_every_rule() -> None:
    text = "".join(path.read_text() for path in (tiny.ROOT / "rules").glob("*.smk"))
    assert set(re.findall(r"^rule (\w+):", text, re.MULTILINE)) == {*RULES, *ASKED, *ELSEWHERE}


@pytest.mark.slow
def test_every_rule_killed_in_the_middle_ends_in_the_same_bytes(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.clone(tmp_path / "clone")
    struck = strike(tmp_path, monkeypatch, KILL)
    for _ in range(len(RULES) + 1):
        done = tiny.snakemake(folder, "results/report.html", "--keep-going")
        assert "Traceback" not in done.stdout + done.stderr
        if done.returncode == 0:
            break
    assert {path.name for path in struck.iterdir()} == set(RULES)
    same_results(folder, study)


def save_half(folder: Path) -> None:
    """A float16 model whose inputs are whole blocks of GGUF's, with a tokenizer that it knows."""
    from transformers import AutoModelForCausalLM

    tiny.save_model(folder, num_hidden_layers=1, hidden_size=64, intermediate_size=96)
    AutoModelForCausalLM.from_pretrained(folder).half().save_pretrained(folder)
    tiny.save_byte_tokenizer(folder)


def asked_overlay(folder: Path) -> None:
    """What the rules of ASKED need beside the finished study."""
    wheel = tiny.save_wheel(folder / "wheels", "good_wheel")
    tiny.save_wheel(folder / "wheels", "awq", "__init__.py")
    tiny.save_wheel(folder / "wheels", "autoawq", "__init__.py", "0.2.9")
    (folder / "envs/autoawq.txt").write_text("wheels/awq-1.0-py3-none-any.whl\nwheels/autoawq-0.2.9-py3-none-any.whl\n")
    tiny.save_wheel(folder / "wheels", "lm_eval", "__init__.py")
    (folder / "envs/lm_eval.txt").write_text("wheels/lm_eval-1.0-py3-none-any.whl\n")
    save_half(folder / "inputs/half")
    gguf = {"package": "good-wheel", "version": "1.0", "sha256": wheel, "member": "good_wheel/model.gguf"}
    overlay = tiny.OVERLAY | {
        "models": tiny.OVERLAY["models"]
        | {"half": {"source": {"directory": "inputs/half"}}, "wheel": {"source": {"gguf": gguf}}},
        "methods": {
            "blocks": {"group_size": 32, "symmetric": True},
            "streamed": {"inputs": "sequential", "rounding": "gptq", "tune": {"epochs": 1}},
        },
        "choose": {"max_bits_per_weight": 7},
        "study": tiny.OVERLAY["study"] | {"tasks": ["module"], "task_methods": ["rtn_g"]},
        "tasks": {"module": {"n_items": 8}},
        "words": {"task": "module", "prompts": 4, "tokens": 4},
    }
    tiny.write_overlay(folder, overlay)


@pytest.mark.slow
def test_rules_outside_the_study_killed_in_the_middle_end_in_the_same_bytes(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_overlay(copy)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(copy / "wheels"))
    targets = [f"results/{name}" for name in ASKED.values()]
    before = results(copy).keys()
    done = tiny.snakemake(copy, *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {name: path for name, path in results(copy).items() if name not in before and outcome_of(name)}
    expected = {name: content(path) for name, path in made.items()}
    for path in made.values():
        path.unlink()
    struck = strike(tmp_path, monkeypatch, KILL)
    for _ in range(len(ASKED) + 1):
        done = tiny.snakemake(copy, *targets, "--keep-going")
        assert "Traceback" not in done.stdout + done.stderr
        if done.returncode == 0:
            break
    assert {path.name for path in struck.iterdir()} >= set(ASKED)  # and what follows from a task's items
    assert [name for name in expected if content(results(copy)[name]) != expected[name]] == []


def outcome_of(name: str) -> bool:
    """Whether a result is one of ASKED: of AutoAWQ's environment what the rule writes itself."""
    if name.startswith("environments/"):
        return name.endswith(("complete", "packages.txt")) and name.count("/") == 2
    return not name.startswith(("half/original", "half/blocks/checkpoint", "half/blocks/quantize", "half/blocks/folds"))


def test_an_interrupt_leaves_no_half_output(
    copy: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the job itself, so that it comes while the statistics are on the disk under a temporary name."""
    target = "results/tiny/calibration/n12-s42/channels.safetensors"
    with monkeypatch.context() as patch:
        struck = strike(tmp_path, patch, INTERRUPT)
        command = [sys.executable, "-m", "snakemake", target, "--forcerun", "collect_statistics"]
        command += ["--configfile", "tiny.yaml", "--cores", "1"]
        done = subprocess.run(
            command, cwd=copy, start_new_session=True, preexec_fn=hear_interrupts, capture_output=True, text=True
        )
    assert [path.name for path in struck.iterdir()] == ["collect_statistics"]
    assert done.returncode != 0
    assert [name for name in results(copy) if name.endswith(".part")] == []
    assert not (copy / "results/tiny/calibration/n12-s42/second_moments.safetensors").exists()
    again = tiny.snakemake(copy, target, "--forcerun", "collect_statistics")
    assert again.returncode == 0, again.stdout + again.stderr
    same_results(copy, study)


# a device whose memory holds so few tokens at a time
SMALL = """
import importlib.util, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "transformers.models.llama.modeling_llama":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            forward = module.LlamaMLP.forward

            def small(self, x):
                import torch

                if x.shape[:-1].numel() > 50:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return forward(self, x)

            module.LlamaMLP.forward = small

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_out_of_memory_every_pass_halves_its_batch_goes_on_and_says_so(
    copy: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rule that runs the model in batches; 384 or 512 tokens are in one batch otherwise."""
    site(tmp_path, monkeypatch, SMALL)
    logs = {
        "tiny/calibration/n12-s42/channels.safetensors": "collect_statistics/tiny/n12-s42",
        ASKED["collect_noisy"]: "collect_noisy/tiny/n12-s42/0.05x3",
        ASKED["collect_jacobian"]: "collect_jacobian/tiny/n12-s42/jacobian",
        "tiny/check_mse/linears.json": "check_mse/tiny",
        "tiny/original/evaluation/heldout.json": "evaluate_original/tiny/heldout",
        "tiny/gw_awq/evaluation/heldout.json": "evaluate/tiny/gw_awq/heldout",
        "tiny/rtn_g/sensitivity/heldout.json": "measure_sensitivity/tiny/rtn_g/heldout",
    }
    done = tiny.snakemake(copy, *(f"results/{name}" for name in logs), "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    for log in logs.values():
        said = (copy / f"results/logs/{log}.log").read_text()
        assert re.search(r"\d+ tokens in a batch do not fit into the GPU's memory; going on with \d+", said), said
    for name in ("channels", "second_moments"):
        found, expected = (
            load_file(root / f"results/tiny/calibration/n12-s42/{name}.safetensors") for root in (copy, study)
        )
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-6) for key in found), "counted twice"
    for method in ("original", "gw_awq"):
        found, expected = (
            tiny.read(root / f"results/tiny/{method}/evaluation/heldout.json")["sequences"] for root in (copy, study)
        )
        assert [row["nll"] for row in found] == pytest.approx([row["nll"] for row in expected], rel=1e-5)


# artifact: rules that read it
READERS = {
    "original/checkpoint/model.safetensors": ["quantize"],
    "original/convert.json": ["tokenize_dataset"],
    "calibration/n12-s42/tokens.safetensors": ["collect_statistics"],
    "calibration/n12-s42/channels.safetensors": ["check_mse"],
    "calibration/n12-s42/second_moments.safetensors": ["measure_error"],
    "datasets/heldout/tokens.safetensors": ["evaluate_original"],
    "calibration/texts.json": ["summarize"],
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


@pytest.mark.parametrize("how", ["cut", pytest.param("flipped", marks=pytest.mark.slow)])
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


@pytest.mark.slow
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
    command += ["--configfile", "tiny.yaml", "--cores", "1"]
    first = subprocess.Popen(command, cwd=copy, preexec_fn=hear_interrupts, stderr=subprocess.PIPE)
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
