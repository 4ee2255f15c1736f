"""The app in a real browser: a server of its own on a free port, Chromium, and when a page has finished drawing."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pages._shared import PAGES

PROJECT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-blink-features=ComputedAccessibilityInfo",
]
LAPTOP = {"width": 1366, "height": 768}
# Streamlit's front end asks for the first beside each page's address before it asks at the right one. A picture of a
# running job may have been replaced by the next one before a slow browser asks for it; of that both the browser and
# Streamlit tell.
HARMLESS = re.compile(r"/_stcore/(health|host-config)|/media/[0-9a-f]+\.png$")
# When anything on the page last changed: DOM, attributes, text, or an image or font that arrived; how often its script
# started.
CLOCK = """
window.lastChange = 0, window.runs = 0;
const note = () => { window.lastChange = performance.now(); };
new MutationObserver(note).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
new MutationObserver(changes => changes.forEach(each => {
    if (each.target.getAttribute('data-test-script-state') === 'running') window.runs++;
})).observe(document, {subtree: true, attributeFilter: ['data-test-script-state']});
document.addEventListener('load', note, true);
"""
IDLE = """quiet => {
    const app = document.querySelector('[data-testid="stApp"]');
    return app && app.dataset.testScriptState === 'notRunning' && app.dataset.testConnectionState === 'CONNECTED'
        && !document.querySelector('[data-stale="true"], [data-testid="stSkeleton"], [data-testid="stSpinner"]')
        && [...document.querySelectorAll('.stPlotlyChart')].every(each => each.querySelector('.main-svg'))
        && [...document.images].every(each => each.complete)
        && performance.now() - window.lastChange > quiet;
}"""

IN_SCHEME = """scheme => scheme ===
    (getComputedStyle(document.querySelector('.stApp')).backgroundColor === 'rgb(255, 255, 255)' ? 'light' : 'dark')"""


@dataclass(frozen=True)
class Server:
    address: str
    runs_root: Path


@dataclass(frozen=True)
class Seen:
    """What a page did that it should not."""

    problems: list[str] = field(default_factory=list)  # page errors, and errors on the console
    away: list[str] = field(default_factory=list)  # requests to anything but this machine


def installed() -> str | None:
    """The path of a browser on this machine."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def serving(folder: Path, *, data: Path | None = None) -> Iterator[Server]:
    """The app with no runs and, unless data says where, no MNIST. Afterwards it and all that it started are gone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root, log = folder / "runs", folder / "server.txt"
    if data is None:
        (data := folder / "data").mkdir()
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"],
            cwd=PROJECT,
            env=os.environ | {"PACD_RUNS": str(root), "PACD_DATA": str(data)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(server, port, log)
        yield Server(f"http://localhost:{port}", root)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        for worker in workers(root):
            worker.kill()


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(2000):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1)
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the app's server did not start: {log.read_text()[-2000:]}")


def workers(root: Path) -> list[psutil.Process]:
    """Processes that compute runs under this root."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(root) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


@contextmanager
def chromium(executable: str) -> Iterator[Any]:
    """Playwright's Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        yield browser
        browser.close()


def new_page(browser: Any, *, size: dict[str, int] = LAPTOP, scheme: str = "light") -> tuple[Any, Seen]:
    """A visitor of their own: a page that shares nothing with others, and what it does wrong from now on.

    Nothing but this machine can be reached from it.
    """
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.add_init_script(CLOCK)
    page, seen = context.new_page(), Seen()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: seen.problems.append(f"page error: {error}"))
    page.on("console", lambda message: _note(message, seen))

    def refuse(route: Any) -> None:
        seen.away.append(route.request.url)
        route.abort()

    context.route(re.compile(r"^(?!(https?|wss?)://localhost[:/]|data:|blob:)"), refuse)
    return page, seen


@contextmanager
def visiting(browser: Any) -> Iterator[tuple[Any, Seen]]:
    """A new page, closed afterwards."""
    page, seen = new_page(browser)
    try:
        yield page, seen
    finally:
        page.context.close()


def _note(message: Any, seen: Seen) -> None:
    place = message.location.get("url", "")
    if message.type == "error" and not HARMLESS.search(place) and not HARMLESS.search(message.text):
        seen.problems.append(f"console: {message.text} ({place})")


def heading(page: Any, title: str) -> Any:
    """The page's title, once it is this one."""
    return page.get_by_role("heading", name=title, exact=True, level=1)


def idle(page: Any, *, quiet: int = 250, timeout: int = 20_000) -> None:
    """Until the page's script is through, all is drawn, and nothing changed for so many milliseconds."""
    page.wait_for_function(IDLE, arg=quiet, timeout=timeout, polling=50)


def act(page: Any, press: Callable[[], object]) -> Callable[[], float]:
    """Does what makes the page's script run. Returns what waits for its end: seconds until all was redrawn."""
    runs = page.evaluate("window.acted = performance.now(), window.runs")
    press()

    def seconds() -> float:
        # a fragment may be through before anything shows that it runs: then what it drew is all there is to wait for
        at_last = "performance.now() - window.acted > 3000 && window.lastChange > window.acted"
        ran = f"runs => window.runs > runs || ({at_last})"
        page.wait_for_function(ran, arg=runs, polling=50)
        idle(page, quiet=400)
        return page.evaluate("(window.lastChange - window.acted) / 1000")

    return seconds


def switch(page: Any, scheme: str) -> None:
    """To light or dark, until all is drawn in it."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(IN_SCHEME, arg=scheme)
    idle(page)


def place(file: str) -> str:
    """The path in the address of a page's file."""
    return "/" if file == PAGES[0][0] else f"/{Path(file).stem}"


def exceptions(page: Any) -> list[str]:
    return [element.inner_text() for element in page.query_selector_all('[data-testid="stException"]')]
