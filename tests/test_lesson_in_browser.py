"""The whole lesson in a real browser by keyboard alone (Tab, Enter, Space, arrows), each step audited on the way."""

from typing import Any

import pytest

from pages._lesson_steps import STEPS
from tests import browser
from tests.app import EXAMPLE
from tests.browser import Server, exceptions, heading, idle
from tests.test_lesson_page import step_of

WORSE = ("serious", "critical")
AUDIT = "axe.run({resultTypes: ['violations']}).then(found => found.violations)"
FOCUSED = "() => [document.activeElement.computedName, document.activeElement.type || '']"
pytestmark = pytest.mark.browser


def test_the_whole_lesson_by_keyboard(app: Server, chromium: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    with browser.visiting(chromium) as (page, seen):
        page.goto(
            f"{app.address}/lesson?run={EXAMPLE}&hide=sidebar"
        )  # fewer stops for Tab; the sidebar is walked elsewhere
        heading(page, STEPS[0].title).wait_for()
        idle(page)
        page.evaluate(axe)
        for number in range(1, len(STEPS) + 1):
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


def test_back_and_forward_of_the_browser_and_a_presenters_keys_open_the_step_at_its_top(
    app: Server, chromium: Any
) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}")
        at_the_top(page, 1)
        for number in (2, 3):
            page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollTo(0, 300)")
            page.keyboard.press("PageDown")
            at_the_top(page, number)
        for go, number in ((page.go_back, 2), (page.go_back, 1), (page.go_forward, 2)):
            go()
            at_the_top(page, number)
        page.keyboard.press("PageUp")
        at_the_top(page, 1)
    assert seen.problems == []


def at_the_top(page: Any, number: int) -> None:
    heading(page, STEPS[number - 1].title).wait_for()
    idle(page, timeout=60_000)
    assert page.get_by_label(f"Step, 1 to {len(STEPS)}").input_value() == str(number)
    assert page.locator("h1", has_text=STEPS[number - 1].title).count() == 1
    assert page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollTop") == 0


def test_on_a_projector_buttons_stand_above_the_figure_and_on_a_laptop_beside_it(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, _):
        page.goto(f"{app.address}/lesson?run={EXAMPLE}&step=6")
        idle(page, timeout=60_000)
        for width, beside in ((1366, True), (1024, False)):
            page.set_viewport_size({"width": width, "height": 768})
            idle(page, timeout=60_000)
            buttons, figure = (page.locator(f".st-key-toy-{part}").bounding_box() for part in ("buttons", "figure"))
            if beside:
                assert buttons["x"] >= figure["x"] + figure["width"]
            else:
                assert buttons["y"] + buttons["height"] <= figure["y"]
                assert figure["y"] + figure["height"] - buttons["y"] < 850
