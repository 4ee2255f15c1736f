"""Studies and reproductions by the command line: their tables, plans and records."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import records
from engine.records import Run
from engine.studies import exhibits
from tests.commanding import main


@pytest.fixture
def small_study(tiny_arguments: list[str], runs_root: Path) -> list[str]:
    """Two by two, of the embedded digits."""
    axes = ["--rows", "attack.sigma=0.1,0.25", "--columns", "sigma=0.1,0.25", "--runs-root", str(runs_root)]
    return ["study", "transfer-sigma", *tiny_arguments, *axes]


def test_a_study_prints_its_table_resumes_at_once_and_is_listed_and_deleted(
    small_study: list[str],
    runs_root: Path,
    in_this_process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, text, error = main(capsys, *small_study, "--csv")
    assert code == 0, error
    assert in_this_process == ["study-work", *["work"] * 4]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["row"], row["column"]) for row in rows] == [(a, b) for a in ("0.1", "0.25") for b in ("0.1", "0.25")]
    assert all(row["complete"] == "True" and row["state"] == "done" for row in rows)
    for row in rows:
        report = Run(runs_root / row["run"]).report
        assert report is not None
        assert list(report["arms"]) == ["clean", "poisoned", "random_noise"]
        drop = report["relative_drop"]["poisoned"]["mean"]
        assert row["drop_mean"] == ("" if drop is None else str(drop))
    assert [row["attack_seconds"] == "" for row in rows] == [False, True, False, True]  # poison is reused along a row

    started = len(in_this_process)
    code, text, _ = main(capsys, *small_study, "--json")
    assert code == 0
    assert len(in_this_process) == started  # nothing was left to compute
    found = json.loads(text)
    assert [cell["run"] for cell in found["cells"]] == [row["run"] for row in rows]
    code, text, _ = main(capsys, "studies", "--runs-root", runs_root)
    first, _, *shipped = text.splitlines()
    assert first.split() == [found["id"], "done", "transfer-sigma", "smoke", "4/4"]
    assert shipped[0].endswith("  Transfer between training procedures")
    code, text, _ = main(capsys, "studies", found["id"][:5], "--runs-root", runs_root)
    assert f"study `{found['id']}`" in text
    monkeypatch.setattr(exhibits, "exhibited", lambda: [found | {"preset": "another machine's"}])
    code, text, _ = main(capsys, "studies", found["id"], "--runs-root", runs_root)
    assert "another machine" not in text  # one's own comes first
    assert main(capsys, "studies", "--delete", found["id"], "--runs-root", runs_root)[0] == 0
    assert main(capsys, "studies", "--json", "--runs-root", runs_root)[1].strip() == "[]"
    assert len(list(records.all_runs(runs_root))) == 4


def test_a_dry_run_of_a_study_lists_its_cells_and_creates_nothing(
    small_study: list[str], runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = main(capsys, *small_study, "--dry-run")
    plan = json.loads(text)
    assert code == 0
    assert [cell["cell"] for cell in plan["cells"]] == ["0.1 → 0.1", "0.1 → 0.25", "0.25 → 0.1", "0.25 → 0.25"]
    assert plan["estimate"]["seconds"] > 4
    assert not runs_root.exists()


def test_reproduce_plans_the_whole_table_or_any_part(runs_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cells(*arguments: str) -> list[str]:
        code, text, _ = main(capsys, "reproduce", *arguments, "--dry-run", "--runs-root", runs_root)
        assert code == 0
        return [cell["cell"] for cell in json.loads(text)["cells"]]

    assert len(cells()) == 3 * (3 + 2)
    part = cells("--procedures", "macer", "--datasets", "mnist", "--sigmas", "0.5", "--seeds", "2", "--scale", "small")
    assert part == ["macer, mnist, σ = 0.5 × seed 0", "macer, mnist, σ = 0.5 × seed 1"]
    assert not runs_root.exists()


def test_reproduce_writes_its_table_as_markdown_and_csv(
    runs_root: Path,
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
    tiny_arguments: list[str],
) -> None:
    done = command_line(
        *("reproduce", "--procedures", "ga", "--datasets", "digits", "--sigmas", "0.25", "--scale", "small"),
        *(*tiny_arguments[2:], "--runs-root", runs_root, "--output", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "| gaussian | digits | 0.25 | 0 |" in done.stdout
    assert "cell 1 of 1: ga, digits, σ = 0.25 × seed 0, about " in done.stderr
    assert "takes more than 30 % of the target class's ACR" in done.stdout
    markdown, table = sorted((tmp_path / "out").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert markdown.read_text() == done.stdout
    assert len(list(csv.DictReader(table.open()))) == 1
