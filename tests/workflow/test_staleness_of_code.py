"""Exactly the jobs that an edit of code, or another version of a library, makes stale."""

from pathlib import Path

import pytest

from tests import tiny
from tests.unit.workflow.dependents import DEPENDENTS
from tests.workflow.graph import METHODS, PLOTS, each, following, graph


def script_jobs(script: str) -> set[str]:
    """The jobs of the rule of a script."""
    return {job for job in graph(METHODS) if job.partition(":")[0] == script}


# of DEPENDENTS
MODULES = [
    "recipe/keys",
    "recipe/search",
    "recipe/recipe",
    "recipe/linear",
    "recipe/protection",
    "recipe/grids",
    "calibration/second_moments",
    "calibration/statistics",
    "data/texts",
    "models/conversion/convert",
    "evaluation/perplexity",
    "evaluation/record",
    "evaluation/exact_error",
    "analysis/layer_mse",
    "comparison/paired",
    "analysis/parts",
    "comparison/questions",
    "comparison/answers",
    "analysis/preactivations",
    "report/sections/preactivations",
    "checkpoints/card",
    "report/figures/study",
    "report/build",
    "calibration/jacobian",
    "calibration/end_loss",
    "methods/library",
]


def pending_after_edit(edited: Path, path: Path) -> dict[str, int]:
    before = path.read_text()
    try:
        path.write_text(before + "\n# edited\n")
        return tiny.pending(edited)
    finally:
        path.write_text(before)


class TestModules:
    """Of the library; tests/unit/workflow/dependents.txt has a row for each of the others."""

    @pytest.mark.parametrize("module", MODULES)
    def test_an_edited_module_reruns_its_users(self, edited: Path, module: str) -> None:
        stale = set().union(*map(script_jobs, DEPENDENTS[module]))
        assert pending_after_edit(edited, edited / f"workflow_scripts/quant/{module}.py") == following(stale)

    @pytest.mark.parametrize(
        ("choice", "stale"),
        [
            ("roundings/gptq", set()),  # no method here has it
            ("roundings/nearest", each("quantize", [*METHODS, "rtn_g_sym"])),
            ("saliences/l2", set()),
            ("saliences/l1", {"quantize:gw_awq", "deep_dive"}),
            ("saliences/praq", {"quantize:gw_praq", "deep_dive"}),
        ],
    )
    def test_an_edited_choice_reruns_the_methods_that_name_it(self, edited: Path, choice: str, stale: set[str]) -> None:
        path = edited / f"workflow_scripts/quant/recipe/{choice}.py"
        assert pending_after_edit(edited, path) == (following(stale) if stale else {})

    def test_a_new_choice_with_a_key_of_its_own_reruns_no_method(self, edited: Path) -> None:
        path = edited / "workflow_scripts/quant/recipe/choices.py"
        before = path.read_text()
        entry = '"peak": Choice("the largest", SEARCH, {"sharpness": Key(1.0, "power of it", above=0)}),'
        table = "SALIENCES: dict[str, Choice] = {\n"
        assert table in before
        try:
            path.write_text(before.replace(table, f"{table}    {entry}\n"))
            stale = set().union(*map(script_jobs, DEPENDENTS["recipe/choices"]))
            assert tiny.pending(edited) == following(stale)
        finally:
            path.write_text(before)

    def test_an_edited_template_reruns_the_report(self, edited: Path) -> None:
        template = edited / "workflow_scripts/templates/report.html.j2"
        assert pending_after_edit(edited, template) == following(script_jobs("report"))


SCRIPTS = sorted(path.name for path in (tiny.ROOT / "workflow_scripts").glob("*.py"))


class TestScripts:
    """And the libraries' versions."""

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_an_edited_script_reruns_its_rule(self, edited: Path, script: str) -> None:
        stale = script_jobs(script.removesuffix(".py"))
        assert pending_after_edit(edited, edited / "workflow_scripts" / script) == following(stale)

    @pytest.mark.parametrize(
        ("distribution", "rules"),
        [
            ("matplotlib", ["plot", *PLOTS, "report"]),
            (
                "scipy",
                [
                    "check_study",
                    "summarize",
                    "summarize_sensitivity",
                    "answer_questions",
                    "check_mse",
                    "deep_dive",
                    "synthetic_benchmark",
                    *PLOTS,
                ],
            ),
            ("jinja2", ["describe", "report"]),
            ("pygments", []),
        ],
    )
    def test_another_version_of_a_library_reruns_its_users(
        self, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, rules: list[str]
    ) -> None:
        info = tmp_path / f"{distribution}-99.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 99.0\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        done = tiny.snakemake(study, "--dry-run", "results/report.html", fresh=True)
        assert tiny.pending_in(done.stdout + done.stderr) == following(set().union(*map(script_jobs, rules)))
