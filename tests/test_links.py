"""Links: what does not fit is refused by its field's name, a missing run can be computed, the full link says all."""

import re
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from engine import records
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from engine.report import commands
from pages import _links, _shared
from tests.app import EXAMPLE, button, opened, own_copy, words

pytestmark = pytest.mark.usefixtures("place")
NOT_HERE = "0123456789abcdef"


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        (
            "certify",
            {
                "scope": ("everything", "one of target class, all classes"),
                "what_if_n": ("7", "one of 5, 10, 20"),
                "what_if_alpha": ("nan", "one of 0.1, 0.05"),
                "arms": ("evil", "one of clean, poisoned, random noise, shuffled signs"),
                "test_image": ("-1", "one of "),
                "victim": ("9", "one of 0, 1"),
                "scatter_arm": ("clean", "one of poisoned"),
            },
        ),
        ("certify", {"what_if_n": ("", "one of 5, 10, 20"), "victim": ("<script>", "one of 0, 1")}),
        (
            "inspect",
            {
                "view": ("Everything", "one of Image by image, All poisoned images"),
                "poison_image": ("75", "a whole number from 0 to 74"),
                "magnify": ("×99", "one of ×1, ×5, ×10, full range"),
                "compare_by": ("ear", "one of Wipe, Blink"),
                "attack_step": ("0", "one of 1, 2"),
                "wipe": ("29", "a whole number from 0 to "),
                "pinned": (f"{EXAMPLE}.training.75", f"{EXAMPLE}.training.NUMBER with NUMBER a whole number"),
            },
        ),
        ("inspect", {"poison_image": ("1e999", "a whole number from 0 to 74")}),  # alone: the page ends there
        ("inspect", {"pinned": (f"{EXAMPLE}.test.-1", f"{EXAMPLE}.test.NUMBER with NUMBER one of ")}),
        ("inspect", {"pinned": (f"{EXAMPLE}.other.1", "RUN.KIND.NUMBER with KIND one of training, test")}),
        ("inspect", {"pinned": ("../etc.training.1", "of a run that has images to show here")}),
        ("inspect", {"pinned": ("", "of a run that has images to show here")}),
        ("image", {"kind": ("both", "one of training, test")}),
        (
            "try",
            {
                "try_source": ("telepathy", "one of "),
                "try_n": ("3", "one of 10, 20"),
                "try_n0": ("1e9", "one of 10, 20"),
                "try_alpha": ("2", "one of 0.1, 0.05"),
                "try_seed": ("-1", "a whole number from 0 to 2147483647"),
            },
        ),
        ("try", {"try_seed": ("1" * 5000, "a whole number from 0 to 2147483647")}),  # alone, too
    ],
)
def test_values_that_fields_do_not_allow_are_refused_by_their_names(
    page: str, asked: dict[str, tuple[str, str]]
) -> None:
    test = opened(f"pages/{page}.py", run=EXAMPLE, **{name: text for name, (text, _) in asked.items()})
    assert not test.exception
    said = [error.value for error in test.error]
    assert len(said) == len(asked)
    for name, (text, allowed) in asked.items():
        start = f"This link asks for {name}={_links.plainly(repr(text[:40]))}, but {name} must be {allowed}"
        assert [each.startswith(start) for each in said].count(True) == 1, name


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("certify", "scope"), ("explore", "sigma"), ("image", "number"), ("inspect", "pinned"), ("inspect", "run"),
        ("lesson", "answers"), ("lesson", "hide"), ("lesson", "predicted"), ("poison", "dataset"), ("poison", "preset"),
        ("runs", "compare"), ("studies", "study"),
    ],
)  # fmt: skip
def test_no_text_of_an_address_makes_the_browser_call_elsewhere(page: str, name: str) -> None:
    """Markdown would: an image is asked for as soon as it is shown."""
    test = opened(f"pages/{page}.py", **{"run": EXAMPLE, name: "![x](http://elsewhere.org/a)"})
    assert not test.exception
    assert "[x](http" in words(test)
    assert not re.search(r"(?<!\\)\[x\]\(", words(test))


NAME = "cost $5 vs $6 for eps *best* `x` <b> :smile: #1 ~~a~~ __b__ a|b &amp; http://a.org www.example.org me@a.org"
SIGNS = re.compile(r"(?<!\\)[*_~$<>&#|`\[]|(?<!\\):\w|://|www\.|\w@")


def test_a_name_stands_as_it_was_typed_wherever_markdown_shows_it(place: Path) -> None:
    run = own_copy(place)
    run.write_json("notes.json", {"name": NAME, "starred": False, "note": ""})
    said = _links.plainly(NAME)
    assert not SIGNS.search(said)
    assert re.sub(rf"\\(?=\W|_)|{_links.WORD_JOINER}", "", said) == NAME
    sidebar = opened("app.py", run=run.id).sidebar
    for shown in (sidebar.caption[0], opened("pages/poison.py", run=run.id).header[0]):
        assert shown.value.startswith(f"{said} · ")
    assert NAME in sidebar.selectbox[0].options[0]  # no Markdown there


def test_what_a_field_allows_is_taken() -> None:
    test = opened("pages/certify.py", run=EXAMPLE, scope="all classes", what_if_alpha="0.01", victim="1")
    assert not test.exception
    assert not test.error
    assert (test.session_state["scope"], test.session_state["what_if_alpha"]) == ("all", 0.01)
    assert test.session_state["victim"] == 1


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("certify", ["scope", "scatter_arm", "victim"]),
        ("image", ["kind", "magnify", "compare_by"]),
        ("inspect", ["view", "magnify"]),
        ("try", ["try_source"]),
    ],
)
def test_a_name_with_nothing_behind_it_stands_for_the_default(page: str, names: list[str]) -> None:
    test = opened(f"pages/{page}.py", run=EXAMPLE, **dict.fromkeys(names, ""))
    assert not test.exception
    said = [line for line in words(test).splitlines() if not line.startswith("This link asks for ")]
    assert said == words(opened(f"pages/{page}.py", run=EXAMPLE)).splitlines()


def test_a_pin_comes_with_the_link_and_stays_in_the_address_until_it_is_taken_off() -> None:
    test = opened("pages/inspect.py", run=EXAMPLE, pinned=f"{EXAMPLE[:6]}.training.3")
    assert not test.exception
    assert not test.error
    assert "Pinned: poison image 3" in words(test)
    assert test.query_params["pinned"] == f"{EXAMPLE}.training.3"
    button(test, "Unpin poison image 3").click().run()
    assert "Pinned:" not in words(test)
    assert "pinned" not in test.query_params


def test_a_pin_of_a_run_without_certificates_is_refused_and_does_not_end_the_page(place: Path) -> None:
    run = own_copy(place, state="cancelled")
    (run.directory / "certificates.parquet").unlink()
    test = opened("pages/image.py", run=run.id, pinned=f"{run.id}.test.3")
    assert not test.exception
    assert f"pinned must be {run.id}.test.NUMBER with NUMBER left out: nothing can be chosen here." in words(test)
    assert "pinned" not in test.query_params
    assert "Pin this image" in [each.label for each in test.button]


def test_a_misspelt_name_is_said() -> None:
    test = opened("app.py", run=EXAMPLE, sygma="0.5")
    assert [error.value for error in test.error] == [
        "This link asks for 'sygma', which this page does not know. It is ignored."
    ]
    assert not opened("app.py", run=EXAMPLE, preset="quick").error


@pytest.mark.parametrize("page", [Path(file).stem for file, _ in _shared.PAGES])
def test_a_page_takes_the_names_that_are_listed_for_it_and_refuses_nothing_else(page: str) -> None:
    views = (
        ["Test images by radius lost", "Over the attack's steps", "All poisoned images"] if page == "inspect" else []
    )
    for query in ({}, *({"view": view} for view in views)):
        test = opened(f"pages/{page}.py", run=EXAMPLE, **query)
        assert not test.exception
        assert not test.error
        assert not test.warning
        listed = {*_links.TAKEN["" if page == "start" else page], *_links.CONFIGURATION}
        assert "link fields" not in test.session_state or set(test.session_state["link fields"]) <= listed


def test_a_name_of_another_page_is_said_and_what_may_be_meant() -> None:
    """Streamlit's harness opens app.py's first page alone, so the pages' names are asked for here."""

    def said(path: str, **query: str) -> list[str]:
        test = AppTest.from_string(f"from pages import _links; _links.refuse_unknown({path!r})")
        for name, value in query.items():
            test.query_params[name] = value
        return [error.value for error in test.run().error]

    (told,) = said("poison", epsilon="7")
    assert told.endswith("which this page does not know. It is ignored. Do you mean threat.epsilon?")
    assert len(said("explore", **{"threat.epsilon": "0.2", "epsilon": "0.2"})) == 1
    assert all([said("studies", compare="1"), said("lesson", epsilon="2"), said("", step="3")])
    assert not said("poison", seed="1", run=EXAMPLE)
    assert not said("certify", preset="quick", seed="1", run=EXAMPLE, victim="0")
    assert set(_links.TAKEN) == {Path(file).stem if k else "" for k, (file, _) in enumerate(_shared.PAGES)}


@pytest.mark.parametrize("page", ["certify", "inspect", "start"])
def test_a_link_to_a_run_that_is_not_here_offers_to_compute_it(page: str) -> None:
    config = with_overrides(PRESETS["smoke"].config, ["seed=5", "threat.epsilon=0.2"])
    typed = {"preset": "smoke", "seed": "5", "threat.epsilon": "0.2"}
    test = opened(f"pages/{page}.py", run=records.run_id(config), **typed)
    assert any("will have the same id" in info.value for info in test.info)
    button(test, "Compute it here").click().run()
    assert not test.exception
    assert test.session_state["run"] == ""
    assert test.session_state["go to form"] == typed  # app.py goes there; the form takes it from the address
    form = opened("pages/poison.py", **typed)
    assert (form.session_state["field seed"], form.session_state["field threat.epsilon"]) == (5, 0.2)


@pytest.mark.parametrize(
    ("typed", "said"),
    [({"preset": "evil"}, "preset must be one of"), ({"preset": "smoke", "threat.epsilon": "9"}, "threat.epsilon")],
)
def test_a_link_whose_configuration_cannot_be_run_says_which_field(typed: dict[str, str], said: str) -> None:
    test = opened("pages/certify.py", run=NOT_HERE, **typed)
    assert any(said in error.value for error in test.error)
    assert [each.label for each in test.button] == ["Open the example"]
    assert not test.exception


def test_a_link_that_does_not_say_how_offers_nothing() -> None:
    test = opened("pages/certify.py", run=NOT_HERE)
    button(test, "Open the example").click().run()
    assert not test.exception
    assert test.session_state["run"] == ""


def test_the_full_link_has_every_value_the_whole_id_and_what_makes_the_run_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=5", "threat.epsilon=0.2"]))
    monkeypatch.setattr(st, "session_state", {"scope": "all", "arms": ["clean", "poisoned"], "victim": 0})
    _links.declare(scope={"all": "all classes"}, arms={"poisoned": "worse"}, victim=[0, 1], test_image=[3])
    asked = parse_qs(_links.query_of(run)[1:])
    assert asked == {
        "scope": ["all classes"],
        "arms": ["clean", "worse"],
        "victim": ["0"],
        "run": [run.id],
        "preset": ["smoke"],
        "threat.epsilon": ["0.2"],
        "seed": ["5"],
    }


@pytest.mark.parametrize("run", list(records.all_runs(GALLERY)), ids=lambda run: run.id)
def test_a_runs_command_and_link_give_its_very_configuration(run: Run) -> None:
    preset, changed = commands.asked_for(run)
    assert with_overrides(PRESETS[preset].config, changed) == run.config
    asked = {name: text for name, (text,) in parse_qs(commands.query(preset, changed)).items()}
    assert with_overrides(PRESETS[asked.pop("preset")].config, [f"{n}={t}" for n, t in asked.items()]) == run.config
