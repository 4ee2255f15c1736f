"""The command line, run as anyone runs it: reports, exit codes, one line for every kind of bad input."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from engine import follow, jobs
from engine.choices import ARMS, CONTROLS
from engine.presets import PRESETS
from engine.records import Run
from tests.app import EXAMPLE, PROJECT
from tests.commanding import main

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def is_summary(value: dict[str, Any], seeds: int) -> bool:
    return set(value) == {"mean", "sd", "seeds"} and len(value["seeds"]) == seeds


def test_a_whole_experiment_prints_one_report_and_nothing_else(smoke: SimpleNamespace) -> None:
    report, config = smoke.report, smoke.run.config
    assert set(report) >= {
        *("run_id", "preset", "dataset", "config", "seconds", "arms", "relative_drop"),
        *("perturbation", "perturbation_controls", "complete", "reused", "radius_cap"),
    }
    assert report["run_id"] == smoke.run.id
    assert (report["preset"], report["dataset"]) == ("smoke", "digits")
    assert report["config"] == config.model_dump(mode="json")
    assert set(report["seconds"]) == {"poison", "train", "certify", "total"}
    assert all(seconds > 0 for seconds in report["seconds"].values())
    assert list(report["arms"]) == list(ARMS)
    for arm in report["arms"].values():
        for name in ("average_certified_radius", "accuracy"):
            assert set(arm[name]) == {"target", "all"}
            assert all(is_summary(value, config.victim_seeds) for value in arm[name].values())
    assert set(report["relative_drop"]) == {"poisoned", *CONTROLS}
    assert all(is_summary(value, config.victim_seeds) for value in report["relative_drop"].values())
    measures = {"linf_max", "l2_mean", "psnr_mean", "ssim_mean", "changed_share"}
    assert set(report["perturbation"]) == measures
    assert all(set(report["perturbation_controls"][arm]) == measures for arm in CONTROLS)
    assert report == smoke.run.report
    assert report["reused"] == []


def test_progress_with_the_time_left_goes_to_standard_error_a_few_lines_only(smoke: SimpleNamespace) -> None:
    lines = smoke.process.stderr.splitlines()
    assert any("%" in line and " s left" in line for line in lines)
    assert "\r" not in smoke.process.stderr
    seconds = smoke.run.status().ended - smoke.run.status().submitted
    assert len(lines) <= 5 + seconds / follow.PROGRESS_EVERY


def test_a_finished_run_says_so(smoke: SimpleNamespace) -> None:
    status = smoke.run.status()
    assert (status.state, status.fraction, status.eta_seconds, status.error) == ("done", 1.0, 0.0, None)
    assert status.submitted <= status.started <= status.ended


def test_asking_again_returns_the_same_report_at_once(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = smoke.run.status()
    code, output, _ = main(capsys, "run", "--preset", "smoke", "--json", "--runs-root", smoke.root)
    assert code == 0
    assert output == smoke.process.stdout
    assert smoke.run.status() == before


def test_a_dry_run_prints_configuration_and_estimate_and_creates_nothing(
    runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("run", "--preset", "quick", "--set", "sigma=0.25", "--dry-run", "--runs-root", runs_root)
    code, output, _ = main(capsys, *typed)
    assert code == 0
    plan = json.loads(output)
    assert plan["config"]["sigma"] == 0.25
    assert plan["config"] | {"sigma": 0.5} == PRESETS["quick"].config.model_dump(mode="json")
    assert plan["estimate"]["seconds"] > 10
    assert plan["estimate"]["memory_bytes"] > 1e8
    assert not runs_root.exists()


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = main(capsys, "presets")
    assert code == 0
    assert all(name in text and preset.sentence in text for name, preset in PRESETS.items())
    code, text, _ = main(capsys, "presets", "--json")
    assert json.loads(text) == {name: preset.config.model_dump(mode="json") for name, preset in PRESETS.items()}


def test_runs_are_listed(smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = main(capsys, "runs", "--runs-root", smoke.root)
    assert code == 0
    assert smoke.run.id in text
    assert "done" in text
    code, text, _ = main(capsys, "runs", "--json", "--runs-root", smoke.root)
    (row,) = json.loads(text)
    assert row["id"] == smoke.run.id
    assert row["drop_poisoned"] == smoke.report["relative_drop"]["poisoned"]["mean"]


def test_a_report_is_printed_again_by_the_first_digits_of_its_id(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = main(capsys, "report", smoke.run.id[:6], "--json", "--runs-root", smoke.root)
    assert code == 0
    assert json.loads(text) == smoke.report
    code, text, _ = main(capsys, "report", smoke.run.id, "--runs-root", smoke.root)
    assert code == 0
    assert all(arm in text for arm in ARMS)
    assert f"{smoke.report['arms']['clean']['average_certified_radius']['target']['mean']:.3f}" in text


BAD_INPUT = [
    pytest.param(["run", "--preset", "nonsense"], "preset must be one of smoke", id="unknown preset"),
    pytest.param(["run", "--set", "nonsense=1"], "there is no field 'nonsense'", id="unknown field"),
    pytest.param(["run", "--set", "threat.nonsense=1"], "there is no field 'threat.nonsense'", id="unknown nested"),
    pytest.param(["run", "--set", "threat=1"], "there is no field 'threat'", id="a group of fields"),
    pytest.param(["run", "--set", "threat.epsilon=1.5"], "threat.epsilon", id="out of range"),
    pytest.param(["run", "--set", "certification.n=3"], "certification.n must be at least 10", id="too few draws"),
    pytest.param(["run", "--set", "data.train_size=59000"], "must be at most 60000", id="more images than there are"),
    pytest.param(["run", "--set", "sigma=nan"], "sigma", id="nan in lower case"),
    pytest.param(["run", "--set", "sigma=NaN"], "sigma", id="nan as JSON has it"),
    pytest.param(["run", "--set", "sigma=Infinity"], "sigma", id="infinity"),
    pytest.param(["run", "--set", "victim_seeds=three"], "victim_seeds", id="text for a number"),
    pytest.param(["run", "--set", "victim_seeds=1.5"], "victim_seeds", id="half a victim"),
    pytest.param(["run", "--set", "sigma"], "field=value", id="no equals sign"),
    pytest.param(["run", "--set", "sigma="], "sigma", id="no value"),
    pytest.param(["run", "--set", "sigma=[1,\n2]"], "sigma", id="several lines"),
    pytest.param(["report", "0123456789abcdef"], "no run under", id="unknown run"),
    pytest.param(["report", "../../etc/passwd"], "hexadecimal", id="no run id"),
    pytest.param(["runs", "--cancel", "0123456789abcdef"], "no run under", id="cancel an unknown run"),
    pytest.param(["runs", "--delete", "0123456789abcdef"], "no run under", id="delete an unknown run"),
    pytest.param(["study", "nonsense"], "a kind of study is one of", id="unknown kind"),
    pytest.param(["study", "sweep", "--preset", "nonsense"], "preset must be one of", id="unknown preset of a study"),
    pytest.param(["study", "sweep", "--rows", "sigma=0.5"], "both set sigma", id="one field on both axes"),
    pytest.param(["study", "sweep", "--rows", "seed=1,1"], "points of an axis must differ", id="a point twice"),
    pytest.param(["study", "sweep", "--set", "sigma=9"], "sigma", id="a base that cannot be run"),
    pytest.param(["studies", "0123456789abcdef"], "no study under", id="unknown study"),
    pytest.param(["studies", "--delete", "../.."], "hexadecimal", id="no study id"),
    pytest.param(["runs", "--delete", ""], "hexadecimal", id="an empty run id"),
    pytest.param(["studies", "--cancel", ""], "hexadecimal", id="an empty study id"),
    pytest.param(["studies", "--minus", "pacd"], "--minus needs the ID", id="less a row of no study"),
    pytest.param(["reproduce", "--procedures", "nonsense"], "a procedure of the paper", id="unknown procedure"),
    pytest.param(["reproduce", "--datasets", "imagenet"], "a data set of the paper", id="unknown data set"),
    pytest.param(["reproduce", "--sigmas", "half"], "half", id="a sigma in words"),
    pytest.param(["reproduce", "--sigmas", "9"], "sigma", id="a sigma out of range"),
    pytest.param(["reproduce", "--seeds", "0"], "--seeds", id="no seed"),
    pytest.param(["reproduce", "--scale", "huge"], "--scale is full or small", id="unknown scale"),
    pytest.param(["reproduce", "--procedures", ""], "nothing to reproduce", id="nothing at all"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT)
def test_bad_input_is_told_in_one_line_and_creates_nothing(
    arguments: list[str], words: str, runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = main(capsys, *arguments, "--runs-root", runs_root)
    assert code == 2
    assert output == ""
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not runs_root.exists()


WRITING = [["run", "--preset", "smoke"], ["study", "sweep", "--dry-run"]]
NOT_WRITABLE = "/proc/x"  # not even by root


@pytest.mark.parametrize(
    ("command", "root"),
    [(command, root) for command in (*WRITING, ["runs"]) for root in ("file", "file/runs")]
    + [(command, NOT_WRITABLE) for command in WRITING if sys.platform == "linux"],
)
def test_runs_are_kept_in_a_folder(
    command: list[str], root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, output, error = main(capsys, *command, "--runs-root", tmp_path / root)
    assert (code, output) == (2, "")
    assert error == f"error: runs are kept in a folder that is there or can be made, got {tmp_path / root}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bad_input_ends_the_process_with_exit_code_2(runs_root: Path, command_line: CommandLine) -> None:
    done = command_line("run", "--set", "threat.epsilon=2", "--runs-root", runs_root)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not runs_root.exists()


def test_missing_data_without_a_network_is_told_in_one_line_with_what_to_do(
    runs_root: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    nowhere = "http://127.0.0.1:9"  # a proxy that refuses every connection
    done = command_line(
        *("run", "--preset", "quick", "--json", "--data-root", tmp_path / "data", "--runs-root", runs_root),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "--data-root" in done.stderr
    assert "embedded digits" in done.stderr
    assert not runs_root.exists()
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_a_run_that_fails_ends_with_exit_code_1_and_its_directory_says_why(
    runs_root: Path, command_line: CommandLine, tiny_arguments: list[str]
) -> None:
    done = command_line(
        "run", *tiny_arguments, "--set", "training.learning_rate=1e30", "--json", "--runs-root", runs_root
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "the training loss became nan" in done.stderr.splitlines()[-1]
    (directory,) = (path for path in runs_root.iterdir() if len(path.name) == 16)
    assert str(directory) in done.stderr
    run = Run(directory)
    assert run.status().state == "failed"
    assert "the training loss became nan" in str(run.status().error)
    assert "Traceback" in run.log_tail()


def test_a_report_is_told_as_if_fewer_draws_had_been_made(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same victims and images; never more draws than there are."""
    arguments = ("report", smoke.run.id, "--runs-root", smoke.root, "--n")
    fewer = json.loads(main(capsys, *arguments, "50", "--json")[1])
    assert fewer["config"]["certification"]["n"] == 50
    assert fewer["radius_cap"] < smoke.report["radius_cap"]
    for arm, values in fewer["arms"].items():
        whole = smoke.report["arms"][arm]
        for before, after in zip(
            *(each["average_certified_radius"]["target"]["seeds"] for each in (whole, values)), strict=True
        ):
            assert 0 < after < before
    assert {name: fewer[name] for name in ("run_id", "seconds", "perturbation")} == {
        name: smoke.report[name] for name in ("run_id", "seconds", "perturbation")
    }
    assert json.loads(main(capsys, *arguments, "100", "--json")[1])["arms"] == smoke.report["arms"]
    for form in ([], ["--html", str(smoke.root / "none.html")], ["--cite"]):
        assert main(capsys, *arguments, "0", *form)[0] == 2
    assert main(capsys, *arguments, "101") == (2, "", "error: n must be in [1, 100], the draws recorded, got 101\n")


def test_certificates_are_printed_with_their_votes(smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("report", smoke.run.id, "--runs-root", smoke.root, "--csv")
    code, text, _ = main(capsys, *arguments)
    assert code == 0
    rows, kept = list(csv.DictReader(io.StringIO(text))), smoke.run.certificates()
    assert [(row["arm"], int(row["image"]), float(row["radius"])) for row in rows] == list(
        zip(kept["arm"], kept["image"], kept["radius"], strict=True)
    )
    assert [list(map(int, row["estimation_votes"].split())) for row in rows] == list(
        map(list, kept["estimation_votes"])
    )
    averages = pd.DataFrame(rows).astype({"correct_radius": float}).query("label == '8'").groupby("arm")
    for arm, radii in averages["correct_radius"]:
        assert radii.mean() == pytest.approx(smoke.report["arms"][arm]["average_certified_radius"]["target"]["mean"])
    config, known = smoke.run.config, ("run", "seed", "sigma", "alpha")
    expected = (smoke.run.id, *map(str, (config.seed, config.sigma, config.certification.alpha)))
    assert {tuple(row[name] for name in known) for row in rows} == {expected}
    code, text, _ = main(capsys, *arguments, "--n", "50")
    fewer = next(csv.DictReader(io.StringIO(text)))
    assert fewer["n"] == "50"
    assert "estimation_votes" not in fewer  # those are of all draws


def test_a_run_without_a_report_yet_says_in_which_state_it_is(
    tiny: Callable[..., Any], prepare: Callable[..., Run], runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(tiny(), runs_root)
    code, _, error = main(capsys, "report", run.id, "--runs-root", runs_root)
    assert code == 2
    assert "has no report yet: it is queued" in error
    code, text, error = main(capsys, "runs", "--exhibit", run.id, "--runs-root", runs_root)
    assert (code, text) == (2, "")
    assert f"run {run.id} is queued, and only finished ones can be copied" in error


def test_live_progress_takes_one_line_of_the_terminal(
    smoke: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = smoke.run.status()
    states = iter([replace(running, state="running", detail="x" * 200), running])
    monkeypatch.setattr(follow.jobs, "awaited", lambda _run: next(states))
    monkeypatch.setattr(follow.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(follow.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    follow.follow(smoke.run)
    _, *lines = capsys.readouterr().err.rstrip("\n").split("\r")
    assert [len(line) for line in lines] == [39]


def test_runs_are_cancelled_and_deleted_by_id(
    tiny: Callable[..., Any],
    prepare: Callable[..., Run],
    runs_root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "GRACE", 0.1)
    run = prepare(tiny(), runs_root)
    assert main(capsys, "runs", "--cancel", run.id, "--runs-root", runs_root)[0] == 0
    assert run.status().state == "cancelled"
    assert main(capsys, "runs", "--cancel", run.id, "--runs-root", runs_root)[:2] == (
        0,
        f"run {run.id} is cancelled: nothing to cancel\n",
    )
    assert main(capsys, "runs", "--delete", run.id, "--runs-root", runs_root)[0] == 0
    assert not run.directory.exists()


def test_damaged_runs_are_listed_too(
    tiny: Callable[..., Any], prepare: Callable[..., Run], runs_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(tiny(), runs_root)
    (run.directory / "config.json").write_text("{")
    code, output, _ = main(capsys, "runs", "--runs-root", runs_root)
    assert code == 0
    assert run.id in output


def test_the_command_line_answers_without_loading_what_only_workers_need() -> None:
    code = (
        "import sys, engine.__main__; print(*({'torch', 'pandas', 'scipy', 'sklearn', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_letters_that_the_terminal_has_not_are_escaped() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "engine", "report", EXAMPLE]
    found = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, check=True)
    assert rb"\u03c3" in found.stdout or rb"\u221e" in found.stdout
