"""The Python API: README's example as it stands, the same ids and bytes as the command line, refusals by name."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import engine.api as pacd
from engine import html_report, jobs, records
from engine.config import Config, ConfigError
from engine.models import build
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, RunNotFound
from engine.streams import stream
from tests.app import EXAMPLE, PROJECT, own_copy


@pytest.fixture
def example(smoke: SimpleNamespace) -> pacd.Result:
    return pacd.open(smoke.run.id[:6], runs_root=smoke.root)


def test_the_readmes_example_runs_as_it_stands(
    tiny: Callable[..., Config], in_this_process: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (block,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    small = tiny("certification.n=40")
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(PRESETS["smoke"], config=small))
    monkeypatch.setenv("PACD_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)  # our own text
    run = names["run"]
    assert in_this_process == ["work"]
    assert run.config == with_overrides(small, ["threat.epsilon=0.2", "threat.target_class=3"])
    assert run.id == records.run_id(run.config)
    assert (tmp_path / "report.html").read_text() == html_report.write(run.run, data_root=tmp_path)
    again = pacd.run("smoke", **{"threat.epsilon": 0.2}, target_class=3)
    assert again == run
    assert in_this_process == ["work"]  # found again
    assert capsys.readouterr().out == ""


def test_a_result_has_the_reports_numbers(example: pacd.Result, smoke: SimpleNamespace) -> None:
    report = smoke.report
    assert example.report == report
    assert example.acr("clean") == report["arms"]["clean"]["average_certified_radius"]["target"]["mean"]
    assert example.acr("clean", "all") == report["arms"]["clean"]["average_certified_radius"]["all"]["mean"]
    assert example.drop == report["relative_drop"]["poisoned"]["mean"]
    assert example.command == "python -m engine run --preset smoke"
    assert len(example.certificates) == len(smoke.run.certificates())
    assert set(example.poison or {}) == {"delta", "indices"}
    assert f"{report['arms']['clean']['average_certified_radius']['target']['mean']:.3f}" in example._repr_html_()
    assert example.id in repr(example)


def test_every_figure_is_a_method(example: pacd.Result) -> None:
    assert dir(example.figures) == sorted(html_report.CAPTIONS)
    for name in dir(example.figures):
        assert getattr(example.figures, name)().layout.meta["alt"]
    with pytest.raises(AttributeError, match="the figures are acr_by_arm"):
        _ = example.figures.nonsense


def test_a_victim_gives_the_certificates_of_a_smoothed_classifier(example: pacd.Result) -> None:
    x, _ = pacd.images("digits", train=False)
    model = example.victim("clean", 0)
    found = pacd.certify(model, x[:4], sigma=0.25, n0=20, n=100)
    assert list(found.columns) == ["prediction", "radius", "selected_class", "n_top", "n", "p_lower"]
    assert found.equals(pacd.certify(model, x[:4], sigma=0.25, n0=20, n=100))
    assert ((found["prediction"] == -1) == (found["radius"] == 0)).all()
    assert ((found["p_lower"] > 0.5) == (found["radius"] > 0)).all()
    for bad in (x[0], x[:0], x[:2] + 1, np.full_like(x[:1], np.nan)):
        with pytest.raises(ValueError, match="images must be"):
            pacd.certify(model, bad, sigma=0.25)


@pytest.mark.parametrize(
    ("answers", "numbers", "said"),
    [
        (lambda x: torch.full((len(x), 10), torch.nan), {}, "not finite"),
        (lambda x: torch.full((len(x), 10), torch.inf), {}, "not finite"),
        (lambda x: (x, x), {}, "must answer 1 images by logits"),
        (lambda x: x.flatten(1), {"sigma": float("inf")}, "sigma must be above 0 and finite"),
        (lambda x: x.flatten(1), {"n": 100.5}, "n must be a whole number"),
        (lambda x: x.flatten(1), {"n": 10**12}, "n must be at most 1000000"),
        (lambda x: x.flatten(1), {"n0": 1.5}, "n0 must be a whole number"),
    ],
)
def test_no_certificate_for_what_is_no_classifier(
    answers: Callable[[Any], Any], numbers: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        pacd.certify(answers, np.zeros((2, 1, 4, 4), np.float32), **{"sigma": 0.25, "n": 100} | numbers)


def test_nan_that_only_noise_brings_out_is_no_vote() -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2].sqrt()  # of black, 0; of a negative pixel, NaN

    network = build("mlp", shape=(1, 8, 8), generator=stream(0, "model")).eval()
    for layer in (network.fc1, network.fc2):
        layer.weight.data.mul_(1e38)  # finite at black, not beside it
    for model in (breaks, network):
        with pytest.raises(ValueError, match="not finite"):
            pacd.certify(model, np.zeros((1, 1, 8, 8), np.float32), sigma=0.25, n=100)


@pytest.mark.parametrize(
    "model", [torch.nn.Conv2d(3, 2, 4), torch.nn.Linear(4, 2).double(), torch.nn.Linear(16, 2)], ids=str
)
def test_a_model_of_other_images_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must take float32 images \[N, 1, 4, 4\] on the CPU"):
        pacd.certify(model.eval(), np.zeros((2, 1, 4, 4), np.float32), sigma=0.25, n=100)


@pytest.mark.parametrize("path", ["nowhere/report.html", "."])
def test_a_report_goes_to_a_file_in_a_folder_that_is_there(path: str, example: pacd.Result, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an HTML report is a file in an existing folder"):
        example.to_html(tmp_path / path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilonn": 0.1}, "'epsilonn' is none of"),
        ({"epsilon": 9}, "threat.epsilon"),
        ({"draws": 2}, "is one of procedure.draws, attack.procedure.draws: say which"),
        ({"attack": "evil"}, "attack.name"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        pacd.run("smoke", **settings)


def test_short_names_stand_for_fields(
    submitted: list[Config], monkeypatch: pytest.MonkeyPatch, runs_root: Path
) -> None:
    monkeypatch.setattr(pacd, "_wait", lambda *_, **__: None)
    pacd.run("smoke", runs_root=runs_root, attack="universal", sigma=0.3, n=150, procedure="macer", controls=[])
    typed = ["attack.name=universal", "sigma=0.3", "certification.n=150", "procedure=macer", "controls=[]"]
    assert submitted == [with_overrides(PRESETS["smoke"].config, typed)]
    pacd.run("smoke", runs_root=runs_root, epsilon=np.float32(0.15), sigma=np.float16(0.3), seed=np.int64(7))
    typed = ["threat.epsilon=0.15", "sigma=0.3", "seed=7"]
    assert submitted[1:] == [with_overrides(PRESETS["smoke"].config, typed)]
    with pytest.raises(ConfigError, match="preset must be one of"):
        pacd.run("fast")


def test_a_run_that_fails_says_why(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, prepare: Callable[..., Run], runs_root: Path
) -> None:
    run = prepare(tiny(), runs_root)
    run.write_json("status.json", (run.read_json("status.json") or {}) | {"state": "failed", "error": "disk full"})
    monkeypatch.setattr(jobs, "submit", lambda *_, **__: run)
    with pytest.raises(pacd.RunFailed, match=f"run {run.id} failed: disk full"):
        pacd.run("smoke", runs_root=runs_root)
    with pytest.raises(RunNotFound, match="no report yet: it is failed"):
        _ = pacd.open(run.id, runs_root=runs_root).report


def test_runs_are_listed_and_examples_open(tmp_path: Path) -> None:
    assert pacd.runs(runs_root=tmp_path).query("state == 'done'").empty
    run = own_copy(tmp_path)
    assert pacd.runs(runs_root=str(tmp_path))["id"].tolist() == [run.id]
    assert pacd.open(EXAMPLE, runs_root=str(tmp_path / "none")).drop is not None


@pytest.mark.parametrize("name", ["foo", "folder:../x", "folder:ünïcode ☃"])
def test_what_is_no_data_set_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset must be .* NAME has only letters"):
        pacd.images(name, train=True, data_root=str(tmp_path))


@pytest.mark.parametrize(
    "ask",
    [
        lambda root: pacd.run("smoke", runs_root=root),
        lambda root: pacd.open("73b3", runs_root=root),
        lambda root: pacd.runs(runs_root=root),
    ],
)
def test_runs_are_kept_in_a_folder(ask: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=re.escape(f"can be made, got {tmp_path / 'file'}")):
        ask(tmp_path / "file")
