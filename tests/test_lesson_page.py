"""The lesson in Streamlit's own harness, without MNIST: every step, questions, the ABX test, links, sheets."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from scipy.special import ndtr, ndtri
from streamlit.testing.v1 import AppTest

from engine.figures import lesson
from engine.html_report import marked
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run
from pages import _comparison, _glossary, _lesson_sheet
from pages._lesson_steps import STEPS
from tests.app import EXAMPLE, PROJECT, button, opened, own_copy, words

PAGE = "pages/lesson.py"
NUMBERS = range(1, len(STEPS) + 1)
RUN = Run(GALLERY / EXAMPLE)
CAPITALS = re.compile(r"\b[A-Z]{2,}\b")
GENERAL = {
    *("CVPR", "ICML", "ICLR", "CPU", "GPU", "URL", "CSV", "JSON", "HTML", "PARTIAL", "RESULT", "ABX", "AMD", "EPYC"),
}
pytestmark = pytest.mark.usefixtures("place")


def step_of(title: str) -> int:
    return next(number for number, step in enumerate(STEPS, start=1) if step.title == title)


def predict(test: AppTest, choice: int) -> AppTest:
    test.radio[0].set_value(choice).run()
    return button(test, "Reveal").click().run()


# --- steps and questions ---


def unexplained(test: AppTest) -> set[str]:
    """Words of two and more capitals that the page says, the glossary does not have, and not everybody knows."""
    known = " ".join(f"{name} {meaning}" for name, meaning in _glossary.TERMS.items())
    return {*CAPITALS.findall(words(test))} - {*CAPITALS.findall(known)} - GENERAL


@pytest.mark.parametrize("number", NUMBERS)
def test_every_step_opens_and_hides_its_answer_until_it_is_revealed(number: int) -> None:
    question = STEPS[number - 1].question(RUN)
    test = opened(PAGE, step=str(number))
    assert not test.exception
    assert not test.error
    assert [title.value for title in test.title] == [STEPS[number - 1].title]
    assert question.because not in words(test)
    assert not unexplained(test)
    assert button(test, "Reveal").disabled
    test = predict(test, question.right)
    assert any("Right." in shown.value for shown in test.success)
    assert not test.exception
    assert question.because in words(test)
    assert not unexplained(test)


def test_a_wrong_prediction_is_told_as_such_and_cannot_be_changed_afterwards() -> None:
    question = STEPS[0].question(RUN)
    test = predict(opened(PAGE), 1 - question.right)
    assert any("Not quite" in shown.value for shown in test.warning)
    assert f"- {question.options[1 - question.right]} :red-badge[✗ your answer]" in words(test)
    assert f"- {question.options[question.right]} :green-badge[✓ correct]" in words(test)
    assert not test.radio
    assert "0 of 1 predictions correct" in str(test.get("progress")[0].proto)


def test_next_and_back_walk_through_all_steps_and_predictions_are_kept() -> None:
    test = predict(opened(PAGE), 0)
    for number in NUMBERS[:-1]:
        assert test.title[0].value == STEPS[number - 1].title
        test = button(test, "Next").click().run()
    assert button(test, "Next").disabled
    test.number_input(key="step").set_value(1).run()
    assert test.title[0].value == STEPS[0].title
    assert button(test, "Back").disabled
    assert "✗ your answer" in words(test)
    assert not test.exception


def test_no_tooltip_covers_the_progress_and_the_keys_are_said() -> None:
    test = opened(PAGE)
    assert [button(test, label).help for label in ("Back", "Next")] == ["", ""]
    assert words(test).count("Page Down") == 1


def test_predictions_outlive_a_refresh() -> None:
    test = predict(opened(PAGE), 0)
    number = step_of("Now real images")
    test.number_input(key="step").set_value(number).run()
    address = predict(test, 1).query_params["predicted"]
    assert address == f"1.0,{number}.1"
    again = opened(PAGE, predicted=address)
    assert not again.error
    assert not again.radio
    assert "✗ your answer" in words(again)
    assert "of 2 predictions correct" in str(again.get("progress")[0].proto)
    again.number_input(key="step").set_value(number).run()
    assert not again.radio
    assert "predicted" not in opened(PAGE).query_params


def test_the_transfer_table_waits_for_the_prediction() -> None:
    test = opened(PAGE, step=str(step_of("Does it carry over?")))
    assert not test.get("plotly_chart")
    (table,) = predict(test, 0).get("plotly_chart")
    assert len([cell for cell in json.loads(table.proto.spec)["data"][1]["text"] if cell.startswith("★")]) == 1
    assert "★: the largest drop of the row" in words(test)


def test_a_run_without_weights_falls_back_on_recorded_votes(place: pytest.TempPathFactory) -> None:
    run = own_copy(place)
    for file in (run.directory / "victims").iterdir():
        file.unlink()
    for title in ("What noise does to a prediction", "Let them vote", "From votes to a radius"):
        test = opened(PAGE, step=str(step_of(title)), run=run.id)
        assert not test.exception
        if Run(GALLERY / run.id).exists():  # the example of the same id is not taken in its place
            assert any("no weights" in info.value for info in test.info)


def test_training_with_noise_is_set_beside_training_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that differ in nothing else; however the pages word what differs."""
    monkeypatch.setattr(_comparison, "ASPECTS", dict.fromkeys(_comparison.ASPECTS, "in other words"))
    without = ["procedure=standard", "attack.name=none", "victim_seeds=3"]
    own_copy(place, config=with_overrides(RUN.config, [*without, "certification.n=99"]))
    test = opened(PAGE, step=str(step_of("Why train with noise?")), run=EXAMPLE)
    assert any("--set procedure=standard --set attack.name=none" in code.value for code in test.code)
    other = own_copy(place, config=with_overrides(RUN.config, without))
    test = predict(opened(PAGE, step=str(step_of("Why train with noise?")), run=EXAMPLE), 1)
    assert not test.exception
    assert f"Runs {EXAMPLE} and {other.id}" in words(test)


def test_the_lesson_lives_with_any_finished_run_of_the_readers(place: Path) -> None:
    """One of an older protocol, one of settings that are not known here, and a defence under which clean victims
    certify nothing, so that nothing can drop.
    """
    old = own_copy(place, config=with_overrides(RUN.config, ["seed=9"]))
    (old.directory / "config.json").write_text('{"protocol_version":1,"procedure":"gaussian","attack":{"damping":1}}')
    newer = own_copy(place, config=with_overrides(RUN.config, ["seed=8"]))
    settings = newer.config.model_dump_json().replace('"lenet-narrow"', '"of-the-future"')
    (newer.directory / "config.json").write_text(settings)
    useless, useful = (own_copy(place, config=with_overrides(RUN.config, [f"sigma={sigma}"])) for sigma in (4, 0.125))
    report = useless.report or {}
    report["relative_drop"]["poisoned"] = {"mean": None, "sd": None, "seeds": []}
    report["arms"]["clean"]["average_certified_radius"]["target"]["mean"] = 0.0
    useless.write_json("report.json", report)
    for title in ("Why train with noise?", "What a defender can do"):
        assert not opened(PAGE, step=str(step_of(title)), run=EXAMPLE).exception
    assert _lesson_sheet.sheet(STEPS, RUN, answers=True)
    (table,) = opened(PAGE, step=str(step_of("What a defender can do")), run=EXAMPLE).dataframe
    assert list(table.value["defence"]) == ["no defence", f"noise σ = {useful.config.sigma}"]


def test_where_there_are_defences_to_choose_among_the_question_is_which_helps_most(place: Path) -> None:
    """The comparison waits for the prediction; that of the smallest drop is right."""
    for name, drop in (("median", 0.3), ("one-bit", 0.1)):
        run = own_copy(place, config=with_overrides(RUN.config, [f"training.squeezing={name}"]))
        report = run.report or {}
        report["relative_drop"]["poisoned"]["mean"] = drop
        run.write_json("report.json", report)
    test = opened(PAGE, step=str(step_of("What a defender can do")), run=EXAMPLE)
    assert test.radio[0].options == ["median filter (3×3)", "two grey levels"]
    assert not test.dataframe
    test = predict(test, 1)
    assert any("Right." in shown.value for shown in test.success)
    assert list(test.dataframe[0].value["defence"]) == ["no defence", "two grey levels", "median filter (3×3)"]


def test_the_radius_step_shows_the_numbers_of_its_image() -> None:
    test = opened(PAGE, step=str(step_of("From votes to a radius")), lesson_n="10", lesson_alpha="0.01")
    assert "| $n$ | noisy copies that voted | **10** |" in words(test)
    test.select_slider(key="lesson_n").set_value(5).run()
    assert any("At least 7 are needed" in warning.value for warning in test.warning)
    assert "no certain majority: abstain" in words(test)


def test_the_answer_about_strong_noise_shows_it() -> None:
    test = predict(opened(PAGE), 1)
    assert test.slider(key="lesson_sigma").value == 4 * RUN.config.sigma


def test_new_noise_gives_new_votes_and_keeps_the_last_shares() -> None:
    test = opened(PAGE, step=str(step_of("Let them vote")))
    for _ in range(11):
        test = button(test, "New noise").click().run()
    assert "The last 10 draws" in words(test)
    assert not test.exception


@pytest.mark.parametrize(("moved", "share"), [(0.0, 0.8), (0.5 * ndtri(0.8), 0.5), (1.0, ndtr(ndtri(0.8) - 2))])
def test_a_cloud_that_moved_by_the_radius_is_half_on_this_side(moved: float, share: float) -> None:
    figure = lesson.cloud(0.8, moved, sigma=0.5, cap=0, widest=1.5)
    texts = [note.text for note in figure.layout.annotations]
    assert f"<b>{share:.0%}</b>" in texts
    assert f"R = {0.5 * ndtri(0.8):.3f}" in texts


def test_both_victims_are_asked_about_both_versions_once_it_was_predicted() -> None:
    test = opened(PAGE, step=str(step_of("Why does it work?")), run=EXAMPLE)
    assert not test.metric
    test = predict(test, 1)
    assert not test.exception
    assert [metric.label.split()[0] for metric in test.metric] == ["Clean", "Poisoned"] * 2
    assert all(0 <= float(metric.value) <= (RUN.report or {})["radius_cap"] + 1e-3 for metric in test.metric)


def test_the_lesson_ends_with_ways_on_and_back_to_what_was_predicted_wrongly() -> None:
    wrong = STEPS[1].question(RUN).right - 1
    test = opened(PAGE, step=str(len(STEPS)), predicted=f"1.{STEPS[0].question(RUN).right},2.{wrong}")
    assert "What you know now" in words(test)
    assert not [found for found in test.button if found.label.startswith("1. ")]
    test = button(test, f"2. {STEPS[1].title}").click().run()
    assert test.title[0].value == STEPS[1].title


# --- links ---


OUT_OF_RANGE = {
    "step": ("0", str(len(STEPS) + 1), "-1", "1.5", "nan", "two", ""),
    "predicted": ("1", "1.3", "1.-1", "0.1", f"{len(STEPS) + 1}.0", "first", "1.0.0"),
    "hide": ("everything", "nav,questions,wall", "nav;questions"),
    "answers": ("shown",),
    "lesson_image": ("0", "1000", "first"),
    "lesson_sigma": ("-0.1", "9", "inf"),
    "lesson_n": ("7",),
    "lesson_alpha": ("0.5",),
    "lesson_draws": ("11",),
}


@pytest.mark.parametrize("link", range(7))
def test_a_link_out_of_range_is_refused_by_the_names_of_its_fields(link: int) -> None:
    asked = {field: values[link] for field, values in OUT_OF_RANGE.items() if link < len(values)}
    test = opened(PAGE, **asked)
    refused = [error.value.partition(" must be ")[0] for error in test.error]
    wanted = [f"This link asks for {field}={text!r}, but {field}" for field, text in asked.items()]
    assert sorted(refused) == sorted(wanted)
    assert not test.exception
    assert test.title[0].value == STEPS[0].title  # the lesson goes on, with the fields' defaults


def test_a_teachers_link_hides_what_it_says_and_keeps_answers() -> None:
    test = opened(PAGE, step="2", hide="nav,teachers", answers="hidden")
    labels = [found.label for found in test.button]
    assert not {"Next", "Back", "Reveal"} & set(labels)
    assert not [expander for expander in test.expander if "teachers" in expander.label]
    assert "kept for the discussion" in words(test)
    assert not opened(PAGE, step="2", hide="questions").radio


def test_the_link_for_teachers_opens_what_it_names() -> None:
    test = opened(PAGE, step="3")
    chosen_for_link(test).set_value(2).run()
    test.multiselect(key="lesson_link_hide").set_value(["nav", "sidebar"]).run()
    link = link_of(test)
    assert link.startswith("/lesson?step=2&hide=nav,sidebar&")
    query = dict(part.split("=") for part in link.partition("?")[2].split("&"))
    again = opened(PAGE, **query)
    assert not again.error
    assert again.title[0].value == STEPS[1].title


def test_the_link_for_teachers_follows_the_step_and_takes_no_slider_of_another() -> None:
    test = opened(PAGE)
    for number in (1, 2, 3, 4):
        assert chosen_for_link(test).value == number
        given = re.findall(r"[?&](\w+)=", link_of(test))
        assert given == ["step", *STEPS[number - 1].values]
        test = button(test, "Next").click().run()


def test_another_machine_can_compute_the_run_of_a_teachers_link(place: Path) -> None:
    run = own_copy(place, config=with_overrides(PRESETS["smoke"].config, ["seed=5", "threat.epsilon=0.2"]))
    query = dict(parse_qsl(link_of(opened(PAGE, run=run.id)).partition("?")[2]))
    assert query["run"] == run.id
    shutil.rmtree(run.directory)
    there = opened(PAGE, **query)
    button(there, "Compute it here").click().run()
    assert there.session_state["go to form"] == {"preset": "smoke", "threat.epsilon": "0.2", "seed": "5"}


@pytest.mark.parametrize(
    ("page", "said"),
    [(PAGE, "The lesson uses the example instead."), ("pages/start.py", "The example is shown here instead.")],
)
def test_where_the_example_stands_in_for_a_run_that_is_not_here_that_is_said(page: str, said: str) -> None:
    assert said in words(opened(page, run="0123456789abcdef"))
    assert said not in words(opened(page, run=EXAMPLE))


def chosen_for_link(test: AppTest) -> Any:
    return next(found for found in test.selectbox if found.label == "Step")


def link_of(test: AppTest) -> str:
    return next(code.value for code in test.code if code.value.startswith("/lesson?"))


# --- sheets, glossary ---


@pytest.mark.parametrize("answers", [True, False])
def test_the_sheet_has_every_question_and_needs_no_network(answers: bool) -> None:
    text = _lesson_sheet.sheet(STEPS, RUN, answers=answers)
    assert text.count("<section>") == len(STEPS)
    assert text.count("<details>") == (len(STEPS) if answers else 0)
    assert not re.search(r"https?://|<script|\*\*|\$|p_lower", text)
    assert "<em>p</em><sub>lower</sub>" in text
    for step in STEPS:
        first_words = re.escape(marked(step.question(RUN).because)[:40])
        assert bool(re.search(first_words, text)) == answers


def test_the_lesson_says_so_when_the_open_run_does_not_suit_it(place: pytest.TempPathFactory) -> None:
    run = own_copy(place, state="failed")
    test = opened(PAGE, run=run.id)
    assert any("the lesson uses the example" in info.value for info in test.info)
    assert not test.exception


JARGON = (
    *("ACR", "PACD", "PSNR", "SSIM", "MNIST", "MACER", "SmoothAdv", "SmoothMix", "Clopper–Pearson", "L2", "L∞"),
    *(
        "abstain",
        "arm",
        "bilevel",
        "cap",
        "certificate",
        "clean-label",
        "control",
        "hypergradient",
        "p_lower",
        "poison",
    ),
    *("ABX test", "brightness", "fork", "training.precision"),
    *("poison fraction", "attacker's share", "procedure", "relative drop", "residual", "run", "seed", "smoothing"),
    *(
        "soft radius",
        "squeezing",
        "study",
        "surrogate",
        "target class",
        "transfer",
        "victim",
        "ε",
        "σ",
        "α",
        "δ",
        "Φ⁻¹",
    ),
    *(
        "pixel units",
        "p-value",
        r"fine-tun\w+",
        "preset",
        "certified accuracy",
        "certified radius",
        "Gaussian augmentation",
    ),
)


@pytest.mark.parametrize("term", JARGON)
def test_every_term_that_the_pages_use_is_in_the_glossary(term: str) -> None:
    report = PROJECT / "engine" / "report"
    files = [*(PROJECT / "pages").glob("*.py"), report / "wording.py", report / "sentences.py"]
    pages = "\n".join(path.read_text() for path in files if path.name != "_glossary.py")
    whole = re.compile(rf"(?<!\w){term}(?!\w)", re.IGNORECASE)
    assert whole.search(pages)  # else the list is out of date
    assert any(whole.search(f"{name} {meaning}") for name, meaning in _glossary.TERMS.items())


def test_abbreviations_of_other_pages_are_in_the_glossary() -> None:
    for name in ("start", "certify", "studies"):
        assert not unexplained(opened(f"pages/{name}.py")), name


def test_the_glossary_is_in_the_sidebar_of_every_page() -> None:
    test = opened("app.py")
    next(found for found in test.sidebar.button if found.label == "Glossary").click().run()
    assert not test.exception
    assert _glossary.matching(" Median ") == ["squeezing"]
    assert _glossary.matching("") == list(_glossary.TERMS)
