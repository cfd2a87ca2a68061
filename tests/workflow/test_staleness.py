"""Exactly the jobs that a change makes stale, no more and no fewer, by dry runs over one finished study.

A row of a table says which jobs are stale in themselves; GRAPH adds those that follow. A new rule is a line in GRAPH.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests import tiny
from tests.workflow.graph import METHODS, each, following

SEARCHING = ["gw_awq", "gw_praq"]  # they read statistics
# readers of each kind of second moments, and these
WEIGHTED: dict[str, Any] = {
    "jacobian": {"salience": "l1", "objective": "jacobian"},
    "residual": {"salience": "l2", "moment": "jacobian", "residual": True},
    "end_loss": {"rounding": "gptq", "moment": "end_loss"},
    "rows": {"rounding": "gptq", "row_feedback": 0.7},
    "attention": {"rounding": "gptq", "row_feedback": 0.7, "row_moment": "attention"},
}
MOMENTS = ["second_moments", "jacobian", "jacobian_residual", "end_loss-1", "end_loss-rows", "attention-rows"]
PARTED = ["rtn_g", "rtn_g_sym"]  # the methods of `sensitivity`, the second of which is not in the study


def changed(change: dict[str, Any]) -> dict[str, Any]:
    """The tiny overlay with sections updated."""
    overlay = json.loads(json.dumps(tiny.OVERLAY))
    for section, values in change.items():
        overlay.setdefault(section, {}).update(values)
    return overlay


def heldout(**values: Any) -> dict[str, Any]:
    return {"datasets": {"heldout": tiny.OVERLAY["datasets"]["heldout"] | values}}


def chosen(*methods: str) -> dict[str, Any]:
    return {"methods": list(methods)}


THIRD = {"third": {"docstrings": ["textwrap"]}}
DATASET, CALIBRATION = {"tokenize_dataset"}, {"tokenize_calibration"}
EVALUATIONS = {"evaluate_original", *each("evaluate")}
# of the whole-study steps: what only shows the configuration, and what also colours by it
SHOWN, DRAWN = {"report"}, {"plot", "report"}
# name: (change of the configuration, jobs stale in themselves)
KEYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a method's parameter": ({"methods": {"gw_awq": {"n_grid": 4}}}, {"quantize:gw_awq"}),
    "a method's grid": ({"methods": {"rtn_g": {"bits": 3}}}, {"quantize:rtn_g"}),
    "two keys' values swapped": (
        {"methods": {"gw_awq": {"bits": 3, "n_grid": 4}, "gw_praq": {"bits": 4, "n_grid": 3}}},
        each("quantize", SEARCHING),
    ),
    "a method's own seed": ({"methods": {"rtn_g": {"seed": 7}}}, {"quantize:rtn_g"}),
    "thresholds": (
        {"analysis": {"sigmas": 2.0}},
        {"analyse_preactivations", "deep_dive", *each("measure_sensitivity", PARTED)},
    ),
    "channels drawn": ({"deep_dive": {"channels": 2}}, {"plot_deep_dive"}),
    "synthetic": ({"synthetic": {"noise": 0.3}}, {"synthetic_benchmark"}),
    "sensitivity's sequences": ({"sensitivity": {"n_samples": 5}}, each("measure_sensitivity", PARTED)),
    "what to choose": ({"choose": {"max_bits_per_weight": 5}}, DRAWN | {"check_study"}),
    # the page shows the configuration as it was written
    "a value that changes to its default": ({"methods": {"gw_awq": {"n_grid": 5, "bits": 4}}}, SHOWN),
    "a method that is not run": ({"methods": {"unused": {"bits": 2}}}, DRAWN),
    "a method removed": ({"study": chosen("rtn_g", "gw_awq")}, {"summarize", "measure_heldout"}),
    # colours are in the study's order, and so are the answers
    "methods in another order": ({"study": chosen("gw_praq", "rtn_g", "gw_awq")}, {"answer_questions", "plot"}),
    "defaults that one kind of method reads": (
        {"defaults": {"group_size": 16, "n_grid": 4}},
        each("quantize", SEARCHING),
    ),
    "defaults that all read": ({"defaults": {"group_size": 8}}, each("quantize", [*METHODS, "rtn_g_sym"])),
    "defaults that none reads": ({"defaults": {"damp": 0.1, "beta": 2.0}}, SHOWN),
    "calibration text": ({"calibration": {"text": "third"}, "texts": THIRD}, CALIBRATION),
    "calibration mix": ({"calibration": {"mix": ["third"]}, "texts": THIRD}, CALIBRATION),
    # one text for both is split, each reads its part
    "one text": ({"calibration": {"text": "tiny_heldout"}}, CALIBRATION | DATASET),
    "overlap asked for": ({"calibration": {"allow_overlap": True}}, {"check_texts"}),
    "calibration protocol": ({"calibration": {"protocol": "samples"}}, CALIBRATION),
    "calibration seq_len": ({"calibration": {"seq_len": 24}}, CALIBRATION | {"check_study"}),
    "calibration shuffle": ({"calibration": {"shuffle": True}}, CALIBRATION),
    "n_calib": ({"calibration": {"n_calib": 8}}, CALIBRATION),
    "moments' budget": ({"moments": {"budget_gb": 1}}, {"check_study"}),  # of no experts
    "moments' type": ({"moments": {"store": "bfloat16"}}, {"check_study", "collect_statistics"}),
    # each result names the seed that made it
    "seed": ({"calibration": {"seed": 7}}, {*CALIBRATION, *each("quantize", PARTED)}),
    "evaluation text": (heldout(text="third") | {"texts": THIRD}, DATASET),
    "evaluation protocol": (heldout(protocol="windows"), DATASET),
    "evaluation seq_len": (heldout(seq_len=24), DATASET | {"check_study"}),
    "n_samples": (heldout(n_samples=8), DATASET),
    "kl_tokens": (heldout(kl_tokens=32), EVALUATIONS),
    "a text that nothing reads": ({"texts": {"other": {"pydoc_topics": "heldout"}}}, SHOWN),
    "a model that is not run": ({"models": {"other": {"source": {"directory": "inputs/other"}}}}, SHOWN),
    "a model's source": ({"models": {"tiny": {"source": {"directory": "inputs/second"}}}}, {"convert"}),
    "a model's caveat": (
        {"models": {"tiny": {"source": {"directory": "inputs/model"}, "caveat": "Random weights."}}},
        {"describe"},
    ),
    "comparison": (
        {"comparison": {"resamples": 1999}},
        {"check_mse", "summarize", "summarize_sensitivity", "synthetic_benchmark"},
    ),
    "what verdicts rest on": ({"comparison": {"by": "kl"}}, DRAWN | {"answer_questions"}),
    "check_mse": ({"check_mse": {"keep_ratio": 0.25}}, {"check_mse"}),
    "linears": (
        {"linears": {"mlp": ["mlp", "down_proj"], "attention": ["q_proj", "attn"]}},
        {
            *("check_mse", "measure_heldout", "analyse_preactivations", "deep_dive"),
            *each("quantize", SEARCHING),
            *each("measure_error"),
        },
    ),
    "batch_tokens": (
        {"compute": {"batch_tokens": 64}},
        {"collect_statistics", "check_mse", *EVALUATIONS, *each("measure_sensitivity", PARTED)},
    ),
    "dtype": (
        {"compute": {"dtype": "float32"}},
        {"collect_statistics", "check_mse", *EVALUATIONS, *each("measure_sensitivity", PARTED)},
    ),
    "device": (
        {"compute": {"device": "cpu"}},
        {
            *("collect_statistics", "check_mse", "measure_heldout"),
            *each("quantize", [*METHODS, "rtn_g_sym"]),
            *EVALUATIONS,
            *each("measure_error"),
            *each("measure_sensitivity", PARTED),
        },
    ),
    "threads": ({"compute": {"threads": 2}}, SHOWN),
}


class TestConfiguration:
    """Classes, so that each may go to another worker (pytest --dist loadscope)."""

    @pytest.mark.parametrize("row", KEYS)
    def test_a_changed_key_reruns_its_users(self, edited: Path, row: str) -> None:
        change, stale = KEYS[row]
        tiny.write_overlay(edited, changed(change))
        try:
            # every change shows in the report's configuration
            assert tiny.pending(edited) == (following(stale | SHOWN) if stale else {})
        finally:
            tiny.write_overlay(edited, tiny.OVERLAY)

    def test_a_new_and_a_renamed_method_run_alone(self, study: Path, tmp_path: Path) -> None:
        overlay = tmp_path / "changed.yaml"
        for methods in ([*METHODS, "mine"], ["rtn_g", "mine", "gw_praq"]):
            overlay.write_text(
                yaml.safe_dump(changed({"methods": {"mine": {"salience": "l1"}}, "study": chosen(*methods)}))
            )
            one = {"quantize": 1, "measure_error": 1, "evaluate": 1}
            assert tiny.pending(study, overlay) == one | following({"summarize", "measure_heldout"})

    def test_a_new_data_set_is_only_evaluated(self, study: Path, tmp_path: Path) -> None:
        overlay = tmp_path / "changed.yaml"
        second = tiny.OVERLAY["datasets"]["heldout"] | {"text": "third"}
        names = {"datasets": ["heldout", "second"]}
        overlay.write_text(yaml.safe_dump(changed({"datasets": {"second": second}, "study": names, "texts": THIRD})))
        only = {"check_study": 1, "tokenize_dataset": 1, "evaluate_original": 1, "evaluate": 3}
        assert tiny.pending(study, overlay) == only | following({"check_texts"})

    def test_key_order_means_nothing(self, copy: Path) -> None:
        for name in ("config.yaml", "tiny.yaml"):
            content = backwards(yaml.safe_load((copy / name).read_text()))
            (copy / name).write_text(yaml.safe_dump(content, sort_keys=False))
        assert tiny.pending(copy) == {}


def backwards(value: Any) -> Any:
    """The same mapping, every key order reversed."""
    return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


# --- time stamps


class TestFiles:
    """Touched, changed, lost, or left behind."""

    def test_a_fresh_clones_time_stamps_rerun_nothing(self, copy: Path) -> None:
        for name in ("Snakefile", "rules", "workflow_scripts", "config.yaml", "tiny.yaml", "docs", "envs"):
            for path in [copy / name, *(copy / name).rglob("*")]:
                os.utime(path)
        assert tiny.pending(copy) == {}

    @pytest.mark.parametrize("kept", [("results",), ("results", ".snakemake")])
    def test_a_fresh_clone_over_existing_results_reruns_nothing(
        self, study: Path, tmp_path: Path, kept: tuple[str, ...]
    ) -> None:
        folder = tiny.clone(tmp_path / "clone")
        shutil.rmtree(folder / "inputs")
        for name in ("inputs", *kept):
            shutil.copytree(study / name, folder / name, copy_function=shutil.copy2)
        assert tiny.pending(folder) == {}

    @pytest.mark.parametrize(
        ("name", "stale"),
        [
            ("inputs/calibration.txt", CALIBRATION),
            ("inputs/heldout.txt", DATASET),
            ("inputs/model/config.json", {"convert"}),
        ],
    )
    def test_an_input_counts_by_its_content(self, copy: Path, name: str, stale: set[str]) -> None:
        """Touched: nothing. Changed: its users, however old the file says that it is."""
        path = copy / name
        os.utime(path)
        assert tiny.pending(copy) == {}
        path.write_text(path.read_text() + " ")
        os.utime(path, (10**9, 10**9))
        assert tiny.pending(copy) == following(stale)

    def test_a_lost_result_is_made_again_with_what_follows(self, copy: Path) -> None:
        (copy / "results/tiny/gw_awq/evaluation/heldout.json").unlink()
        assert tiny.pending(copy) == {}, "what was made from it is there: Snakemake asks no more"
        (copy / "results/report.html").unlink()
        assert tiny.pending(copy) == {"report": 1}
        (copy / "results/summary.csv").unlink()
        assert tiny.pending(copy) == following({"evaluate:gw_awq"})

    @pytest.mark.parametrize("method", ["gw_awq", "rtn_g", "rtn_g_sym"])
    def test_a_forgotten_method_is_made_again_with_what_follows(self, copy: Path, method: str) -> None:
        """`make clean-method`, of one of whom parts are measured and of one who is measured for these alone, too."""
        subprocess.run(
            ["make", "-f", tiny.ROOT / "Makefile", "clean-method", f"METHOD={method}"],
            cwd=copy,
            env=tiny.of_shell(),
            check=True,
        )
        assert tiny.pending(copy) == following({f"quantize:{method}"})
        if method == "gw_awq":
            done = tiny.snakemake(copy, "results/report.html")
            assert done.returncode == 0, done.stdout + done.stderr
            assert tiny.pending(copy) == {}

    @pytest.mark.parametrize("store", ["none", "bfloat16"])
    def test_moments_of_every_kind_go_where_none_are_kept(self, tmp_path: Path, store: str) -> None:
        folder = tiny.clone(tmp_path / "clone")
        tiny.write_overlay(folder, tiny.with_methods(WEIGHTED) | {"moments": {"store": store}})
        done = tiny.snakemake(folder, "--dry-run", "results/report.html")
        gone = re.findall(r"^Would remove temporary output (\S+)", done.stdout + done.stderr, re.MULTILINE)
        assert {Path(name).stem for name in gone} == (set(MOMENTS) if store == "none" else set())

    def test_a_removed_method_keeps_its_results_and_leaves_the_report(self, copy: Path) -> None:
        """Its files stay as they were, and putting it back costs only the tables."""
        kept = {path: path.stat().st_mtime_ns for path in (copy / "results/tiny/gw_praq").rglob("*") if path.is_file()}
        tiny.write_overlay(copy, changed({"study": chosen("rtn_g", "gw_awq")}))
        done = tiny.snakemake(copy, "results/report.html")
        assert done.returncode == 0, done.stdout + done.stderr
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert list(pd.read_csv(copy / "results/summary.csv")["method"]) == ["original", "rtn_g", "gw_awq"]
        shown = re.sub(r"<pre.*?</pre>", "", (copy / "results/report.html").read_text(), flags=re.DOTALL)
        assert "gw_awq" in shown and "gw_praq" not in shown
        tiny.write_overlay(copy, tiny.OVERLAY)
        assert tiny.pending(copy) == following({"summarize", "measure_heldout"})
