"""Every page for everyone: axe-core's audit in light and dark, names, the keyboard, sizes, and no network.

axe-core is Deque's, as the package axe-playwright-python brings it; nothing is fetched.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pages._shared import PAGES
from tests import browser
from tests.browser import LAPTOP, Server, exceptions, idle

# Of Streamlit's own making and not to be changed from an app: (axe's rule, part of the element's selector), why.
STREAMLITS: dict[tuple[str, str], str] = {}
AUDIT = {"resultTypes": ["violations"]}
ONLY_COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
WHOLE = {"width": 1366, "height": 6000}  # axe judges contrast only of what is in sight
SIZES = {  # CSS pixels
    "laptop": LAPTOP,
    "laptop at 150 %": {"width": 911, "height": 512},
    "projector": {"width": 1024, "height": 768},
    "full HD": {"width": 1920, "height": 1080},
    "4K": {"width": 3840, "height": 2160},
}
PICTURES = '[data-testid="stPlotlyChart"], [data-testid="stDataFrameResizable"], [data-testid="stTable"], img, iframe'
# The browser's own names (`computedName`): what a screen reader says.
NAMES = """all => [...document.querySelectorAll(all)].filter(each => each.checkVisibility())
    .map(each => [each.computedName, each.outerHTML.slice(0, 300)])"""
FOCUSED = """() => {
    let found = document.activeElement;
    while (found?.shadowRoot?.activeElement) found = found.shadowRoot.activeElement;
    if (!found || found === document.body) return null; // the browser's own controls
    const table = found.closest('[data-testid="data-grid-canvas"]') !== null, before = found.dataset.walked === 'yes';
    found.dataset.walked = 'yes';
    return {name: table || found.matches('main, .dvn-scroller') ? 'its parts' : found.computedName,
        html: found.outerHTML.slice(0, 300), again: before && !table};
}"""
# What the keyboard did not reach. Of radio buttons and button groups it reaches one, and arrows the others.
MISSED = """() => [...document.querySelectorAll('button, a[href], input, textarea, select, summary')].filter(each =>
    each.checkVisibility({visibilityProperty: true}) && each.tabIndex >= 0 && !each.disabled && !each.dataset.walked
    && each.type !== 'radio' && !each.closest('[inert]')
    && !each.closest('[data-testid="stButtonGroup"]')?.querySelector('[data-walked]')
    ).map(each => each.outerHTML.slice(0, 300))"""
FITS = """() => [document.documentElement, document.querySelector('[data-testid="stMain"]')].every(each =>
    each.scrollWidth <= each.clientWidth)"""
# Words of buttons and figures that an ellipsis stands for.
CUT = """() => [...document.querySelectorAll('[data-testid="stMain"] :is([data-testid="stButton"], '
    + '[data-testid="stPopover"], [data-testid="stMetric"], [data-testid="stPageLink"]) *')].filter(each =>
    each.checkVisibility() && getComputedStyle(each).overflowX !== 'visible'
    && each.scrollWidth > each.clientWidth + 1).map(each => each.innerText)"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with browser.serving(tmp_path_factory.mktemp("accessibility")) as server:
        yield server


@pytest.fixture(scope="module")
def visitor(browser_path: str) -> Iterator[SimpleNamespace]:
    with browser.chromium(browser_path) as chromium:
        page, seen = browser.new_page(chromium)
        yield SimpleNamespace(page=page, seen=seen)


@pytest.fixture(scope="module")
def axe() -> str:
    return pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT


@pytest.fixture(scope="module", params=[file for file, _ in PAGES])
def page(request: pytest.FixtureRequest, server: Server, visitor: SimpleNamespace, axe: str) -> Any:
    """Each page in turn, opened once for all that is asked of it."""
    visitor.page.goto(server.address + browser.place(request.param))
    idle(visitor.page)
    assert exceptions(visitor.page) == []
    visitor.page.evaluate(axe)
    return visitor.page


@pytest.fixture(autouse=True)
def _laptop_in_light(page: Any) -> Iterator[None]:
    yield
    page.set_viewport_size(LAPTOP)
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_worse_than_minor(page: Any, scheme: str) -> None:
    page.set_viewport_size(WHOLE)
    browser.switch(page, scheme)
    found = page.evaluate("options => axe.run(options)", AUDIT | (ONLY_COLOURS if scheme == "dark" else {}))[
        "violations"
    ]
    ours = [
        f"{rule['id']}: {node['html'][:200]} ({node['failureSummary']})"
        for rule in found
        for node in rule["nodes"]
        if rule["impact"] != "minor" and not _streamlits(rule["id"], str(node["target"]))
    ]
    assert ours == []


def _streamlits(rule: str, target: str) -> bool:
    return any(rule == known and part in target for known, part in STREAMLITS)


def test_every_chart_image_and_table_has_a_name(page: Any) -> None:
    names = page.evaluate(NAMES, PICTURES)
    assert [html for name, html in names if len(name) < 5] == []


def test_the_keyboard_reaches_everything_and_is_never_trapped(page: Any) -> None:
    nameless = []
    for _ in range(600):  # more than any page has, cells of tables included
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused and focused["again"]:
            break
        if focused and not focused["name"]:
            nameless.append(focused["html"])
    else:
        pytest.fail(f"trapped at {focused}")
    assert nameless == []
    assert page.evaluate(MISSED) == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window_and_no_word_is_cut(page: Any, size: str) -> None:
    page.set_viewport_size(SIZES[size])
    idle(page)
    page.wait_for_function(FITS)  # soon: tables measure themselves anew some time after the window changed
    assert page.evaluate(CUT) == []


def test_no_page_went_wrong_or_asked_for_anything_elsewhere(page: Any, visitor: SimpleNamespace) -> None:
    """Whatever is not this machine is out of reach here (`browser.new_page`), and was not even tried."""
    assert visitor.seen.problems == []
    assert visitor.seen.away == []
