"""The report in a real browser, without network: point, click, keys, colours, views."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gflow.report import write_report
from tests.report.fake_run import grid_run, molecule_run

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-prefers-reduced-motion",
    "--window-size=1280,1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield chrome
    chrome.quit()


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def open_page(browser: Any, path: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    wait_for(lambda: browser.title.startswith("ready "), "the page never got ready")


def complaints(browser: Any) -> list[str]:
    """Errors on the console, and requests for anything that the page does not carry itself."""
    logs = browser.get_log("browser")
    errors = [entry["message"] for entry in logs if entry["level"] == "SEVERE"]
    sent = [
        e["message"] for e in browser.get_log("performance") if "requestWillBeSent" in e["message"]
    ]
    return errors + [message for message in sent if '"url":"http' in message]


def point_at(browser: Any, number: int) -> None:
    """Move the real pointer onto a member of the front."""
    from selenium.webdriver.common.action_chains import ActionChains

    x, y = browser.execute_script(
        """
        const plot = at("front-plot"), index = front.members[arguments[0]];
        plot.scrollIntoView();
        const box = plot.querySelector(".nsewdrag").getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout;
        const [x, y] = points.rewards[index];
        return [box.left + xaxis.d2p(x), box.top + yaxis.d2p(y)];
        """,
        number,
    )
    chain = ActionChains(browser)
    chain.w3c_actions.pointer_action.move_to_location(round(x) - 30, round(y) - 30)
    chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    chain.perform()


def card(browser: Any, selector: str) -> str:
    script = "return document.querySelector('#card ' + arguments[0])?.outerHTML ?? ''"
    return str(browser.execute_script(script, selector))


def member(browser: Any, number: int) -> str:
    return str(browser.execute_script("return points.text[front.members[arguments[0]]]", number))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(molecule_run(tmp_path_factory.mktemp("runs") / "two", n=120))


def test_pointing_shows_a_structure_and_clicking_pins_it(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    for number in (0, 2):
        point_at(browser, number)
        wait_for(lambda n=number: member(browser, n) in card(browser, ".name"), "no card")
        assert "<svg" in card(browser, ".drawing")
    ActionChains(browser).click().perform()
    wait_for(lambda: "Pinned" in card(browser, ".state"), "not pinned")
    point_at(browser, 0)
    time.sleep(0.3)
    assert member(browser, 2) in card(browser, ".name"), "a pinned card must not follow"
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    wait_for(lambda: "Pinned" not in card(browser, ".state"), "Escape must let go")
    assert complaints(browser) == []


def test_keys_and_rows_choose_too(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    plot = browser.find_element("id", "front-plot")
    plot.send_keys(Keys.ARROW_RIGHT)
    leftmost = browser.execute_script(
        "return points.text[front.members.reduce((a, b) =>"
        " points.rewards[a][0] <= points.rewards[b][0] ? a : b)]"
    )
    assert leftmost in card(browser, ".name")
    plot.send_keys(Keys.ARROW_RIGHT)
    assert leftmost not in card(browser, ".name")
    buttons = browser.find_elements("css selector", "#best-tools .choice button")
    assert [button.text for button in buttons] == ["only qed", "even weights", "only fsp3"]
    before = browser.find_element("id", "best-table").text
    buttons[2].click()
    assert browser.find_element("id", "best-table").text != before
    row = browser.find_elements("css selector", "#best-table tbody tr")[1]
    row.send_keys(Keys.ENTER)
    assert "chosen" in row.get_attribute("class")
    assert row.find_element("css selector", ".name span").text in card(browser, ".name")
    assert browser.find_elements("css selector", "[data-title*='Share']") == []
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
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert wide <= width, "the page must not scroll sideways"
        assert (sum(int(c) for c in ground[4:-1].split(",")) < 200) == (scheme == "dark")
        assert complaints(browser) == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize(("k", "views"), [(3, 3), (4, 2)])
def test_more_objectives_have_more_views(browser: Any, tmp_path: Path, k: int, views: int) -> None:
    open_page(browser, write_report(molecule_run(tmp_path / "run", n=60, k=k)))
    buttons = browser.find_elements("css selector", "#front-tools .choice button")
    assert len(buttons) == views
    kinds = set()
    for button in buttons:
        button.click()
        name = "return at('front-plot').data.at(-1).type"
        wait_for(lambda name=name: browser.execute_script(name) not in kinds, "no new view")
        kinds.add(browser.execute_script(name))
    assert kinds == {"scatter", "parcoords", "scatter3d"} - ({"scatter3d"} if k == 4 else set())
    assert complaints(browser) == []


def test_tables_and_names_can_be_taken_away(browser: Any, page: Path) -> None:
    open_page(browser, page)
    catch = "URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }"
    browser.execute_script(catch)
    button = browser.find_element("xpath", "//button[text()='Save this table as CSV']")
    browser.execute_script("HTMLAnchorElement.prototype.click = () => {}")
    button.click()
    text = browser.execute_async_script("window.saved.text().then(arguments[0])")
    lines = text.strip().splitlines()
    assert lines[0] == '"smiles","qed","fsp3","score"'
    assert len(lines) == 1 + len(browser.find_elements("css selector", "#best-table tbody tr"))
    copy = browser.find_element("css selector", "#card .name button")
    copy.click()
    wait_for(lambda: copy.text == "Copied", "the clipboard did not take it")


def test_objects_without_drawing_show_as_text(browser: Any, tmp_path: Path) -> None:
    open_page(browser, write_report(grid_run(tmp_path / "grid")))
    assert "[" in card(browser, ".drawing.text")
    assert complaints(browser) == []


def test_one_reward_is_shown_over_the_oracle_calls(browser: Any, tmp_path: Path) -> None:
    open_page(browser, write_report(molecule_run(tmp_path / "run", n=60, k=1)))
    title = "return at('front-plot').layout.xaxis.title.text"
    assert browser.execute_script(title) == "Oracle call"
    assert browser.execute_script("return at('front-plot').data.some((t) => t.x.length > 1)")
    assert "highest qed" in browser.find_element("id", "front-lead").text
    assert complaints(browser) == []
