"""The form of the Poison page: every field of the configuration is a widget, and a query parameter of its name."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from engine import datasets, jobs
from engine.choices import DATASETS, FOLDER, PROCEDURES
from engine.config import Config, ConfigError, ProcedureConfig, Settings
from engine.costs import estimate, expected_device
from engine.datasets import BUILT_IN, DatasetUnavailable, class_in_words
from engine.overrides import with_overrides
from engine.presets import PRESETS, find_preset
from engine.records import Run, RunNotFound
from engine.report import sentences, wording
from engine.report.commands import HEADS, NAMES, OPTIONAL, changes, query, value_of, values_of
from pages import _links, _shared

LARGEST_NUMBER = 2**53 - 1  # that a browser's number field can hold
PARENT = "forked from"  # of the session: the run whose settings the form started from
PROBLEM = "form problem"  # of the session: what the form could not take of a link or a run
WRONG = "wrong fields"  # of the session: field → what is wrong with it
PLAIN = {  # code name → plain name, of choices
    "procedure": wording.PROCEDURE_NAMES,
    "attack.procedure": wording.PROCEDURE_NAMES,
    "architecture": wording.ARCHITECTURE_NAMES,
    "attack.surrogate": wording.ARCHITECTURE_NAMES,
    "attack.name": {name: attack.name for name, attack in wording.ATTACKS.items()},
    "controls": wording.CONTROL_NAMES,
}
_DOTTED = sorted((name for name in NAMES if "." in name), key=len, reverse=True)
_NAMED = re.compile("|".join([*map(re.escape, _DOTTED), r"^\w+"]))  # elsewhere "seed" may be the word
_LIMITS = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}  # as pydantic calls them
STEPS = {"threat.epsilon": 0.01, "threat.poison_fraction": 0.1, "threat.attacker_share": 0.1, "sigma": 0.125}
STEPS |= {"attack.sigma": 0.125}


def key_of(name: str) -> str:
    return f"field {name}"


def chosen(name: str) -> Any:
    """What the form says now."""
    return st.session_state.get(key_of(name))


def given(name: str) -> Any:
    """The same, and what the preset says where the field is empty and must not be."""
    value = chosen(name)
    if value is None and name not in OPTIONAL:
        return value_of(PRESETS[st.session_state["preset"]].config, name)
    return value


# --- filling it ---


def fill(config: Config) -> None:
    """Shows these settings. A number that no field can hold leaves its own empty: the preset's counts, and is said."""
    too_large = []
    for name, value in values_of(config).items():
        if isinstance(value, int | float) and value > LARGEST_NUMBER:
            too_large.append(f"{name} = {value}")
            value = None
        st.session_state[key_of(name)] = list(value) if isinstance(value, tuple) else value
    st.session_state[PROBLEM] = None
    if too_large:
        st.session_state[PROBLEM] = (
            f"This form takes numbers up to {LARGEST_NUMBER}, so the preset's value stands in for "
            f"{', '.join(too_large)}. The command line takes larger ones."
        )


def fill_from_preset() -> None:
    fill(PRESETS[st.session_state["preset"]].config)


def fill_from_run(run: Run) -> None:
    """Callback: the run's settings, as the start of a what-if."""
    preset = run.request.get("preset")
    st.session_state["preset"] = preset if preset in PRESETS else default_preset()
    fill(run.config)


def default_preset() -> str:
    return "quick" if _shared.default_dataset() == "mnist" else "smoke"


@st.cache_data(show_spinner=False)
def preset_words(name: str) -> str:
    """As in a list: "quick, ~2 min"."""
    return f"{name}, ~{sentences.duration(estimate(PRESETS[name].config, device=expected_device()).seconds)}"


def begin() -> None:
    """Once per session, and whenever a link asks for it: preset and fields from the address, else those of the open
    run where it is one's own, else the default.
    """
    asked = _links.asked_configuration()
    if key_of("seed") in st.session_state and asked in ({}, st.session_state.get("asked")):
        return
    st.session_state["asked"] = dict(asked)
    st.session_state.pop(PARENT, None)
    preset = asked.pop("preset", default_preset())
    if not st.session_state["asked"] and (own := own_run()) is not None:  # after a refresh, most of all
        fill_from_run(own)
        return
    problem: ConfigError | None = None
    try:
        config = find_preset(preset).config
    except ConfigError as error:
        problem = error
        preset = default_preset()
        config = PRESETS[preset].config
    try:
        config = with_overrides(config, [f"{name}={text}" for name, text in asked.items()])
    except ConfigError as error:
        problem = error
    st.session_state["preset"] = preset
    fill(config)
    if problem:
        st.session_state[PROBLEM] = (
            f"The link asks for something that cannot be run, so the preset's values are shown: {in_words(problem)}."
        )


def own_run() -> Run | None:
    """The open run, unless it comes with the project."""
    try:
        run = _shared.find_chosen()
    except RunNotFound:
        return None
    return None if run is None or _shared.is_example(run) else run


def take_procedure(head: str) -> None:
    """Callback: another procedure comes with its own settings as they are by default."""
    if (name := chosen(head)) is not None:
        for setting, value in ProcedureConfig(name=name).model_dump(exclude={"name"}).items():
            st.session_state[key_of(f"{head}.{setting}")] = value


def take_attack() -> None:
    """Callback: what a file is to one attack it is not to another."""
    st.session_state[key_of("attack.file")] = ""


def take_dataset() -> None:
    """Callback: another data set may have fewer classes and images."""
    dataset = chosen("dataset")
    if (classes := len(class_names(dataset))) and chosen("threat.target_class") >= classes:
        st.session_state[key_of("threat.target_class")] = 0
    images = training_images(dataset)
    if images and given("data.train_size") + given("data.validation_size") > images:
        train = max(100, 2 * images // 3)
        st.session_state[key_of("data.train_size")] = train
        st.session_state[key_of("data.validation_size")] = max(50, images - train)
        st.session_state[key_of("training.batch_size")] = min(given("training.batch_size"), train)


# --- reading it ---


def overrides() -> list[str]:
    """The form's fields that differ from the preset, as --set takes them."""
    return changes({name: chosen(name) for name in NAMES}, PRESETS[st.session_state["preset"]].config)


def query_now() -> str:
    """The query of a link to the form as it stands."""
    if key_of("seed") not in st.session_state:
        begin()
    return f"?{query(st.session_state['preset'], overrides())}"


def config() -> Config:
    """Raises: ConfigError; DatasetUnavailable, of a folder that does not fit."""
    found = with_overrides(PRESETS[st.session_state["preset"]].config, overrides())
    jobs.check(found, runs_root=_shared.runs_root(), data_root=_shared.data_root())
    return found


def in_words(error: Exception) -> str:
    """The error as a form says it: with the field's own label, and what it takes."""
    return "; ".join(_problem_in_words(text) for text in str(error).split("; "))


def mark(error: Exception | None) -> None:
    """What is wrong is said below each field that the error names, too, until the next call."""
    said = str(error or "").split("; ")
    st.session_state[WRONG] = {_field_named(text): _links.plainly(_problem_in_words(text)) for text in said}


def wrong(names: Iterable[str]) -> bool:
    """Whether `mark` found any of these fields wrong."""
    return not st.session_state[WRONG].keys().isdisjoint(names)


def _field_named(text: str) -> str:
    return text.partition(" ")[0].rstrip(":")


def _problem_in_words(text: str) -> str:
    name, (_, found, given) = _field_named(text), text.rpartition(", got ")
    if found and name in NAMES and text.startswith(f"{name}: input should be") and (must := _must_be(name)):
        text = f"{name} must be {must}, got {given}"
    return _NAMED.sub(_label, text)


def _label(named: re.Match[str]) -> str:
    name = named[0]
    return wording.field_name(name).partition(" (")[0] if name in NAMES else name


def _must_be(name: str) -> str:
    """ "a number between 0 and 1"; "" of what is no number."""
    field, annotation = _field(name)
    kind = {int: "a whole number", float: "a number"}.get(annotation, "")
    limits = {word: getattr(each, word) for each in field.metadata for word in _LIMITS if hasattr(each, word)}
    limits = {word: f"{limit:{',d' if annotation is int else 'g'}}" for word, limit in limits.items()}
    if {"ge", "le"} <= set(limits):
        return kind and f"{kind} between {limits['ge']} and {limits['le']}"
    return kind and f"{kind} {' and '.join(f'{_LIMITS[word]} {limit}' for word, limit in limits.items())}".strip()


# --- its widgets ---


def widget(name: str) -> None:
    """The widget of one field. `config` checks what comes of it."""
    field, annotation = _field(name)
    about, words = field.description or name.rpartition(".")[2], partial(value_words, name)
    options: dict[str, Any] = dict(
        label=wording.field_name(name), key=key_of(name), help=f"{about} (`{name}`)", persist_state="session"
    )
    if name == "controls":
        st.pills(options=list(wording.CONTROL_NAMES), selection_mode="multi", format_func=words, **options)
    elif name == "dataset":
        st.selectbox(options=known_datasets(), format_func=words, on_change=take_dataset, **options)
    elif name == "threat.target_class":
        dataset = chosen("dataset")
        names = class_names(dataset)
        known = range(max(len(names) or 10, chosen(name) + 1))
        st.selectbox(options=list(known), format_func=lambda k: class_in_words(dataset, k, names), **options)
    elif name in HEADS:
        unset = [None] if name in OPTIONAL else []
        options |= dict(placeholder="as the victims")
        st.selectbox(
            options=[*unset, *PROCEDURES], format_func=words, on_change=take_procedure, args=(name,), **options
        )
    elif name == "attack.name":
        choices = list(get_args(annotation))
        st.selectbox(options=choices, format_func=words, on_change=take_attack, **options)
    elif get_origin(annotation) is Literal:
        unset = [None] if name in OPTIONAL else []
        st.selectbox(options=[*unset, *get_args(annotation)], format_func=words, **options)
    elif annotation is bool:
        st.checkbox(**options)
    elif annotation is str:
        st.text_input(placeholder="none", **options)
    else:
        _number(name, annotation, options)
    if problem := st.session_state.get(WRONG, {}).get(name):
        st.markdown(f":small[:red[:material/error: {problem}.]]")  # a caption's grey would wash the red out


def settings_of(head: str) -> list[str]:
    """The fields below a procedure that it takes."""
    return [f"{head}.{setting}" for setting in PROCEDURES.get(chosen(head), {})]


def widgets(names: list[str], *, columns: int) -> None:
    places = st.columns(columns)
    for position, name in enumerate(names):
        with places[position % columns]:
            widget(name)


def known_datasets() -> list[str]:
    found = [*BUILT_IN, *folders(str(_shared.data_root()))]
    return found if chosen("dataset") in found else [*found, chosen("dataset")]


@st.cache_data(ttl=20, show_spinner=False)
def folders(root: str) -> list[str]:
    """Folders under the data root that look like images of one's own: two or more folders in each."""
    return [f"{FOLDER}{name}" for name in datasets.folders(Path(root))]


def class_names(dataset: str) -> tuple[str, ...]:
    """The names of its classes, or none where it cannot be read."""
    try:
        return datasets.class_names(dataset, _shared.data_root())
    except DatasetUnavailable:
        return ()


def training_images(dataset: str) -> int | None:
    if (own := datasets.folder_of(dataset, _shared.data_root())) is None:
        return DATASETS[dataset].training_images
    try:
        return datasets.folder.contents(own).count(train=True)
    except DatasetUnavailable:
        return None


def value_words(name: str, value: Any) -> str:
    """A field's value as its widget shows it."""
    if isinstance(value, tuple | list):
        return ", ".join(value_words(name, each) for each in value) or "none"
    if value is None:
        return "as the victims" if name in OPTIONAL else "–"
    if name == "dataset":
        return wording.dataset_name(value)
    return str(PLAIN.get(name, {}).get(value, value))


def _number(name: str, annotation: Any, options: dict[str, Any]) -> None:
    """Without the field's own limits: a browser that knows them keeps a wrong number to itself.

    An emptied field is None, and the preset's value counts, or the default of a procedure that the preset has not. With
    a value for a default Streamlit would fill that in.
    """
    whole = annotation is int
    limit = LARGEST_NUMBER if whole else float(LARGEST_NUMBER)
    options |= dict(value=None, placeholder="as the victims" if name in OPTIONAL else "as in the preset")
    st.number_input(
        min_value=-limit,
        max_value=limit,
        step=1 if whole else STEPS.get(name, 0.001),
        format=None if whole else "%.6g",
        **options,
    )


def _field(name: str) -> tuple[Any, Any]:
    """(pydantic field, its type without None)."""
    settings: Any = Config
    for part in name.split("."):
        field = settings.model_fields[part]
        settings = next((kind for kind in (field.annotation, *get_args(field.annotation)) if _is_settings(kind)), None)
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    optional = type(None) in get_args(field.annotation)
    return field, kinds[0] if optional else field.annotation


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)
