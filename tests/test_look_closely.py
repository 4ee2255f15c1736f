"""Inspect, Certify and One image: one step, one choice and one pin for all of them; sorting, filtering and links."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from engine import records
from engine.certification import ABSTAIN
from engine.experiment.more_draws import certify_again
from engine.figures import images, radii, style
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from engine.report import numbers
from tests.app import EXAMPLE, PROJECT, button, opened, own_copy, words

RUN = Run(GALLERY / EXAMPLE)
INSPECT, IMAGE, CERTIFY = "pages/inspect.py", "pages/image.py", "pages/certify.py"
WALL, STEPS, TESTS = "All poisoned images", "Over the attack's steps", "Test images by radius lost"
pytestmark = pytest.mark.usefixtures("place")


def shown_changes(test: AppTest) -> list[np.ndarray]:
    """The maps of δ that the page's triples of images draw [H, W]."""
    found = []
    for chart in test.get("plotly_chart"):
        spec = json.loads(chart.proto.spec)
        if "signed difference" in chart.proto.alt:
            z = spec["data"][2]["z"]
            found.append(np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).reshape(28, 28))
    return found


def alts(test: AppTest) -> list[str]:
    return [chart.proto.alt for chart in test.get("plotly_chart")]


def errors(test: AppTest) -> list[str]:
    assert not test.exception
    return [error.value for error in test.error]


# --- what poisoning cost each test image ---


def certificates(*rows: tuple[str, int, int, int, float]) -> pd.DataFrame:
    """Rows of (arm, victim, image, prediction, radius), all of true class 8."""
    table = pd.DataFrame(rows, columns=["arm", "victim", "image", "prediction", "radius"])
    return table.assign(label=8, weight=1.0)


def test_losses_are_exact() -> None:
    found = numbers.losses(
        certificates(
            *(("clean", 0, 5, 8, 0.4), ("clean", 1, 5, 8, 0.2), ("clean", 0, 6, 8, 0.5), ("clean", 1, 6, 3, 0.9)),
            *(("poisoned", 0, 5, 3, 0.7), ("poisoned", 1, 5, 3, 0.1)),
            *(("poisoned", 0, 6, ABSTAIN, 0.0), ("poisoned", 1, 6, 8, 0.1)),
            ("clean", 0, 9, 8, 0.5),  # of no poisoned victim
            ("clean", 2, 5, 8, 0.9),  # nor is there a third one yet
        )
    )
    assert list(found.index) == [5, 6]
    np.testing.assert_allclose(found["clean"], [0.3, 0.25])
    np.testing.assert_allclose(found["lost"], [0.3, 0.2])
    columns = ["certified", "lost_with", "victims", "flipped", "flipped_to"]
    assert found[columns].to_numpy().tolist() == [[True, 2, 2, 2, 3], [True, 1, 2, 0, ABSTAIN]]


def test_losses_need_both_arms() -> None:
    assert numbers.losses(certificates(("clean", 0, 5, 8, 0.4))).empty


def test_losses_agree_with_the_radii_that_certify_shows() -> None:
    table = RUN.need_certificates()
    means, found = radii.radii_by_image(table, RUN.config), numbers.losses(table)
    of_target = found[found["label"] == RUN.config.threat.target_class]
    pd.testing.assert_series_equal(of_target["clean"], means["clean"], check_names=False)
    pd.testing.assert_series_equal(of_target["poisoned"], means["poisoned"], check_names=False)


# --- one step for all panels ---


@pytest.mark.parametrize(("page", "view"), [(INSPECT, ""), (INSPECT, WALL), (INSPECT, STEPS), (IMAGE, "")])
def test_one_step_moves_every_panel(page: str, view: str) -> None:
    evolution = RUN.tensors("evolution")
    assert evolution is not None
    for step, place in ((4, 3), (12, 11)):
        test = opened(page, run=EXAMPLE, poison_image="2", attack_step=str(step), **({"view": view} if view else {}))
        assert not errors(test)
        assert test.select_slider(key="attack_step").value == step
        (drawn,) = shown_changes(test)
        np.testing.assert_allclose(drawn, evolution["delta"][place, 2, 0], atol=1e-6)
        assert ("as it was after upper step 4" in words(test)) == (step == 4)
    assert np.abs(evolution["delta"][3, 2] - evolution["delta"][11, 2]).max() > 0.01


def test_an_attack_that_was_stopped_is_not_shown_as_finished(place: Path) -> None:
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["attack.upper_steps=30"]), state="cancelled")
    test = opened(INSPECT, run=run.id, view=STEPS)
    slider = test.select_slider(key="attack_step")
    assert (slider.label, slider.options[-1]) == ("After upper step (the last: where it stopped, of 30)", "12")
    assert opened(INSPECT, run=EXAMPLE, view=STEPS).select_slider(key="attack_step").label.endswith("finished poison)")


def test_with_all_arms_switched_off_certify_asks_for_one_and_blames_no_link() -> None:
    test = opened("pages/certify.py", run=EXAMPLE, arms="")
    assert not errors(test)
    test.button_group(key="arms").set_value([]).run()
    assert not errors(test)
    assert "Choose at least one arm" in words(test)


def test_images_without_recorded_steps_say_so_and_the_wall_shows_the_others() -> None:
    test = opened(INSPECT, run=EXAMPLE, poison_image="40", attack_step="4")
    assert "only the first 12 poison images have recorded steps" in words(test)
    wall = opened(INSPECT, run=EXAMPLE, view=WALL, attack_step="4")
    assert "**12 of 75 poison images**" in words(wall)
    assert "**75 of 75 poison images**" in words(opened(INSPECT, run=EXAMPLE, view=WALL))


# --- sort and filter ---


def test_before_there_is_poison_the_page_says_so_across_its_width_and_leads_to_the_progress(place: Path) -> None:
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=9"]), state="cancelled")
    (run.directory / "poison.safetensors").unlink()
    test = opened(INSPECT, run=run.id)
    assert not test.exception
    (info,) = test.main.info
    assert info.value == "This run has no poison yet: it is cancelled."
    assert not [found for column in test.columns for found in column.info]
    assert "See how it ended" in words(test)


def test_a_run_without_recorded_steps_says_no_more_than_that(place: Path) -> None:
    run = own_copy(place)
    (run.directory / "evolution.safetensors").unlink()
    test = opened("pages/inspect.py", run=run.id, view="Over the attack's steps")
    assert not test.exception
    assert [info.value for info in test.info] == ["This run kept no poison images of earlier steps."]


def test_how_many_images_have_recorded_steps_is_the_runs_own_number(place: Path) -> None:
    run = own_copy(place)
    evolution = run.tensors("evolution")
    assert evolution is not None
    few = {"delta": evolution["delta"][:, :5], "indices": evolution["indices"][:5]}
    records.write_tensors(run.directory / "evolution.safetensors", **evolution | few)
    slider = opened(INSPECT, run=run.id).select_slider(key="attack_step")
    assert "only the first 5 images are known" in slider.help


def test_the_wall_can_be_filtered_by_what_it_is_sorted_by() -> None:
    test = opened(INSPECT, run=EXAMPLE, view=WALL)
    for order in test.selectbox(key="sort").options:
        test.selectbox(key="sort").set_value(order).run()
        assert not errors(test)
    test.selectbox(key="sort").set_value("L2 size, largest first").run()
    slider = next(found for found in test.slider if found.key == "range l2")
    middle = round(float(np.mean(slider.value)), 3)
    slider.set_value((middle, slider.value[1])).run()
    poison = RUN.tensors("poison")
    assert poison is not None
    sizes = np.linalg.norm(poison["delta"].reshape(75, -1), axis=1)
    assert f"**{(sizes >= middle).sum()} of 75 poison images**" in words(test)


def test_test_images_are_filtered_and_counted() -> None:
    table = RUN.need_certificates()
    found = numbers.losses(table)
    target = found[found["label"] == RUN.config.threat.target_class]
    every = target[target["certified"] & (target["lost_with"] == target["victims"])]
    some = target[target["certified"] & target["lost_with"].between(1, target["victims"] - 1)]
    flipped = target[target["flipped"] > 0]
    test = opened(INSPECT, run=EXAMPLE, view=TESTS)
    for name, rows in (
        ("all", target),
        ("lost with every poisoned victim", every),
        ("lost with some", some),
        ("flipped to another class", flipped),
    ):
        test.selectbox(key="test_filter").set_value(name).run()
        assert not errors(test)
        assert f"**{len(rows)} of {len(found)} certified test images.**" in words(test)
    test.selectbox(key="test_filter").set_value("all").run()
    test.selectbox(key="test_label").set_value(-1).run()
    assert f"**{len(found)} of {len(found)} certified test images.**" in words(test)
    for order in test.selectbox(key="test_sort").options:
        test.selectbox(key="test_sort").set_value(order).run()
        assert not errors(test)


# --- one choice, one pin ---


def test_a_pinned_poison_image_stays_beside_the_current_one_until_unpinned() -> None:
    test = opened(INSPECT, run=EXAMPLE, poison_image="2")
    button(test, "Pin this image").click().run()
    test.number_input(key="poison_image").set_value(5).run()
    assert "**Pinned: poison image 2**" in words(test)
    assert len(shown_changes(test)) == 2
    for view in (WALL, STEPS, TESTS):
        test.segmented_control(key="view").set_value(view).run()
        assert not errors(test)
        assert "**Pinned: poison image 2**" in words(test)
    button(test, "Unpin poison image 2").click().run()
    assert "Pinned" not in words(test)


def test_a_pinned_test_image_keeps_its_votes_beside_those_of_another() -> None:
    test = opened(CERTIFY, run=EXAMPLE)
    first, second = test.selectbox(key="test_image").options[:2]
    button(test, "Pin this image").click().run()
    test.selectbox(key="test_image").set_value(int(second)).run()
    assert not errors(test)
    assert f"**Pinned: test image {first}**" in words(test)
    assert sum("Votes under noise" in alt for alt in alts(test)) == 2


def test_an_image_of_another_run_can_stay_pinned_and_one_of_a_deleted_run_cannot(place: Path) -> None:
    own = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=7"]))
    test = opened(INSPECT, run=EXAMPLE)
    test.session_state["pinned"] = (own.id, "training", 3)
    test.run()
    assert not errors(test)
    assert f"**Pinned: poison image 3** of run {own.id}" in words(test)
    test.session_state["pinned"] = ("0123456789abcdef", "training", 3)
    test.run()
    assert not errors(test)
    assert any("is gone, so it was unpinned" in warning.value for warning in test.warning)


def test_a_choice_that_another_run_does_not_have_is_given_up_with_a_sentence() -> None:
    for page, key, name in ((INSPECT, "poison_image", "Poison image 500"), (CERTIFY, "test_image", "Test image 500")):
        test = AppTest.from_file(str(PROJECT / page), default_timeout=60)
        test.query_params["run"] = EXAMPLE
        test.session_state[key] = 500  # as a larger run left it
        test.run()
        assert not errors(test)
        assert f"{name} was chosen, but this run has none with that number" in words(test)


def test_the_wall_frames_the_chosen_and_the_pinned_image_unlike() -> None:
    figure = images.picture_wall(b"", columns=3, rows=1, numbers=[4, 5, 6], hover=["", "", ""], chosen=6, pinned=4)
    pinned, chosen = figure.layout.shapes
    assert (pinned.x0, chosen.x0) == (0, 2)
    assert pinned.line.dash == "dot" != chosen.line.dash


# --- One image ---


def test_a_poison_image_alone_is_answered_by_the_kept_victims() -> None:
    test = opened(IMAGE, run=EXAMPLE, kind="training", number="3")
    text = words(test)
    assert not errors(test)
    assert test.number_input(key="poison_image").value == 3
    assert "Poison image 3 is training image" in text
    for image in ("Clean", "Poisoned"):
        for arm in ("clean", "poisoned"):
            assert f"{image} image: The **{arm}** victim" in text
    assert [alt.split(".")[0] for alt in alts(test)][1:] == ["Votes under noise", "Confidence, without noise"]
    button(test, "Next").click().run()
    assert test.number_input(key="poison_image").value == 4


def test_a_test_image_alone_shows_its_recorded_certificates() -> None:
    table = RUN.need_certificates()
    rows = table[(table["image"] == 7) & (table["arm"] == "clean")]
    mean = (rows["radius"] * (rows["prediction"] == rows["label"])).mean()
    test = opened(IMAGE, run=EXAMPLE, kind="test", number="7")
    assert not errors(test)
    assert test.selectbox(key="test_image").value == 7
    assert f"{mean:.3f}" in [metric.value for metric in test.metric]


def test_a_test_image_gets_no_more_draws_than_a_question_takes() -> None:
    settings = dict(data_root=Path("nowhere"), images=[7], n=10_000, alpha=RUN.config.certification.alpha)
    test = opened(IMAGE, run=EXAMPLE, kind="test", number="7", draw_radius="0.1")
    assert not errors(test)
    assert "draws" not in test.dataframe[-1].value.columns  # nothing is drawn unasked
    for press, wanted in (("Certified at radius r?", dict(radius=0.1)), ("Radius within 5 %?", dict(precision=0.05))):
        test.segmented_control(key="draw_question").set_value(press).run()
        button(test, "Draw").click().run()
        rows = test.dataframe[-1].value.set_index("arm")
        for arm in ("clean", "poisoned"):
            (found,) = certify_again(RUN, arm, 0, **settings, **wanted)
            assert rows.loc[arm, "radius so far"] == f"{found['radius'].item():.3f}"
            assert rows.loc[arm, "draws"] == f"{found['draws'].item():,}"
            if "radius" in wanted:
                assert rows.loc[arm, "certified at 0.1"] == ("yes" if found["radius"].item() >= 0.1 else "no")
    assert "--precision 0.05 --n 10000" in words(test)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (dict(kind="other"), "asks for kind='other', but kind must be one of training, test"),
        (dict(kind="training", number="75"), "75 of them, from 0 to 74"),
        (dict(kind="training", number="-1"), "75 of them, from 0 to 74"),
        (dict(kind="test", number="1e3"), "test image '1e3'"),
        (dict(kind="test", number="8"), "38 of them, from 7 to 358"),
        (dict(poison_image="seven"), "poison_image must be a whole number from 0 to 74"),
        (dict(kind="test", test_image="8"), "… (38 in all)"),
        (dict(attack_step="99"), "asks for attack_step='99', but attack_step must be one of 1, 2, 3"),
        (dict(kind="test", draw_radius="nan"), "draw_radius must be a number from 0.025 to 0."),
    ],
)
def test_a_link_to_what_is_not_there_is_refused_in_one_sentence(query: dict[str, str], sentence: str) -> None:
    found = errors(opened(IMAGE, run=EXAMPLE, **query))
    assert [sentence in error for error in found] == [True]


def test_a_test_images_picture_comes_before_its_numbers() -> None:
    test = opened(IMAGE, run=EXAMPLE, kind="test")
    assert not errors(test)
    kinds = [element.type for element in test.main]
    assert kinds.index("image") < kinds.index("metric")


def test_a_run_without_weights_still_shows_its_images(place: Path) -> None:
    run = own_copy(place)
    for path in (run.directory / "victims").iterdir():
        path.unlink()
    run.directory.rename(place / "0123456789abcdef")
    test = opened(IMAGE, run="0123456789abcdef", number="3")
    assert not errors(test)
    assert any("keeps no weights" in info.value for info in test.info)
    assert len(test.get("plotly_chart")) == 1


def test_shares_by_class_tell_each_number_in_words() -> None:
    panels = {"this": {"clean": np.array([0.1, 0.9]), "poisoned": np.array([0.7, 0.3])}}
    figure = images.shares_by_class(
        panels, ["cat", "dog"], title="T", subtitle="s", quantity="q", selected={("this", "clean"): 1}, label=1
    )
    assert "this, clean: dog with 90%; this, poisoned: cat with 70%" in style.alt(figure)
    assert list(figure.data[0].text) == ["10", "★<br>90"]
    assert figure.data[0].marker.pattern.shape != figure.data[1].marker.pattern.shape
