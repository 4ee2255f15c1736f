"""One computing thread, as the engine's own workers have; tiny configurations; one finished smoke run for all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from engine import jobs, worker
from engine.config import Config
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run
from engine.studies import process
from tests import browser

settings.register_profile("shared machine", deadline=None)  # other work may slow any example down
settings.load_profile("shared machine")
PROJECT = Path(__file__).parents[1]
# Those that begin late would leave all workers but one idle. Two of browsers do not begin side by side.
LONGEST = (
    *("accessibility", "votes", "pages", "app_in_browser", "style", "levels_of_networks", "lesson_in_browser"),
    *("jobs", "experiment", "lesson_page", "attacks", "poison_page"),
)
TINY = (
    *("data.train_size=200", "data.validation_size=200", "victim_seeds=1", "training.epochs=1"),
    *("attack.upper_steps=3", "attack.restart_every=3", "attack.warmup_steps=2", "attack.lower_steps=1"),
    *("attack.clean_batch=20", "attack.poison_batch=10", "attack.upper_batch=10", "attack.upper_noise=2"),
    *("certification.target_images=3", "certification.other_images=1", "certification.n0=10", "certification.n=20"),
)


def wait_for(condition: Callable[[], Any], *, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others in the order of their names."""
    rank = {f"test_{name}": position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """The smallest sensible configuration, with overrides "field=value"."""
    return lambda *overrides: with_overrides(PRESETS["smoke"].config, [*TINY, *overrides])


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """The same for the command line."""
    return ["--preset", "smoke", *(part for field in TINY for part in ("--set", field))]


@pytest.fixture(scope="session")
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m engine …` and returns what it printed and its exit code."""

    def command_line(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "engine", *map(str, arguments)],
            cwd=PROJECT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=200,
        )

    return command_line


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, command_line: Callable[..., Any]) -> SimpleNamespace:
    """The smoke preset, run once through the command line for the tests of all workers: root, run, report and what the
    process said. Read only."""
    base = tmp_path_factory.getbasetemp()  # under -n a worker's own, in that of all
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    root, said = folder / "runs", folder / "said.json"
    with FileLock(f"{folder}.lock"):
        if not said.exists():
            process = command_line("run", "--preset", "smoke", "--json", "--runs-root", root)
            assert process.returncode == 0, process.stderr
            said.write_text(json.dumps({"stdout": process.stdout, "stderr": process.stderr}))
    process = SimpleNamespace(**json.loads(said.read_text()))
    report = json.loads(process.stdout)
    return SimpleNamespace(root=root, run=Run(root / report["run_id"]), report=report, process=process)


@pytest.fixture(scope="session")
def prepare() -> Callable[[Config, Path], Run]:
    """A run as `submit` leaves it, but without its process."""

    def prepare(config: Config, root: Path) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jobs.subprocess, "Popen", lambda *_, **__: None)
            return jobs.submit(config, runs_root=root, data_root=root / "no data", preset="smoke")

    return prepare


@pytest.fixture(scope="session")
def work_here(prepare: Callable[[Config, Path], Run]) -> Callable[[Config, Path], Run]:
    """A run whose worker is this very process: quick, since torch is imported once."""

    def work_here(config: Config, root: Path) -> Run:
        run = prepare(config, root)
        before = signal.getsignal(signal.SIGTERM)
        try:
            worker.work(run.directory)
        finally:
            signal.signal(signal.SIGTERM, before)
        return run

    return work_here


@pytest.fixture(scope="session")
def baseline(
    tiny: Callable[..., Config], work_here: Callable[[Config, Path], Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished tiny run with two victims an arm, in a root of its own. Read only."""
    return work_here(tiny("victim_seeds=2"), tmp_path_factory.mktemp("baseline") / "runs")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Runs and studies work in this very process as soon as they are submitted; the commands that were started."""
    commands: list[str] = []

    def work_at_once(arguments: list[str], **_: Any) -> None:
        commands.append(arguments[3])
        (process if arguments[3] == "study-work" else worker).work(Path(arguments[4]))

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(Popen=work_at_once, DEVNULL=None, STDOUT=None))
    monkeypatch.setattr(worker, "environment", lambda device: {"device": device, "device_name": "a", "torch": "t"})
    monkeypatch.setattr(process, "POLL", 0)
    yield commands
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def busy() -> Iterator[None]:
    """Another process that keeps a core busy meanwhile."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def no_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, since what pages cache of the examples is kept by where data lie."""
    return tmp_path_factory.mktemp("no data")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_data: Path) -> Path:
    """An empty runs root and no MNIST. What pages cached in earlier tests stays: most of a test's time otherwise."""
    monkeypatch.setenv("PACD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PACD_DATA", str(no_data))
    return tmp_path / "runs"


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    """For tests that change what the pages' caches have no key for, such as where the gallery is."""
    import streamlit as st

    def clear() -> None:
        st.cache_data.clear()
        st.cache_resource.clear()

    clear()
    yield
    clear()


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Of Chromium or Chrome, else the test is skipped; under CI=true it fails."""
    pytest.importorskip("playwright")
    found = browser.installed()
    if found is None:
        reason = f"no browser on this machine (looked for {', '.join(browser.BROWSERS)})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def app(browser_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Server]:
    """The app's server, for all tests of a file; its runs root is empty at first."""
    with browser.serving(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def chromium(browser_path: str) -> Iterator[Any]:
    with browser.chromium(browser_path) as chromium:
        yield chromium


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations handed to `jobs.submit`; no process starts."""
    seen: list[Any] = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, **__: None)
    submit = jobs.submit
    monkeypatch.setattr(jobs, "submit", lambda config, **rest: (seen.append(config), submit(config, **rest))[1])
    return seen


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a folder of 8×8 colour images of three classes, 70 each, and some that are no data set."""
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("PACD_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for name in ("apple", "pear", "plum"):
        (tmp_path / "data" / "fruit" / name).mkdir(parents=True)
        for k in range(70):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "data" / "fruit" / name / f"{k:02}.png")
    (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "broken" / "one").mkdir(parents=True)
    (tmp_path / "data" / "broken" / "two").mkdir(parents=True)
    return tmp_path / "data" / "fruit"
