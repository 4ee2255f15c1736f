"""The whole way in a real browser: a finished result at once, a run of one's own, a reload in its middle, its
certificates, a cancelled run; on a machine without MNIST, and with nothing thrown anywhere."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

PROJECT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # milliseconds, for what a run has to compute; a machine may be busy
# Streamlit's front end asks for these beside each page's address before it asks at the right one.
HARMLESS = re.compile(r"/_stcore/(health|host-config)")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser_path() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no browser on this machine (looked for {', '.join(BROWSERS)})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def app(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The app as a server of its own, with no runs and no MNIST. Afterwards it and all that it started are gone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root, log = tmp_path / "runs", (tmp_path / "server.txt").open("w+")
    (tmp_path / "data").mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true",
         "--server.fileWatcherType=none"],
        cwd=PROJECT,
        env=os.environ | {"PACD_RUNS": str(root), "PACD_DATA": str(tmp_path / "data")},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_server(server, port, log.name)
        yield SimpleNamespace(address=f"http://localhost:{port}", runs_root=root)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        for worker in workers(root):
            worker.kill()
        log.close()


def wait_for_server(server: subprocess.Popen[bytes], port: int, log: str) -> None:
    for _ in range(150):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the app's server did not start: {Path(log).read_text()[-2000:]}")


def workers(root: Path) -> list[psutil.Process]:
    """Processes that compute runs under this root."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(root) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def test_from_the_first_screen_to_a_certificate_and_a_cancelled_run(app: SimpleNamespace, browser_path: str) -> None:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=QUIET)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(20_000)
        problems = watch(page)

        page.goto(f"{app.address}/poison?preset=smoke&seed=3")  # the server's first visitor comes by a link
        page.get_by_text("--set seed=3").wait_for()
        page.get_by_role("textbox", name="Open run, by id").wait_for()
        page.goto(f"{app.address}/certify?run=0123456789abcdef")
        page.get_by_text(re.compile("^No run .* has id 0123456789abcdef")).wait_for()
        no_exception(page)

        page.goto(app.address)
        heading(page, "Imperceptible poison, smaller certificates").wait_for()
        page.get_by_text("average certified radius (ACR) of").wait_for()
        page.locator(".js-plotly-plot .main-svg").nth(1).wait_for()
        page.get_by_text("MNIST is not on this machine").wait_for()
        no_exception(page)

        page.get_by_role("link", name="Poison", exact=True).click()
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
        page.get_by_role("heading", name=f"Run {identifier}").wait_for()
        page.get_by_text(re.compile("Queued|Running")).first.wait_for()
        assert len(list(app.runs_root.glob("*/config.json"))) == 1  # the reload started nothing
        page.get_by_text(f"Done: run {identifier}").wait_for(timeout=PATIENCE)
        no_exception(page)

        page.get_by_role("link", name="See what it did: Certify").click()
        heading(page, "Certify").wait_for()
        page.get_by_role("heading", name="Average certified radius").first.wait_for()
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert f"run={identifier}" in page.url
        no_exception(page)

        page.get_by_role("link", name="Poison", exact=True).click()
        page.get_by_text("Data, certification, seeds").click()
        set_seed(page, 2)
        page.get_by_role("button", name="Start poisoning").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled. What was finished is kept").wait_for(timeout=PATIENCE)
        no_exception(page)

        for name in ("Runs", "Inspect", "Start"):
            page.get_by_role("link", name=name, exact=True).click()
            page.locator("h1").first.wait_for()
            settle(page)
            no_exception(page)
        browser.close()
    assert not problems
    assert not [worker for worker in workers(app.runs_root) if "work" in worker.cmdline()]


def heading(page, name: str):
    return page.get_by_role("heading", name=name, exact=True, level=1)


def set_seed(page, seed: int) -> None:
    field = page.get_by_label(re.compile("^Seed"))
    field.fill(str(seed))
    field.press("Enter")
    page.get_by_text(re.compile(rf"--set seed={seed}\b")).wait_for()


def settle(page) -> None:
    """Until the page's script is through."""
    page.wait_for_function("() => !document.querySelector('[data-testid=\"stStatusWidget\"]')")
    page.wait_for_timeout(700)


def watch(page) -> list[str]:
    """What goes wrong in the browser from now on."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on(
        "console",
        lambda message: (
            problems.append(f"console: {message.text} ({message.location.get('url')})")
            if message.type == "error" and not HARMLESS.search(message.location.get("url", ""))
            else None
        ),
    )
    return problems


def no_exception(page) -> None:
    assert [element.inner_text() for element in page.query_selector_all('[data-testid="stException"]')] == []
