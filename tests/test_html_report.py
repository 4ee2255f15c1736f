"""A run's HTML report: offline, escaped, with the numbers of report.json."""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import datasets, html_report, records
from engine.records import Run, RunNotFound
from engine.report import sentences
from tests.app import own_copy
from tests.browser import QUIET
from tests.commanding import main

NASTY = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, attributes and text of a page, its scripts and styles left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def written(smoke: SimpleNamespace) -> str:
    return html_report.write(smoke.run, data_root=datasets.default_root())


@pytest.fixture
def noted(tmp_path: Path) -> Run:
    """The example with a name and a note that would take over a careless page."""
    run = own_copy(tmp_path / "runs")
    run.write_json("notes.json", {"name": NASTY, "starred": True, "note": NASTY})
    return run


def test_it_has_the_numbers_of_the_report_with_their_spreads(smoke: SimpleNamespace, written: str) -> None:
    page = Page(written)
    for arm, values in smoke.report["arms"].items():
        for scope in ("target", "all"):
            assert sentences.with_spread(values["average_certified_radius"][scope]) in page.words
        if arm != "clean":
            assert sentences.percent(smoke.report["relative_drop"][arm]) in page.words
    for part in (
        "Threat model",
        "Clean-label",
        "python -m engine run --preset smoke",
        "Defenses to Data Poisoning?",
        "Not the paper's",
    ):
        assert part in page.words
    assert smoke.run.environment["torch"] in page.words


def test_every_picture_and_figure_has_its_words_and_nothing_comes_from_elsewhere(
    smoke: SimpleNamespace, written: str
) -> None:
    page = Page(written)
    pictures = page.all("img")
    assert len(pictures) == 3
    assert all(str(each["src"]).startswith("data:image/png;base64,") and each["alt"] for each in pictures)
    drawings = [each for each in page.all("div") if each.get("role") == "img"]
    assert len(drawings) == len(html_report.figures_of(smoke.run)) == len(html_report.CAPTIONS)
    assert all(each["aria-label"] for each in drawings)
    assert not [
        each for tag, each in page.tags if tag in ("link", "iframe") or str(each.get("src", "data:"))[:5] != "data:"
    ]


def test_what_somebody_typed_stays_text(noted: Run) -> None:
    page = Page(html_report.write(noted, data_root=datasets.default_root()))
    assert page.words.count(NASTY) == 3  # title, heading, note
    assert not [each for tag, each in page.tags if "onerror" in each]


def test_class_names_of_a_folder_stay_text(noted: Run) -> None:
    report = noted.report or {}
    name = 'cat" onerror="a & b'  # as sharp as a folder's name may be
    noted.write_json("report.json", report | {"target_name": name, "class_names": [name, *"123456789"]})
    text = html_report.write(noted, data_root=datasets.default_root())
    assert name not in text
    assert not [each for tag, each in Page(text).tags if "onerror" in each]


def test_without_the_images_only_the_changes_are_shown(smoke: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise datasets.DatasetUnavailable("not here")

    monkeypatch.setattr(datasets, "read_training_images", missing)
    page = Page(html_report.write(smoke.run, data_root=Path("nowhere")))
    assert len(page.all("img")) == 1
    assert "are not on the machine that wrote this report" in page.words


def test_a_partial_run_says_so_and_one_without_a_report_is_refused(tmp_path: Path) -> None:
    run = own_copy(tmp_path / "runs", state="cancelled")
    assert "Partial result: this run is cancelled" in html_report.write(run, data_root=tmp_path)
    (run.directory / "report.json").unlink()
    with pytest.raises(RunNotFound, match="no report yet: it is cancelled"):
        html_report.write(run, data_root=tmp_path)


def test_runs_without_attack_have_a_report_too(tmp_path: Path) -> None:
    for run in records.all_runs(records.GALLERY):
        copy = Run(Path(shutil.copytree(run.directory, tmp_path / run.id)))
        assert sentences.limits_line(copy) in Page(html_report.write(copy, data_root=tmp_path)).words


def test_the_command_line_writes_it(
    smoke: SimpleNamespace, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, file = ("report", smoke.run.id, "--runs-root", smoke.root, "--html"), tmp_path / "report.html"
    assert main(capsys, *typed, file) == (0, f"{file}\n", "")
    assert file.read_text() == written
    code, _, refused = main(capsys, *typed, tmp_path / "no folder" / "x")
    assert code == 2
    assert len(refused.strip().splitlines()) == 1


@pytest.mark.browser
def test_it_opens_without_a_network(noted: Run, tmp_path: Path, browser_path: str) -> None:
    api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "report.html").write_text(html_report.write(noted, data_root=tmp_path))
    asked, problems = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=QUIET)
        page = browser.new_context(offline=True, color_scheme="dark").new_page()
        page.on("request", lambda request: asked.append(request.url[:60]))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        page.locator(".js-plotly-plot .main-svg").nth(5).wait_for()
        assert page.title().startswith("<script>")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert not problems
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
