"""The whole way in a real browser: a finished result at once, a run of one's own, a reload in its middle, its
certificates, a cancelled run; on a machine without MNIST, and with nothing thrown anywhere."""

import re
from typing import Any

import pytest

from tests import browser
from tests.browser import Server, exceptions, heading, idle, workers

PATIENCE = 180_000  # milliseconds, for what a run has to compute; a machine may be busy
pytestmark = pytest.mark.browser


def test_from_the_first_screen_to_a_certificate_and_a_cancelled_run(app: Server, chromium: Any) -> None:
    """The first test here: the server has had no visitor and has no runs."""
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/poison?preset=smoke&seed=3")  # the server's first visitor comes by a link
        page.get_by_text("--set seed=3").wait_for()
        page.get_by_text("Open by id").wait_for()
        page.goto(f"{app.address}/certify?run=0123456789abcdef")
        page.get_by_text(re.compile("^No run .* has id 0123456789abcdef")).wait_for()
        no_exception(page)

        page.goto(app.address)
        heading(page, "Small changes, smaller certificates").wait_for()
        page.get_by_text("Average certified radius (ACR) of", exact=False).first.wait_for()
        page.locator(".js-plotly-plot .main-svg").nth(1).wait_for()
        page.get_by_text("MNIST is not on this machine").wait_for()
        no_exception(page)

        bar(page, "Poison").click()
        heading(page, "Poison").wait_for()
        page.get_by_text("MNIST is not on this machine").wait_for()
        page.get_by_text("A few seconds on embedded").wait_for()  # the preset where MNIST is not there
        page.get_by_text("Data, certification, seeds").click()
        set_seed(page, 1)
        page.get_by_role("button", name="Start poisoning").click()
        page.get_by_role("button", name="Cancel").wait_for()
        page.wait_for_url(re.compile(r"run=[0-9a-f]{16}"))
        identifier = re.search(r"run=([0-9a-f]{16})", page.url).group(1)

        page.reload()
        heading(page, "Poison").wait_for()
        page.get_by_text(f"Run {identifier}").wait_for()
        page.get_by_text(re.compile("Queued|Running")).first.wait_for()
        assert len(list(app.runs_root.glob("*/config.json"))) == 1  # the reload started nothing
        page.get_by_text("Done.", exact=True).wait_for(timeout=PATIENCE)
        no_exception(page)

        page.get_by_role("link", name="See results (Certify)").click()
        heading(page, "Certify").wait_for()
        page.get_by_role("heading", name="All test images").wait_for()
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert f"run={identifier}" in page.url
        no_exception(page)

        bar(page, "Poison").click()
        page.get_by_text("Data, certification, seeds").click()
        set_seed(page, 2)
        page.get_by_role("button", name="Start poisoning").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled. What was finished is kept").wait_for(timeout=PATIENCE)
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("Done.", exact=True).wait_for(timeout=PATIENCE)
        assert page.get_by_role("button", name="Resume").count() == 0
        no_exception(page)

        for name in ("Runs", "Inspect", "Start"):
            bar(page, name).click()
            page.locator("h1").first.wait_for()
            idle(page)
            no_exception(page)
    assert not seen.problems
    assert not seen.away
    assert not [worker for worker in workers(app.runs_root) if "work" in worker.cmdline()]


def test_a_drawn_digit_is_certified_and_stays_while_another_page_is_open(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/try")
        sheet = page.get_by_role("application", name=re.compile("^Sheet to draw"))
        sheet.wait_for()
        box, mouse = sheet.bounding_box(), page.mouse
        mouse.move(box["x"] + 140, box["y"] + 50)
        mouse.down()
        mouse.move(box["x"] + 140, box["y"] + 230, steps=8)
        mouse.up()
        answer = page.get_by_text(re.compile("^The clean victim (answers [0-9]|abstains)"))
        answer.wait_for()
        drawn = answer.inner_text()
        page.get_by_text(re.compile("^The poisoned victim (answers [0-9]|abstains)")).wait_for()

        idle(page)  # else an image may still be on its way, and is gone from the server with its page
        bar(page, "Certify").click()
        heading(page, "Certify").wait_for()
        idle(page)
        bar(page, "Try your own").click()
        answer.wait_for()
        assert answer.inner_text() == drawn

        for key in ["Space", *["ArrowRight"] * 5, "Space"]:  # a stroke by keyboard, to the right from the middle
            sheet.press(key)
        page.get_by_text("Brush up, row 14, column 19 of 28.").wait_for()
        idle(page)
        page.get_by_role("button", name="Clear", exact=True).click()
        page.get_by_text("Draw a digit on the sheet").wait_for()
        no_exception(page)
    assert not seen.problems
    assert not seen.away


def test_a_click_on_a_studys_cell_shows_the_run_behind_it_and_back_leads_to_the_cell(
    app: Server, chromium: Any
) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(f"{app.address}/studies?study=43731ae460843f7d")
        cells = page.locator(".js-plotly-plot .nsewdrag").first
        cells.wait_for(state="attached", timeout=PATIENCE)
        chosen = page.get_by_text(re.compile("^Drop in ACR [0-9]"))
        for column, name in (
            (0, "SmoothAdv → Gaussian augmentation"),
            (2, "SmoothAdv → MACER"),
            (1, "SmoothAdv → SmoothAdv"),
        ):
            idle(page)
            cells.scroll_into_view_if_needed()
            box = cells.bounding_box()
            page.mouse.move(box["x"] + box["width"] * (column + 0.4) / 3, box["y"] + box["height"] / 2)
            page.mouse.click(box["x"] + box["width"] * (column + 0.5) / 3, box["y"] + box["height"] / 2)
            page.locator("strong", has_text=name).wait_for()
        chosen.wait_for()
        page.get_by_role("link", name="Open in Certify").click()
        heading(page, "Certify").wait_for()
        page.wait_for_url(re.compile(r"/certify\?run=[0-9a-f]{16}$"))
        idle(page)
        no_exception(page)
        for cell, name in ((4, "SmoothAdv → SmoothAdv"), (5, "SmoothAdv → MACER")):
            page.go_back()
            page.wait_for_url(re.compile(f"/studies.*cell={cell}$"))
            page.locator("strong", has_text=name).wait_for()
            idle(page)
    assert not seen.problems
    assert not seen.away


def test_back_leaves_explore_at_once_and_undoes_a_slider(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, seen):
        page.goto(app.address)
        heading(page, "Small changes, smaller certificates").wait_for()
        bar(page, "Explore").click()
        budget = page.get_by_role("slider", name=re.compile("^Budget"))
        budget.wait_for()
        idle(page)
        budget.press("ArrowRight")
        page.wait_for_url(re.compile("epsilon=0.2$"))
        idle(page)
        page.get_by_role("link", name="Inspect this poison").click()
        heading(page, "Inspect").wait_for()
        idle(page)
        page.go_back()
        page.wait_for_url(re.compile("epsilon=0.2$"))
        heading(page, "Explore").wait_for()
        idle(page)
        page.go_back()
        page.get_by_text("46 ± 7 %").first.wait_for()
        idle(page)
        page.go_back()
        heading(page, "Small changes, smaller certificates").wait_for()
        no_exception(page)
    assert not seen.problems
    assert not seen.away


def bar(page, name: str):
    """The link to this page in the bar above: pages have links of the same name, too."""
    return page.get_by_test_id("stTopNav").get_by_role("link", name=name, exact=True)


def set_seed(page, seed: int) -> None:
    field = page.get_by_label(re.compile("^Seed"))
    field.fill(str(seed))
    field.press("Enter")
    page.get_by_text(re.compile(rf"--set seed={seed}\b")).wait_for()


def no_exception(page) -> None:
    assert exceptions(page) == []


def test_no_number_of_the_form_is_cut(app: Server, chromium: Any) -> None:
    with browser.visiting(chromium) as (page, _):
        page.goto(f"{app.address}/poison?preset=paper-ga-mnist")
        page.get_by_text("The same from the command line").wait_for()
        for section in page.locator('[data-testid="stExpander"] summary').all():
            section.click()
        page.get_by_role("spinbutton", name="Training images").wait_for()
        cut = """() => [...document.querySelectorAll('[data-testid="stNumberInput"] input')].filter(each =>
            each.scrollWidth > each.clientWidth + 1).map(each => `${each.ariaLabel}: ${each.value}`)"""
        for width in (1024, 1366):
            page.set_viewport_size({"width": width, "height": 768})
            idle(page)
            assert page.evaluate(cut) == []
