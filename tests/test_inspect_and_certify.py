"""Inspect and Certify show whole runs, and survive partial, damaged and empty ones."""

import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from engine import records
from engine.records import GALLERY, Run
from engine.status import Status
from tests.app import EXAMPLE, PROJECT, opened, own_copy, words

RUN = Run(GALLERY / EXAMPLE)
VIEWS = ["Image by image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return RUN.need_certificates()


def page(name: str, run: Run, **state: object) -> AppTest:
    app = AppTest.from_file(str(PROJECT / "pages" / f"{name}.py"), default_timeout=30)
    app.query_params["run"] = run.id
    for key, value in state.items():
        app.session_state[key] = value
    return app.run()


def told(app: AppTest) -> str:
    return " ".join(element.value for element in [*app.info, *app.warning, *app.caption, *app.markdown])


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Run:
    """A run of its own that a test may damage; the gallery is out of sight."""
    monkeypatch.setenv("PACD_RUNS", str(tmp_path))
    monkeypatch.setattr(records, "GALLERY", tmp_path / "none")
    return Run(Path(shutil.copytree(RUN.directory, tmp_path / RUN.id)))


@pytest.mark.parametrize("view", VIEWS)
def test_inspect_shows_each_view_of_a_published_run(view):
    app = page("inspect", RUN, view=view)
    assert not app.exception
    assert not app.warning
    assert "pixel units" in told(app)


def test_inspect_reacts_to_its_widgets():
    app = page("inspect", RUN)
    app.number_input(key="poison_image").set_value(7).run()
    assert "Poison image 7 is training image" in told(app)
    app.button_group(key="magnify").set_value("×1").run()
    assert "not magnified" in told(app)
    app.slider(key="wipe").set_value(28).run()
    assert not app.exception


def test_certify_shows_a_published_run_and_recertifies():
    app = page("certify", RUN)
    assert not app.exception
    assert len(app.metric) == 3
    titles = {title.value.lower().replace(" ", "-") for title in [*app.header, *app.subheader]}
    assert set(re.findall(r"\(#([a-z-]+)\)", told(app))) == titles
    assert "What if" not in told(app)
    before = [metric.value for metric in app.metric]
    app.select_slider(key="what_if_n").set_value(50).run()
    assert not app.exception
    n = RUN.config.certification.n
    assert f"**What if n = 50, α = 0.001** (recorded: n = {n}, α = 0.001): After poisoning" in told(app)
    assert f"recorded with n = {n} draws" in told(app)
    assert {metric.delta for metric in app.metric} == {"what if n = 50, α = 0.001"}
    app.select_slider(key="what_if_n").set_value(5).run()
    assert "too small" in told(app)
    assert not app.exception
    (back,) = (button for button in app.button if button.label == "Back to recorded")
    back.click().run()
    assert [(metric.value, metric.delta) for metric in app.metric] == [(value, "") for value in before]
    assert "recorded with" not in told(app)


def test_certify_says_where_curves_of_training_are_missing(copied):
    assert "may be missing" not in told(page("certify", copied))
    path = copied.directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"clean-' not in line))
    assert "Victims that were taken from an earlier run may be missing" in told(page("certify", copied))
    path.unlink()
    assert "which kept no curves" in told(page("certify", copied))


def test_certify_names_the_numbers_of_the_chosen_image(table):
    image = int(table.loc[table["label"] == RUN.config.threat.target_class, "image"].iloc[2])
    app = page("certify", RUN, test_image=image, victim=1)
    row = table[(table["image"] == image) & (table["victim"] == 1) & (table["arm"] == "clean")].iloc[0]
    assert not app.exception
    assert any(f"{row['p_lower']:.4f}" in formula.value for formula in app.markdown)


@pytest.mark.parametrize("arms", [["clean"], ["poisoned"], ["clean", "random_noise"], ["clean", "poisoned"]])
def test_partial_runs_are_shown_and_labelled(copied, table, arms):
    part = table[table["arm"].isin(arms) & ~((table["arm"] == arms[-1]) & (table["victim"] == 1))]
    part.reset_index(drop=True).to_parquet(copied.directory / "certificates.parquet")
    copied.write_status(Status(**(asdict(copied.status()) | dict(state="cancelled"))))
    for app in (page("certify", copied), page("inspect", copied, view=VIEWS[3])):
        assert not app.exception
        assert "Partial result (cancelled)" in told(app)


def test_runs_without_poison_or_certificates_end_in_a_sentence(copied):
    for name in ("poison.safetensors", "evolution.safetensors", "certificates.parquet"):
        (copied.directory / name).unlink()
    for app in [page("certify", copied), *(page("inspect", copied, view=view) for view in VIEWS)]:
        assert not app.exception
        assert app.info


def test_an_empty_poison_is_no_accident(copied):
    empty = np.zeros((0, 1, 28, 28), dtype=np.float32)
    records.write_tensors(copied.directory / "poison.safetensors", delta=empty, indices=np.zeros(0, dtype=np.int64))
    records.write_tensors(copied.directory / "evolution.safetensors", delta=empty[None], steps=np.array([1]))
    for view in VIEWS[:3]:
        app = page("inspect", copied, view=view)
        assert not app.exception
        assert "changed no image" in told(app)


def test_without_the_data_set_what_needs_no_images_is_shown(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("PACD_DATA", str(tmp_path / "nowhere"))
    text = copied.config.canonical().replace('"dataset":"digits"', '"dataset":"mnist"')
    (copied.directory / "config.json").write_text(text)
    for app in [page("certify", copied), *(page("inspect", copied, view=view) for view in VIEWS)]:
        assert not app.exception
        assert any("is needed to rebuild its images" in warning.value for warning in app.warning)
    app = page("certify", copied)
    assert len(app.metric) == 3
    assert any("begin{aligned}" in shown.value for shown in app.markdown)


def test_a_run_without_certificates_can_be_watched_from_certify(place: Path) -> None:
    run = own_copy(place)
    run.write_status(Status("queued", submitted=time.time()))
    (run.directory / "certificates.parquet").unlink()
    test = opened("pages/certify.py", run=run.id)
    assert not test.exception
    assert "has no certificates yet" in words(test)
    assert "Watch it" in words(test)
