"""A study of one's own: its question and axes, what it will cost, its start."""

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import streamlit as st

from engine import datasets, paper
from engine.config import ConfigError
from engine.costs import expected_device
from engine.presets import PRESETS
from engine.records import Run
from engine.report import sentences, wording
from engine.studies import kinds, process, results
from engine.studies.process import StudyRecord
from engine.studies.study import Study, seconds_of
from pages import _form, _links, _shared

Known = Mapping[str, StudyRecord | dict[str, Any]]  # studies that are there already, by their ids
SCALES = {"small": "Small, for a CPU", "full": "The authors' setting, for a GPU"}


def start(study: Study, preset: str | None, problem: str = "studies problem") -> None:
    """Callback: submits, and shows it; or says why not, under this key of the session."""
    try:
        wanted = dict.fromkeys(cell.config.dataset for cell in study.cells())
        missing = [name for name in wanted if not datasets.available(name, _shared.data_root())]
        if missing:
            words = ", ".join(datasets.describe(name) for name in missing)
            raise ConfigError(f"not on this machine: {words}. Get it with `python -m engine fetch {missing[0]}`")
        process.check(study, runs_root=_shared.runs_root(), data_root=_shared.data_root())
        record = process.submit(study, runs_root=_shared.runs_root(), data_root=_shared.data_root(), preset=preset)
    except (ConfigError, OSError, ValueError) as error:
        st.session_state[problem] = f"Nothing was started: {error}."
    else:
        open_study(record.id, "Started. [See its progress](#studies).")


class Asked(NamedTuple):
    """What the form says: the study, the preset of its cells (None: the paper's own settings), and the command."""

    study: Study
    preset: str | None
    command: str


def new_study(known: Known) -> None:
    """The form of a study, what it will cost, and its start."""
    st.header("A new study")
    left, right = st.columns(2, gap="large")
    try:
        with left:
            kind = st.selectbox(
                "Question", [*kinds.KINDS, kinds.REPRODUCE], format_func=wording.KIND_NAMES.__getitem__,
                key="new kind", persist_state="session",
            )  # fmt: skip
            asked = of_the_paper() if kind == kinds.REPRODUCE else of_a_kind(kind)
        with right:
            before_the_start(asked.study, asked.preset, known)
    except (ConfigError, datasets.DatasetUnavailable) as error:
        right.error(f"This study cannot be run: {_links.plainly(str(error))}.", icon=":material/error:")
        return
    with right:
        st.markdown("**The same from the command line**")
        st.code(asked.command, language=None, wrap_lines=True)


def of_a_kind(kind: str) -> Asked:
    """The form of a grid around a preset. Raises: ConfigError."""
    st.caption(kinds.KINDS[kind].sentence)
    st.session_state.setdefault("new preset", _form.default_preset())
    preset = st.selectbox(
        "What every cell starts from (preset)", list(PRESETS), key="new preset", persist_state="session"
    )
    st.caption(PRESETS[preset].sentence)
    base = PRESETS[preset].config
    pair = st.columns(2)
    victims = pair[0].number_input(
        "Victims for each arm", 1, 100, base.victim_seeds, key=f"new victims {preset}", persist_state="session"
    )
    seed = pair[1].number_input("Seed", 0, 2**53 - 1, base.seed, key=f"new seed {preset}", persist_state="session")
    with st.expander("Other axes, other settings"):
        how = "FIELD=value,value,… as on the command line; empty: this question's own axis."
        rows = st.text_input("Rows", key="new rows", placeholder="threat.poison_fraction=0.25,0.5,1", help=how)
        columns = st.text_input("Columns", key="new columns", placeholder="threat.epsilon=0.05,0.1,0.2", help=how)
        others = settings_of_all()
    changed = [f"victim_seeds={victims}"] if victims != base.victim_seeds else []
    changed += [f"seed={seed}"] if seed != base.seed else []
    changed += others
    study = kinds.make(
        kind, preset=preset, overrides=changed, rows=rows.strip() or None, columns=columns.strip() or None
    )
    axes = [f"--{name} {shlex.quote(text.strip())}" for name, text in (("rows", rows), ("columns", columns)) if text]
    return Asked(study, preset, command(f"study {kind} --preset {preset}", *axes, settings=changed))


def of_the_paper() -> Asked:
    """The form of any part of the paper's table. Raises: ConfigError."""
    st.caption("Clean victims, poisoned ones and random noise, for each setting of the paper and each seed.")
    scale = st.segmented_control(
        "Scale", SCALES, default="small", required=True, format_func=SCALES.__getitem__, key="new scale",
        persist_state="session",
    )  # fmt: skip
    procedures = st.multiselect(
        "Procedures", paper.PROCEDURES, paper.PROCEDURES, key="new procedures", persist_state="session"
    )
    data = st.multiselect("Data sets", paper.DATASETS, paper.DATASETS[:1], key="new data sets", persist_state="session")
    grid = sorted({sigma for name in data for sigma in paper.SIGMAS[name]})
    sigmas = st.multiselect(
        "σ", grid, [0.5] if 0.5 in grid else grid, key=f"new sigmas {grid}", persist_state="session"
    )
    pair = st.columns(2)
    seeds = pair[0].number_input("Seeds of the whole protocol", 1, 100, 1, key="new seeds", persist_state="session")
    victims = pair[1].number_input(
        "Victims for each arm", 1, 100, None, key="new paper victims", persist_state="session", placeholder="its own"
    )
    with st.expander("Other settings"):
        others = settings_of_all()
    study = kinds.reproduction(
        procedures, data, sigmas, scale=str(scale), seeds=seeds, victims=victims, overrides=others
    )
    lists = {"procedures": procedures, "datasets": data, "sigmas": [f"{sigma:g}" for sigma in sigmas]}
    asked = [f"--{name} {','.join(values)}" for name, values in lists.items()]
    asked += [f"--scale {scale} --seeds {seeds}", *([f"--victims {victims}"] if victims else [])]
    return Asked(study, None, command("reproduce", *asked, settings=others))


def settings_of_all() -> list[str]:
    text = st.text_area("Settings for all cells, FIELD=value, one a line", key="new settings")
    return [line.strip() for line in text.splitlines() if line.strip()]


def command(*words: str, settings: list[str]) -> str:
    return " ".join(["python -m engine", *words, *(f"--set {shlex.quote(item)}" for item in settings)])


def open_study(identifier: str, what: str) -> None:
    """Callback: shows it, far above the form, and says so."""
    st.session_state["study"] = identifier
    st.toast(what, icon=":material/arrow_upward:", duration="long")


def before_the_start(study: Study, preset: str | None, known: Known) -> None:
    device, cells = expected_device(), len(study.cells())
    seconds = sum(seconds_of(study, device=device, data_root=_shared.data_root()).values())
    finished = sum(process.is_finished(Run(_shared.runs_root() / cell.run_id)) for cell in study.cells())
    columns = st.columns(2)
    columns[0].metric("Cells, a run each", cells)
    columns[1].metric(
        "Time", f"~{sentences.duration(seconds)}",
        help=f"Estimate for this {device.upper()}, counting what cells reuse of each other. Within a factor of two.",
    )  # fmt: skip
    plan = {"study": study.model_dump(mode="json")}
    for axis in ("rows", "columns"):
        if label := results.label(plan["study"][axis]):
            st.markdown(f"{axis.capitalize()}, {label}: {'; '.join(results.titles(plan, axis))}")
    st.caption(
        f"{computed(finished, cells)} Each cell has one control (random noise), so it trains three arms, not four."
    )
    if study.id in known:
        there(study.id, known)
    st.button(
        "Start the study", icon=":material/play_arrow:", on_click=start, args=(study, preset, "new study problem")
    )
    if problem := st.session_state.pop("new study problem", None):
        st.error(problem, icon=":material/error:")


def computed(finished: int, cells: int) -> str:
    """How many of the cells are there already."""
    if not finished:
        return f"None of the {cells} cells is among your runs yet."
    if finished == cells:
        return f"All {cells} cells are among your runs, so there is nothing left to compute."
    return f"{finished} of the {cells} cells {'is' if finished == 1 else 'are'} among your runs already, and reused."


def there(identifier: str, known: Known) -> None:
    """Says that this study is there already, and leads to it."""
    record = known[identifier]
    said = "You have this study already"
    if not isinstance(record, StudyRecord):
        said = "This study comes with the project, finished"
    elif record.status().active:
        said = "This study is under way"
    if st.session_state.get("study") == identifier:
        st.info(f"{said}: [it is shown above](#studies). Change a setting to start another.")
        return
    st.info(f"{said}. Open it, or change a setting to start another.")
    st.button(
        "Open it",
        key="open_study",
        type="primary",
        icon=":material/open_in_new:",
        on_click=open_study,
        args=(identifier, "Opened. [Go to it](#studies)."),
    )
