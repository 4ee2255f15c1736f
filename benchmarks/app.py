"""`python -m benchmarks.app`: how soon the app answers in a real browser: first screen, clicks, eight browsers, toy.

Server, Chromium and the job share this machine, as they do on a laptop. A click's time ends with the last change of
anything on the page (`tests.browser.act`), so it includes the browser's own drawing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, machine, parsed, spread, tell
from engine import datasets, jobs
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run
from pages._bilevel import SPEEDS
from pages._lesson_steps import STEPS
from tests import browser
from tests.browser import Server, act, idle

BACK_AND_FORTH = ("ArrowLeft", "ArrowRight")  # of a slider, which says so if it cannot move
SLIDERS = {  # page → accessible names of sliders, or beginnings of them
    "certify": ("Estimation draws n", "Failure probability α"),
    "explore": ("Target digit", "Noise level σ", "Budget ε"),
    "inspect": ("Columns from the clean image",),
}
VISITORS = 8
APART = 0.5  # seconds between two visitors' clicks in a class: each reads for four seconds and goes on
SHOWN = r"""() => [  // when, and how many upper steps of the bilevel problem the page shows
    performance.now() / 1000, Number(document.body.innerText.match(/(\d+) upper steps/)[1])]"""
IDLE, BESIDE = "idle", "beside a running job"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.app", description=__doc__)
    options = parsed(parser, GROUPS, arguments, rounds=10, what="of every click", at_least=2)
    executable = browser.installed()
    if executable is None:
        parser.error(f"no browser on this machine (looked for {', '.join(browser.BROWSERS)})")
    with browser.chromium(executable) as chromium:
        tables = (table for name in options.groups for table in GROUPS[name](chromium, options.rounds))
        tell(tables, machine() | {"rounds": options.rounds, "chromium": chromium.version}, options.output)


@contextmanager
def fresh_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder, browser.serving(Path(folder), data=datasets.default_root()) as server:
        yield server


@contextmanager
def job(server: Server) -> Iterator[Run]:
    """A run that computes meanwhile, longer than anything here takes."""
    config = with_overrides(PRESETS["smoke"].config, ["victim_seeds=100", "training.epochs=100", "seed=1000"])
    run = jobs.submit(config, runs_root=server.runs_root, data_root=datasets.default_root(), preset="smoke")
    while not run.metrics("training") and not run.metrics("attack"):
        time.sleep(0.2)
    try:
        yield run
        if not run.status().active:
            raise RuntimeError(f"the job that was to run beside is {run.status().state}")
    finally:
        jobs.cancel(run)


def first_screen(chromium: Any, rounds: int) -> Iterator[Table]:
    """Of a server that just started, to a browser that holds nothing of the app."""
    total, shown = [], []
    for _ in range(min(rounds, 5)):
        started = time.perf_counter()
        with fresh_server() as server:
            page, _ = browser.new_page(chromium)
            asked = time.perf_counter()
            page.goto(server.address)
            idle(page, timeout=60_000)
            quiet = page.evaluate("performance.now() - window.lastChange") / 1000
            now = time.perf_counter() - quiet
            shown.append(now - asked)
            total.append(now - started)
            page.context.close()
    rows = [
        ("from the browser's request to the finished first screen", spread(shown)),
        ("from the command that starts the server", spread(total)),
    ]
    raw = [{"what": what, "seconds": each} for (what, _), each in zip(rows, (shown, total), strict=True)]
    yield Table("First screen", ("what", "s, median (range)"), rows, raw)


def clicks(chromium: Any, rounds: int) -> Iterator[Table]:
    """Every slider, moved by the keyboard there and back; first with nothing else, then beside a job."""
    with fresh_server() as server:
        alone = list(_sliders(chromium, server, rounds, IDLE))
        with job(server):
            beside = list(_sliders(chromium, server, rounds, BESIDE))
    yield _percentiles("From a slider's move to the finished redraw", alone + beside)


def _sliders(chromium: Any, server: Server, rounds: int, when: str) -> Iterator[dict[str, Any]]:
    for place, names in SLIDERS.items():
        page, _ = browser.new_page(chromium)
        page.goto(f"{server.address}/{place}")
        idle(page, timeout=60_000)
        for name in names:
            slider = page.get_by_role("slider", name=name).first
            yield {"what": f"{place}: {name}", "when": when, "seconds": _there_and_back(page, slider, rounds)}
        page.context.close()


def _there_and_back(page: Any, slider: Any, rounds: int) -> list[float]:
    seconds = []
    for k in range(rounds + 1):
        slider.focus()
        before = slider.get_attribute("aria-valuetext") or slider.input_value()
        seconds.append(act(page, lambda key=BACK_AND_FORTH[k % 2]: slider.press(key))())  # type: ignore[misc]
        if (slider.get_attribute("aria-valuetext") or slider.input_value()) == before:
            raise RuntimeError(f"a slider stayed at {before}")
    return seconds[1:]  # the first one fills caches


def _percentiles(title: str, found: list[dict[str, Any]]) -> Table:
    rows = []
    for each in found:
        values = sorted(each["seconds"])
        p95 = values[min(len(values) - 1, round(0.95 * (len(values) - 1)))]
        rows.append((each["what"], each["when"], f"{statistics.median(values):.2f}", f"{p95:.2f}", f"{values[-1]:.2f}"))
    return Table(title, ("what", "when", "p50, s", "p95, s", "slowest, s"), rows, found)


def eight(chromium: Any, rounds: int) -> Iterator[Table]:
    """Eight visitors in eight steps of the lesson, beside a job: on to the next step and back, in three manners."""
    with fresh_server() as server:
        pages = [browser.new_page(chromium)[0] for _ in range(VISITORS)]
        for k, page in enumerate(pages):
            page.goto(f"{server.address}/lesson?step={k + 1}")
            idle(page, timeout=60_000)
        found, strange = {}, []
        with job(server):
            for manner, round_of_clicks in MANNERS.items():
                turns = []
                for turn in range(2 * max(1, rounds // 2) + 2):
                    turns.append(round_of_clicks(pages, turn % 2 == 0))
                    strange += _strangers(pages, turn % 2 == 0)
                found[manner] = turns[2:]  # the first two fill caches
        for page in pages:
            page.context.close()
    state = "each only ever saw its own step" if not strange else f"STRANGE: {strange}"
    yield _percentiles(
        f"Eight browsers in eight steps of the lesson, a job running; {state}",
        [
            {"what": f"visitor of step {k + 1}", "when": manner, "seconds": [each[k] for each in turns]}
            for manner, turns in found.items()
            for k in range(VISITORS)
        ],
    )


def _turn(page: Any, forward: bool) -> Callable[[], float]:
    button = page.get_by_role("button", name="Next" if forward else "Back", exact=True)
    return act(page, button.click)


def _one_after_the_other(pages: list[Any], forward: bool) -> list[float]:
    return [_turn(page, forward)() for page in pages]


def _as_in_a_class(pages: list[Any], forward: bool) -> list[float]:
    waits = []
    for page in pages:
        waits.append(_turn(page, forward))
        time.sleep(APART)
    return [wait() for wait in waits]


def _in_one_instant(pages: list[Any], forward: bool) -> list[float]:
    return [wait() for wait in [_turn(page, forward) for page in pages]]


MANNERS: dict[str, Callable[[list[Any], bool], list[float]]] = {
    "one clicks at a time": _one_after_the_other,
    "each clicks every four seconds": _as_in_a_class,
    "all eight click in one instant": _in_one_instant,
}


def _strangers(pages: list[Any], forward: bool) -> list[str]:
    """What visitors see who are not where they went."""
    found = []
    for k, page in enumerate(pages):
        title, step = page.locator('[data-testid="stMain"] h1').inner_text(), k + 2 if forward else k + 1
        if title != STEPS[step - 1].title or f"Lesson, step {step} of" not in page.inner_text("main"):
            found.append(f"visitor of step {k + 1} at {title!r} instead of step {step}")
    return found


def toy(chromium: Any, rounds: int) -> Iterator[Table]:
    """The lesson's bilevel problem, played: upper steps a second that a visitor sees, each with its hypergradient."""
    with fresh_server() as server:
        page, _ = browser.new_page(chromium)
        page.goto(f"{server.address}/lesson?step=6")
        idle(page, timeout=60_000)
        found: list[dict[str, Any]] = [
            {"what": f"speed {name}, aimed at {aim} a second", "rates": [_played(page, name) for _ in range(rounds)]}
            for name, aim in SPEEDS.items()
            if aim
        ]
        page.context.close()
    rows = [(each["what"], spread(each["rates"])) for each in found]
    yield Table("The bilevel problem in the plane", ("what", "upper steps a second, median (range)"), rows, found)


def _played(page: Any, speed: str) -> float:
    for role, name in (("radio", speed), ("button", "Reset")):
        page.get_by_role(role, name=name, exact=True).click()
        idle(page)
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(f"({SHOWN})()[1] > 0")
    began, first = page.evaluate(SHOWN)
    enough = "document.body.innerText.includes('Finished:') || now[0] > began + 3"
    end = page.wait_for_function(f"began => {{ const now = ({SHOWN})(); return ({enough}) && now }}", arg=began)
    ended, last = end.json_value()
    return (last - first) / (ended - began)


GROUPS: dict[str, Callable[[Any, int], Iterator[Table]]] = {
    "first-screen": first_screen,
    "clicks": clicks,
    "eight": eight,
    "toy": toy,
}

if __name__ == "__main__":
    main()
