"""The page of a benchmark in a real browser, without network."""

from pathlib import Path
from typing import Any

import pytest

from gflow.bench.cell import run_cell
from gflow.bench.page import write_page
from gflow.bench.summary import collect
from tests.bench.problems import BITS, GRID, plan
from tests.report.test_browser import browser, complaints, open_page, wait_for

__all__ = ["browser"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    wanted = plan(
        "random", "nsga2", "nsga3", problems=(GRID, BITS), seeds=(0, 1),
        columns=("regret", "front_share"), checkpoints=5,
    )  # fmt: skip
    for place in wanted.cells():
        run_cell(folder, place, 2000)
    return write_page(folder / "page.html", collect(folder, wanted))


def names(chrome: Any) -> list[str]:
    return [item.text for item in chrome.find_elements("css selector", "#table tbody th")]


def test_problems_sorting_and_axes(browser: Any, page: Path) -> None:
    open_page(browser, page)
    assert sorted(names(browser)) == ["nsga2", "nsga3", "random"]
    script = "return report.problems[0].table.rows.map((row) => [row.values[1][0], row.name])"
    rows = browser.execute_script(script)
    browser.find_elements("css selector", "#table thead button")[1].click()
    best = [name for _, name in sorted(rows, key=lambda row: -row[0])]
    assert names(browser) == best
    axis = "return at('curve-plot').layout.xaxis.title.text"
    assert browser.execute_script(axis) == "oracle calls"
    browser.find_element("xpath", "//div[@aria-label='Against']/button[2]").click()
    wait_for(lambda: browser.execute_script(axis) == "CPU seconds", "no other axis")
    browser.find_element("xpath", "//button[text()='bits']").click()
    wait_for(lambda: sorted(names(browser)) == ["nsga2", "random"], "no other problem")
    assert not browser.find_element("id", "front-title").is_displayed()
    assert "at least two rewards" in browser.find_element("id", "skipped").text
    assert complaints(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_narrow_windows_and_dark_pages(browser: Any, page: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        open_page(browser, page)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, "the page must not scroll sideways"
        assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
