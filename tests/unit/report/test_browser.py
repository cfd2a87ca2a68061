"""The page in a browser, on the screen and printed."""

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.unit.report.pages import (
    HOSTILE,
    check,
    chromium,
    comparisons,
    layers,
    needs_chromium,
    page,
    profiles,
    summary,
)

PROBE = """<script type="module">
const rows = () => [...document.querySelectorAll("table.summary tbody tr")].map((tr) => tr.cells[0].textContent);
const wait = () => new Promise((done) => setTimeout(done, 200));
const heading = [...document.querySelectorAll("table.summary th")].find((th) => th.textContent.includes("perplexity"));
heading?.click();
await wait();
heading?.click();
await wait();
const order = rows();
const filter = document.querySelector(".dt-search input");
if (filter) {
  filter.value = "awq";
  filter.dispatchEvent(new Event("input", { bubbles: true }));
  await wait();
}
const root = document.documentElement;
const bad = [...document.images].filter((image) => {
  const box = image.getBoundingClientRect(), paper = image.parentElement.getBoundingClientRect();
  const whole = box.left >= paper.left - 1 && box.right <= paper.right + 1 && box.right <= root.clientWidth + 1;
  return !(image.complete && image.naturalWidth && box.width > 100 && box.height > 40 && whole);
});
const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
const fetched = resources.filter((name) => !/^data:/.test(name));
const drawn = [...document.querySelectorAll("figure")];
const tallest = Math.max(...drawn.map((figure) => figure.offsetHeight));
const split = drawn.filter((figure) => getComputedStyle(figure).breakInside !== "avoid").length;
const seen = { order, filtered: rows(), bad: bad.length, pictures: document.images.length, fetched, tallest, split,
  overflow: root.scrollWidth > root.clientWidth };
document.title = JSON.stringify(seen);
</script>"""


def probed(tmp_path: Path, text: str, width: int) -> dict:
    done = chromium(tmp_path, text.replace("</body>", PROBE + "</body>"), width, "--dump-dom")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))


def browser_page() -> str:
    """Four methods, one with a hostile name and one gone wild, with every kind of figure."""
    frame = summary({HOSTILE: 0.2, "gw_awq": 0.1, "gw_praq": 0.15, "rtn": 9.0}, model=HOSTILE)
    compared = comparisons(("gw_awq", "gw_praq", -0.05, -0.08, -0.02), model=HOSTILE)
    table = pd.concat([layers(name, HOSTILE).assign(relative_error=0.01 * (i + 1))
                       for i, name in enumerate((HOSTILE, "gw_awq", "gw_praq", "rtn"))])  # fmt: skip
    return page(frame, compared, layers=table, checks={HOSTILE: check((0.1, 0.2))}, profiles=profiles(frame))


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_tables_sort_and_filter_and_every_figure_shows(tmp_path: Path, width: int):
    seen = probed(tmp_path, browser_page(), width)
    assert seen["order"] == ["rtn", HOSTILE, "gw_praq", "gw_awq", "original"]
    assert seen["filtered"] == ["gw_awq"]
    assert seen["pictures"] == 12 and seen["bad"] == 0
    assert not seen["overflow"] and seen["fetched"] == []


@needs_chromium
def test_printed_no_figure_is_cut_off(tmp_path: Path):
    """On A4 with margins of 14 mm: 182 mm wide, 269 mm tall, at 96 pixels an inch. The rules for print are laid out on
    the screen, where they can be measured; then the browser prints."""
    text = browser_page()
    seen = probed(tmp_path, text.replace("@media print", "@media all"), round(182 / 25.4 * 96))
    assert seen["bad"] == 0 and seen["split"] == 0
    assert 0 < seen["tallest"] < 269 / 25.4 * 96
    chromium(tmp_path, text, 1280, f"--print-to-pdf={tmp_path}/report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
