"""The whole lesson in a real browser by keyboard alone (Tab, Enter, Space, arrows), each step audited on the way."""

from itertools import combinations
from typing import Any

import pytest

from pages._lesson_steps import STEPS
from tests import browser
from tests.app import EXAMPLE
from tests.browser import Server, exceptions, heading, idle
from tests.test_lesson_page import step_of

WORSE = ("serious", "critical")
AUDIT = "axe.run({resultTypes: ['violations']}).then(found => found.violations)"
PROJECTOR = {"width": 1280, "height": 720}
HEADER = 60  # pixels, of the bar of pages
SEEN = PROJECTOR["height"] - 135  # from the buttons of steps on, where no notice is above them
MAIN = "document.querySelector('[data-testid=\"stMain\"]')"
FOCUSED = "() => [document.activeElement.computedName, document.activeElement.type || '']"
pytestmark = pytest.mark.browser


def test_the_whole_lesson_by_keyboard(app: Server, chromium: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    with browser.visiting(chromium) as (page, seen):
        page.goto(
            f"{app.address}/lesson?run={EXAMPLE}&hide=sidebar"
        )  # fewer stops for Tab; the sidebar is walked elsewhere
        heading(page, STEPS[0].title).wait_for()
        page.set_viewport_size(PROJECTOR)
        idle(page)
        page.evaluate(axe)
        for number in range(1, len(STEPS) + 1):
            places = (".st-key-lesson-navigation", f".st-key-lesson_reveal_{number} button")
            top, reveal = (page.locator(place).bounding_box() for place in places)
            assert reveal["y"] + reveal["height"] - top["y"] <= SEEN
            assert page.get_by_label(f"Step, 1 to {len(STEPS)}").input_value() == str(number)
            if number == 1:
                before = page.get_by_text("copies are classified correctly").inner_text()
                tab_to(page, "Noise level σ")
                page.keyboard.press("End")
                page.get_by_text("σ = 2 on every pixel").wait_for()
                assert page.get_by_text("copies are classified correctly").inner_text() != before
            if number == step_of("Can you tell?"):
                tab_to(page, "X is A")
                page.keyboard.press("Enter")
                page.get_by_text("Trial 2 of 10.").wait_for()
            predict(page, number)
            assert exceptions(page) == []
            idle(page)
            assert [rule for rule in page.evaluate(AUDIT) if rule["impact"] in WORSE] == []
            if number < len(STEPS):
                tab_to(page, "Next step")
                page.keyboard.press("Enter")
                heading(page, STEPS[number].title).wait_for()
                idle(page)  # the number of the step may be drawn after the title
                assert f"step={number + 1}" in page.url
        page.get_by_text(f"of {len(STEPS)} predictions correct").wait_for()
        idle(page)
    assert seen.problems == []
    assert seen.away == []


def tab_to(page: Any, name: str, kind: str = "") -> None:
    """Tab, until something whose name begins so (and of this type) has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        found, its_kind = page.evaluate(FOCUSED)
        if found.startswith(name) and its_kind.startswith(kind):
            return
    pytest.fail(f"the keyboard does not reach {name!r}")


def predict(page: Any, number: int) -> None:
    """An answer, then Reveal, and what comes of it."""
    tab_to(page, "", "radio")
    page.keyboard.press("Space")
    page.locator(f".st-key-lesson_reveal_{number} button:not([disabled])").wait_for()
    tab_to(page, "Reveal")
    page.keyboard.press("Enter")
    page.get_by_text("Right.").or_(page.get_by_text("Not quite.")).first.wait_for()


def test_back_and_forward_of_the_browser_open_the_step_at_its_top(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}")
        at_the_top(page, 1)
        for number in (2, 3):
            page.evaluate(f"{MAIN}.scrollTo(0, 300)")
            page.get_by_role("button", name="Next", exact=True).click()
            at_the_top(page, number)
        for go, number in ((page.go_back, 2), (page.go_back, 1), (page.go_forward, 2)):
            go()
            at_the_top(page, number)
    assert seen.problems == []


def test_a_presenters_keys_scroll_and_lead_to_another_step_from_the_end_of_the_page(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}&step=2")
        at_the_top(page, 2)
        below = page.evaluate(f"{MAIN}.scrollHeight - {MAIN}.clientHeight")
        assert below > 100
        page.keyboard.press("PageDown")
        page.wait_for_function(f"{MAIN}.scrollTop > 100")
        assert heading(page, STEPS[1].title).count() == 1
        page.evaluate(f"{MAIN}.scrollTo(0, {below})")
        page.keyboard.press("PageDown")
        at_the_top(page, 3)
        page.keyboard.press("PageUp")
        at_the_top(page, 2)
        page.evaluate(f"{MAIN}.scrollTo(0, {below})")
        page.keyboard.press("PageUp")
        page.wait_for_function(f"{MAIN}.scrollTop < {below}")
        idle(page)
        assert heading(page, STEPS[1].title).count() == 1
    assert seen.problems == []


def at_the_top(page: Any, number: int) -> None:
    heading(page, STEPS[number - 1].title).wait_for()
    idle(page, timeout=60_000)
    assert page.get_by_label(f"Step, 1 to {len(STEPS)}").input_value() == str(number)
    assert page.locator("h1", has_text=STEPS[number - 1].title).count() == 1
    assert page.evaluate(f"{MAIN}.scrollTop") == 0


def test_the_board_is_seen_with_its_buttons_and_what_the_steps_are(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, _):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}&step={step_of('Two levels: now add an attacker')}")
        idle(page, timeout=60_000)
        for width, height in ((1280, 720), (1024, 768)):
            page.set_viewport_size({"width": width, "height": height})
            idle(page, timeout=60_000)
            boxes = [page.locator(f".st-key-toy-{part}").bounding_box() for part in ("buttons", "figure", "beside")]
            buttons, figure, beside = boxes
            assert disjoint(boxes)
            assert figure["y"] - buttons["y"] < 130
            assert beside["x"] > figure["x"]
            assert max(box["y"] + box["height"] for box in boxes) - buttons["y"] < height - HEADER


@pytest.mark.parametrize("size", ["medium", "large"])
def test_pictures_of_the_abx_test_lie_side_by_side_in_the_window(app: Server, chromium: Any, size: str) -> None:
    with browser.visiting(chromium) as (page, _):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}&step={step_of('Can you tell?')}")
        idle(page, timeout=60_000)
        page.locator(".st-key-lesson_abx_size").get_by_text(size, exact=True).click()
        for width in (1024, 1280, 1366, 1920):
            page.set_viewport_size({"width": width, "height": 768})
            idle(page, timeout=60_000)
            boxes = [each.bounding_box() for each in page.locator(".st-key-lesson-abx img").all()]
            assert len(boxes) == 3
            assert disjoint(boxes)
            assert max(box["x"] + box["width"] for box in boxes) <= width


def disjoint(boxes: list[dict[str, float]]) -> bool:
    """Whether none reaches into another."""
    return not any(
        a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"]
        and a["y"] < b["y"] + b["height"] and b["y"] < a["y"] + a["height"]
        for a, b in combinations(boxes, 2)
    )  # fmt: skip
