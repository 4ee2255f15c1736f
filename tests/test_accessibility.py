"""Every page for everyone: axe-core's audit in light and dark, names, the keyboard, sizes, and no network.

axe-core is Deque's, as the package axe-playwright-python brings it; nothing is fetched.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pages._shared import PAGES
from tests import browser
from tests.browser import LAPTOP, Server, exceptions, idle

AUDIT = "options => axe.run({...options, resultTypes: ['violations']}).then(found => found.violations)"
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
def visitor(chromium: Any) -> Iterator[SimpleNamespace]:
    with browser.visiting(chromium) as (page, seen):
        yield SimpleNamespace(page=page, seen=seen)


@pytest.fixture(scope="module")
def axe() -> str:
    return pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT


@pytest.fixture(scope="module", params=[file for file, _ in PAGES])
def page(request: pytest.FixtureRequest, app: Server, visitor: SimpleNamespace, axe: str) -> Any:
    """Each page in turn, opened once, on a laptop and in light, for all that is asked of it."""
    laptop_in_light(visitor.page)
    visitor.page.goto(app.address + browser.place(request.param))
    idle(visitor.page)
    assert exceptions(visitor.page) == []
    visitor.page.evaluate(axe)
    return visitor.page


def laptop_in_light(page: Any) -> None:
    page.set_viewport_size(LAPTOP)
    page.emulate_media(color_scheme="light")


def test_axe_finds_nothing_worse_than_minor(page: Any) -> None:
    page.set_viewport_size(WHOLE)
    found = []
    for scheme, options in (("light", {}), ("dark", ONLY_COLOURS)):
        browser.switch(page, scheme)
        found += [(scheme, rule) for rule in page.evaluate(AUDIT, options) if rule["impact"] != "minor"]
    laptop_in_light(page)
    assert [
        f"{scheme}: {rule['id']}: {node['html'][:200]} ({node['failureSummary']})"
        for scheme, rule in found
        for node in rule["nodes"]
    ] == []


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


def test_nothing_is_wider_than_the_window_and_no_word_is_cut(page: Any) -> None:
    from playwright.sync_api import TimeoutError

    cut = {}
    for name, size in SIZES.items():
        page.set_viewport_size(size)
        idle(page)
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(FITS)  # soon: tables measure themselves anew some time after the window changed
        cut[name] = page.evaluate(CUT) if page.evaluate(FITS) else ["wider than the window"]
    assert {name: words for name, words in cut.items() if words} == {}


def test_no_page_went_wrong_or_asked_for_anything_elsewhere(visitor: SimpleNamespace) -> None:
    """Whatever is not this machine is out of reach here (`browser.new_page`), and was not even tried."""
    assert visitor.seen.problems == []
    assert visitor.seen.away == []
