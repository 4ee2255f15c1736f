"""Start, Poison and the frame around all pages, in Streamlit's own test harness: no browser, no network.

Pages are tested as files of their own, too, since Streamlit 1.67 forgets what app.py drew from the second run on.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from engine import records
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from pages import _links, _shared
from tests.app import EXAMPLE, PROJECT, button, opened, own_copy, words

PAGES = [file for file, _ in _shared.PAGES]
MINE = ["pages/start.py", "pages/poison.py", "pages/runs.py"]
VIEWS = ["Image by image", "All poisoned images", "Over the attack's steps", "Test images by radius lost"]
CHANGES = ["pages/start.py", "pages/poison.py", "pages/inspect.py"]  # that show what was changed
pytestmark = pytest.mark.usefixtures("place")


# --- the frame, and all pages ---


def test_every_page_opens_without_an_exception() -> None:
    test = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).run()
    assert [choice.label for choice in test.sidebar.selectbox] == ["Open run"]
    assert "localhost" in words(test)
    assert not test.exception
    for page in PAGES:
        assert not test.switch_page(page).run().exception, page


@pytest.mark.parametrize(
    ("page", "identifier"),
    [
        *((page, "0123456789abcdef") for page in PAGES),
        *((f"pages/{page}.py", EXAMPLE[:7]) for page in ("inspect", "runs")),  # tests/test_links.py has whole ids
        *((f"pages/{page}.py", "../../etc/passwd") for page in ("start", "certify")),
    ],
)
def test_every_page_alone_takes_any_run_id_of_a_link(page: str, identifier: str) -> None:
    test = opened(page, run=identifier)
    assert not test.exception
    assert bool(test.warning) == (not EXAMPLE.startswith(identifier))  # never silently another run


def test_a_missing_run_is_said_in_the_frame_too() -> None:
    test = opened("app.py", run="0123456789abcdef")
    assert not test.exception
    assert any("0123456789abcdef" in warning.value and "sidebar" in warning.value for warning in test.warning)
    assert test.sidebar.selectbox[0].value is None


def test_without_mnist_every_page_says_so_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    test = opened("app.py")
    assert any("python -m engine fetch mnist" in info.value for info in test.info)
    monkeypatch.setattr(_shared, "default_dataset", lambda: "mnist")
    assert not any("fetch mnist" in info.value for info in opened("app.py").info)


def test_the_picker_lists_examples_and_own_runs_and_names_states(place: Path) -> None:
    own_copy(place, state="cancelled")
    options = opened("app.py").sidebar.selectbox[0].options
    assert len(options) == len(list(records.all_runs(GALLERY)))
    assert sum("cancelled" in option for option in options) == 1
    assert sum("example" in option for option in options) == len(options) - 1


def test_the_app_and_its_pages_import_no_torch() -> None:
    script = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        "for file in ('app.py', 'pages/inspect.py', 'pages/certify.py'):\n"
        "    test = AppTest.from_file(file, default_timeout=60)\n"
        f"    test.query_params['run'] = '{EXAMPLE}'\n"
        "    assert not test.run().exception, file\n"
        "    assert 'torch' not in sys.modules, file\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


# --- Start ---


def test_start_tells_the_examples_result_with_the_reports_numbers() -> None:
    test, report = opened("pages/start.py"), json.loads((GALLERY / EXAMPLE / "report.json").read_text())
    text = words(test)
    for arm in ("clean", "poisoned"):
        assert f"{report['arms'][arm]['average_certified_radius']['target']['mean']:.3f}" in text
    drop = report["relative_drop"]["poisoned"]
    assert f"{100 * drop['mean']:.0f} ± {100 * drop['sd']:.0f} % less" in text
    assert len(test.get("plotly_chart")) == 2
    assert len(test.get("image")) == 4  # a pair beside the story, and three rows


def test_start_leads_with_a_sentence_and_three_numbers_and_names_every_page() -> None:
    test, report = opened("pages/start.py"), json.loads((GALLERY / EXAMPLE / "report.json").read_text())
    assert "**certificate**: a distance" in test.markdown[0].value
    assert test.markdown[1].value.startswith("An attacker changed **all 75 images of digit 8** among the ")
    assert f"{Run(GALLERY / EXAMPLE).config.data.train_size:,} training images. " in words(test)
    arms = ("clean", "poisoned", "random_noise")
    acr = [report["arms"][arm]["average_certified_radius"]["target"] for arm in arms]
    assert [metric.label for metric in test.metric] == ["Clean images", "Poisoned images", "Images with random noise"]
    assert [metric.value for metric in test.metric] == [f"{found['mean']:.3f} ± {found['sd']:.3f}" for found in acr]
    assert test.metric[1].delta.endswith(" % less")
    assert [button.label for button in test.button][:2] == ["Start the lesson", "Explore other settings"]
    for _, title in _shared.PAGES[1:]:
        assert f"**{title}**" in words(test)


def test_start_shows_the_example_while_the_open_run_has_no_result(place: Path) -> None:
    run = own_copy(place, state="failed")
    test = opened("pages/start.py", run=run.id)
    assert any("is failed" in info.value for info in test.info)
    assert not test.exception


@pytest.mark.usefixtures("nothing_cached")
def test_start_says_what_to_do_where_there_is_no_finished_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (records, _shared):
        monkeypatch.setattr(module, "GALLERY", tmp_path / "empty")
    test = opened("pages/start.py")
    assert not test.exception
    assert any("No finished run" in warning.value for warning in test.warning)


# --- damage ---


@pytest.mark.parametrize("page", MINE)
@pytest.mark.parametrize(
    "damage", ["status.json", "config.json", "evolution.safetensors", "metrics.jsonl", "report.json"]
)
@pytest.mark.parametrize("content", ["[", '{"state": 5}'])
def test_pages_live_with_damaged_files(place: Path, page: str, damage: str, content: str) -> None:
    run = own_copy(place)
    (run.directory / damage).write_text(content)
    assert not opened(page, run=run.id).exception


@pytest.mark.parametrize("page", MINE)
def test_a_run_that_vanishes_leaves_the_page_alive(place: Path, page: str) -> None:
    run = own_copy(place)
    test = opened(page, run=run.id)
    shutil.rmtree(run.directory)
    (place / run.id).mkdir()  # as somebody's half-finished deletion leaves it
    test.run()
    assert not test.exception


def test_a_runs_root_that_cannot_be_used_is_said(place: Path) -> None:
    place.write_text("a file where the folder should be")
    test = opened("pages/poison.py")
    test.number_input(key="field seed").set_value(7).run()
    button(test, "Start poisoning").click().run()
    assert not test.exception
    assert any("Nothing was started" in error.value for error in test.error)


# --- other attacks, data sets, protocols ---


def of_another_attack(place: Path, attack: str) -> Run:
    """The example's files as that attack would have left them."""
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, [f"attack.name={attack}"]))
    poison, report = run.tensors("poison"), run.report
    assert poison is not None
    assert report is not None
    table = run.need_certificates()
    report["config"] = run.config.model_dump(mode="json")
    step = dict(kind="attack", step=1, steps=1, upper_loss=None, lower_loss=None, relative_residual=None, mean_size=0.0,
                share_at_epsilon=0.0)  # fmt: skip
    if attack == "none":
        for name in ("poison", "evolution"):
            (run.directory / f"{name}.safetensors").unlink()
        table = table[table["arm"] == "clean"]
        table.reset_index(drop=True).to_parquet(run.directory / "certificates.parquet")
        report |= {"arms": {"clean": report["arms"]["clean"]}, "relative_drop": {}, "perturbation": None}
        (run.directory / "metrics.jsonl").unlink()
    else:
        zero, labels = np.zeros_like(poison["delta"]), {}
        if attack == "label-flip":
            labels = {"labels": np.arange(len(zero)) % 8}
        records.write_tensors(run.directory / "poison.safetensors", delta=zero, indices=poison["indices"], **labels)
        records.write_tensors(run.directory / "evolution.safetensors", delta=zero[None, :12], steps=np.array([1]),
                              indices=poison["indices"][:12])  # fmt: skip
        (run.directory / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    run.write_json("report.json", report)
    return run


@pytest.mark.parametrize("page", [page for page in PAGES if Path(page).stem not in _links.PAGES_WITHOUT_RUN])
@pytest.mark.parametrize("attack", ["none", "label-flip", "white-pattern"])
def test_every_page_shows_runs_of_attacks_without_losses_or_changes(place: Path, page: str, attack: str) -> None:
    run = of_another_attack(place, attack)
    views = VIEWS if "inspect" in page else [""]
    for view in views:
        test = opened(page, run=run.id, **({"view": view} if view else {}))
        assert not test.exception
        assert not test.warning
        if attack == "label-flip" and page in CHANGES and view in ("", *VIEWS[:3]):
            assert any("changed no pixel" in info.value and "× digit 0" in info.value for info in test.info)


def test_a_run_of_another_protocol_is_said_to_be_one(place: Path) -> None:
    run = own_copy(place)
    (run.directory / "config.json").write_text('{"protocol_version":1,"procedure":"gaussian","attack":{"damping":1}}')
    for page in PAGES:
        test = opened(page, run=run.id)
        assert not test.exception
        assert any("is of protocol 1" in warning.value for warning in test.warning)


def test_classes_are_called_by_their_names_on_every_page(place: Path, folder: Path) -> None:
    typed = ["dataset=folder:fruit", "threat.target_class=1", "data.train_size=100", "data.validation_size=60"]
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, typed))
    report, table, rng = run.need_report(), run.need_certificates(), np.random.default_rng(1)
    names = ["apple", "pear", "plum"]
    run.write_json("report.json", report | {"class_names": names, "target_name": "pear"})
    short = {name: [votes[:3] + 1 for votes in table[name]] for name in ("selection_votes", "estimation_votes")}
    rank = {image: k for k, image in enumerate(sorted(set(table["image"])))}  # there are 42 test images only
    table["image"] = [rank[image] for image in table["image"]]
    table.assign(label=1, selected_class=2, **short).to_parquet(run.directory / "certificates.parquet")
    delta, indices = rng.uniform(-0.1, 0.1, (30, 3, 8, 8)).astype(np.float32), np.arange(60, 90)
    records.write_tensors(run.directory / "poison.safetensors", delta=delta, indices=indices)
    records.write_tensors(
        run.directory / "evolution.safetensors", delta=delta[None, :12], steps=np.array([1]), indices=indices[:12]
    )
    for page in ("start", "certify", "runs", "poison"):
        test = opened(f"pages/{page}.py", run=run.id)
        assert not test.exception
        assert "pear" in words(test)
        assert "digit" not in words(test).replace("digits", "") or page == "poison"  # whose form holds the preset's
    for view in VIEWS:
        test = opened("pages/inspect.py", run=run.id, view=view)
        assert not test.exception
        assert "pear" in words(test)
        assert "digit" not in words(test)
