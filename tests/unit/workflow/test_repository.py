"""The files beside the code hold together: links, commands, and the checks of a commit."""

import re
from pathlib import Path

import pytest
import yaml

from tests.tiny import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Modules within backticks, from the library on or from the project."""
    names = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|smk|yaml|md|j2))[:`]", page.read_text(encoding="utf-8"))
    folders = (ROOT, *(ROOT / "workflow_scripts" / name for name in (".", "quant", "quant/recipe")))
    assert [name for name in names if not any((folder / name).exists() for folder in folders)] == []


def test_readme_leads_with_the_command_and_stays_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.strip() for line in lines if line.startswith("    ")]
    assert commands[0] == "snakemake --cores 1 --resources gpu=1 results/report.html" and len(lines) <= 150


def test_a_commits_hooks_are_the_checks_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\ncheck: lint dry-run\n" in makefile
    recipes = (makefile.partition(f"\n{name}:")[2].partition("\n\n")[0] for name in ("lint", "dry-run"))
    checks = [line.strip() for recipe in recipes for line in recipe.splitlines() if line.startswith("\t")]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"] for hook in local["hooks"]]
    assert entries[-1] == "make check"
    loop = next(place for place, line in enumerate(checks) if line.startswith("for "))
    assert len(checks[:loop]) == len(entries[:-1])
    assert all(any(line.startswith(entry) for line in checks[:loop]) for entry in entries[:-1])


def test_the_citations_of_the_code_are_sections_of_the_methods() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = [
        name
        for path in (ROOT / "workflow_scripts").rglob("*.py")
        for name in re.findall(r"docs/methods\.md, ([A-Z][\w ]*)", path.read_text(encoding="utf-8"))
    ]
    assert cited and [name for name in cited if not any(section.startswith(name) for section in sections)] == []
