"""Poison: choose a threat and a budget, see what it will cost, start it, watch it."""

import subprocess
import sys
from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine import datasets, jobs, records
from engine.certification import radius_cap
from engine.choices import ATTACK_TRAITS
from engine.config import Config, ConfigError, arms_of, smallest_useful_n
from engine.costs import estimate, expected_device
from engine.datasets import DatasetUnavailable
from engine.presets import PRESETS, kept_at_another_sigma
from engine.records import Run
from engine.report import commands, sentences, wording
from engine.status import ACTIVE
from pages import _fork, _form, _links, _live, _poison_file, _shared

FIRST = ["dataset", "threat.target_class", "threat.epsilon", "sigma", "procedure", "attack.name"]
MAY_DO = ["threat.poison_fraction", "threat.attacker_share"]
ASSUMES = ["attack.procedure", "attack.sigma", "attack.surrogate", "attack.augmentation"]
VICTIMS = ["architecture", "training.fine_tune_epochs"]
NOT_CLEAN = "**Not clean-label**"  # anyone can see it, so it stands out
DOWNLOADS = {"mnist": "Download MNIST (12 MB)", "cifar10": "Download CIFAR-10 (162 MB)"}


def below(*sections: str) -> list[str]:
    """The fields of these sections that no other part of the form shows."""
    shown = (*FIRST, *MAY_DO, *VICTIMS, "attack.surrogate", "attack.file", "controls", *_form.HEADS, *_form.OPTIONAL)
    names = (name for name in _form.NAMES if name not in shown and name.rpartition(".")[0] in sections)
    return list(names)


def part(title: str, *names: str) -> DeltaGenerator:
    """A part of the form that is closed at first; its sign says where a field is wrong."""
    return st.expander(title, icon=":material/error:" if _form.wrong(names) else None)


def form() -> None:
    st.selectbox(
        "Preset", list(PRESETS), key="preset", on_change=_form.fill_from_preset, format_func=_form.preset_words,
        persist_state="session", help="With each preset's time on this machine if it is idle, estimated.",
    )  # fmt: skip
    preset = PRESETS[st.session_state["preset"]]
    st.caption(preset.sentence)
    with st.container(border=True):
        _form.widgets(FIRST, columns=2)
        if _form.chosen("attack.name") == "from-file":
            _poison_file.widgets()
    name = _form.chosen("attack.name")
    attack, at_once = wording.ATTACKS[name].name, not ATTACK_TRAITS[name].surrogates
    with part("What the attacker may do", *MAY_DO, "controls"):
        _form.widgets(MAY_DO, columns=2)
        _form.widget("controls")
    its_settings = _form.settings_of("attack.procedure")
    with part("What the attacker assumes", *ASSUMES, *its_settings):
        if at_once:
            st.caption(f"{attack}: uses no surrogate, so it assumes nothing, and these settings do not matter.")
        _form.widgets(ASSUMES, columns=2)
        if its_settings:
            st.markdown(f"**Settings of {wording.PROCEDURE_NAMES[_form.chosen('attack.procedure')]}**, as assumed")
            _form.widgets(its_settings, columns=2)
    own, training = _form.settings_of("procedure"), below("training")
    with part("How victims are trained", *own, *VICTIMS, *training):
        if own:
            st.markdown(f"**Settings of {wording.PROCEDURE_NAMES[_form.chosen('procedure')]}**")
            _form.widgets(own, columns=2)
        st.markdown("**Network and optimisation**")
        _form.widgets(VICTIMS, columns=2)
        _form.widgets(training, columns=2)
    starting = ["attack.file"] if ATTACK_TRAITS[name].may_start_from_file else []
    with part("How the attack computes", *(computing := [*below("attack"), *starting])):
        if at_once:
            st.caption(f"{attack}: made at once, so these settings do not matter.")
        _form.widgets(computing, columns=2)
    with part("Data, certification, seeds", *(rest := below("data", "certification", ""))):
        _form.widgets(rest, columns=2)
    if preset.departs:
        with st.expander(f"How the preset {preset.name} departs from the authors' setting"):
            st.markdown("\n".join(f"- {difference[0].upper()}{difference[1:]}." for difference in preset.departs))


def start() -> None:
    """Callback of the start button: checks on this side of the wire, then submits."""
    submit(_form.config, st.session_state["preset"], _fork.parent_id())


def resume(run: Run) -> None:
    """Callback: a run that did not come to its end is submitted again, and continues where it was."""

    def settings() -> Config:
        jobs.check(run.config, runs_root=_shared.runs_root(), data_root=_shared.data_root())
        return run.config

    submit(settings, run.request.get("preset"), run.request.get("forked_from"))


def submit(settings: Callable[[], Config], preset: str | None, forked_from: str | None) -> None:
    """Starts a run and shows it, or says why not."""
    st.session_state.pop("start problem", None)
    try:
        config = settings()
        if not datasets.available(config.dataset, _shared.data_root()):
            raise ConfigError(
                f"{datasets.describe(config.dataset)}, is not on this machine: run `python -m engine fetch "
                f"{config.dataset}`, or choose the embedded digits (the preset smoke does)"
            )
        run = jobs.submit(
            config,
            runs_root=_shared.runs_root(),
            data_root=_shared.data_root(),
            preset=preset,
            forked_from=forked_from,
        )
    except (ConfigError, DatasetUnavailable, OSError) as error:
        st.session_state["start problem"] = f"Nothing was started: {error}."
    else:
        _shared.choose(run.id)


def before_the_start(config: Config, target: str) -> None:
    """Device, seconds, memory, the radius cap: what is known before anything has run."""
    device, settings = expected_device(), config.certification
    about = config.dataset, _shared.data_root()
    shape, classes = datasets.shape(*about), len(datasets.class_names(*about))
    expected = estimate(config, device=device, shape=shape, classes=classes)
    cap = radius_cap(n=settings.n, sigma=config.sigma, alpha=settings.alpha)
    columns = st.columns(3)
    columns[0].metric(
        "Time, if idle",
        f"~{sentences.duration(expected.seconds)}",
        help=f"Estimate for this {device.upper()} while nothing else runs on it and nothing can be reused. Rough: "
        "within a factor of two.",
    )
    columns[1].metric("Memory", f"~{expected.memory_bytes / 1e9:.1f} GB", help="Estimated peak of the run's process.")
    columns[2].metric(
        "Cap (L2)",
        f"{cap:.3f}",
        help="Radius cap σ·Φ⁻¹(α^(1/n)), pixel units of [0, 1]: no certificate from n draws can be larger, even if all "
        "draws agree.",
    )
    arms = len(arms_of(config))
    st.caption(
        f"Computes on the {'GPU' if device == 'cuda' else 'CPU'}. Radii cannot exceed σ·Φ⁻¹(α^(1/n)) = {cap:.3f} (L2, "
        f"pixel units of [0, 1]). n = {settings.n} draws for each of {settings.target_images} test images of {target} "
        f"and {settings.other_images} of each other class, α = {settings.alpha:g}, {config.victim_seeds} "
        f"victim{'s' * (config.victim_seeds != 1)} in {f'each of {arms} arms' if arms > 1 else 'one arm (clean)'}."
    )
    least = smallest_useful_n(settings.alpha)
    if settings.n < 2 * least:
        st.warning(
            f"n = {settings.n} is hardly enough: at α = {settings.alpha:g} fewer than {least} draws certify nothing, "
            "and with so few most points abstain."
        )


def existing(config: Config) -> tuple[Run | None, str]:
    """The run of this very configuration, if there is one, and its state."""
    try:
        run = records.find(_shared.runs_root(), records.run_id(config))
    except records.RunNotFound:
        return None, ""
    return run, run.status().state


def offer(run: Run, state: str, shown: Run | None) -> None:
    if shown is not None and run.directory == shown.directory and not _shared.is_example(run):
        st.info(f"These are the settings of the run above, which is {'active' if state in ACTIVE else state}.")
        return
    if state == "done":
        st.info(
            "A run with exactly these settings is finished"
            + (
                ", an example. Computing it here would give the same numbers (on another machine, nearly the same)."
                if _shared.is_example(run)
                else ", and is not computed twice."
            )
        )
    elif state in ACTIVE:
        st.info(f"A run with exactly these settings is {state} now.")
    else:
        st.info(f"A run with exactly these settings is {state}. Starting it again continues where it stopped.")
        return
    opened = st.button(
        "Open it",
        key="open_existing",
        on_click=_shared.choose,
        args=(run.id,),
        type="primary",
        icon=":material/open_in_new:",
    )
    if opened and state == "done":
        _shared.go("pages/certify.py")


def run_section(run: Run) -> None:
    status = run.status()
    st.header(_links.plainly(_shared.row_label(_shared.row_of(run) | {"state": "done"})))  # its state is told below
    st.caption(f"Run `{run.id}`. {sentences.settings_line(run)}")
    if not status.active:
        _live.ended(run, status)
    with st.container(horizontal=True):
        if status.active:
            _live.cancel_button(run)
        elif status.state != "done":
            st.button(
                "Resume",
                key="resume",
                type="primary",
                on_click=resume,
                args=(run,),
                icon=":material/resume:",
                help="Continues from the last checkpoint. Nothing that is finished is computed again.",
            )
        st.button("Copy its settings into the form", on_click=_fork.fork, args=(run,), icon=":material/content_copy:")
    st.fragment(_live.live_view, run_every="1s" if status.active else None)(run)


def fetch(dataset: str) -> None:
    with st.spinner("Downloading …"):
        done = subprocess.run(
            [sys.executable, "-m", "engine", "fetch", dataset, "--data-root", str(_shared.data_root())],
            cwd=jobs.PROJECT,
            capture_output=True,
            text=True,
        )
    said = done.stderr.strip().splitlines() or ["the download ended without a word"]
    st.session_state["start problem"] = f"The download failed: {said[-1]}." if done.returncode else None


def availability(dataset: str) -> bool:
    """Whether the data set is on this machine; says what to do where it is not."""
    available = datasets.available(dataset, _shared.data_root())
    if not available:
        words = datasets.describe(dataset)
        st.warning(f"{words[0].upper()}{words[1:]}, is not on this machine. Download it, or choose another data set.")
        if dataset in DOWNLOADS:
            st.button(DOWNLOADS[dataset], on_click=fetch, args=(dataset,), icon=":material/download:")
    return available


def nothing_changes(config: Config) -> str:
    """The setting that leaves the attacker nothing, in words; "" where none does."""
    if config.attack.name == "none" or config.attack.traits.changes_labels:
        return ""
    return "ε" if not config.threat.epsilon else "Poison fraction" if not config.threat.poison_fraction else ""


def threat_card(config: Config, target: str) -> None:
    """Args: target: the target class in words."""
    text = "\n".join(f"- {line}" for line in sentences.threat_model(config, target))
    with st.container(border=True):
        st.markdown("**Threat model**")
        st.markdown(text.replace(NOT_CLEAN, f":red[:material/visibility: {NOT_CLEAN}]"))


def summary(config: Config) -> None:
    """What will happen, what it will take, and the button that starts it."""
    target = datasets.class_in_words(config.dataset, config.threat.target_class, _form.class_names(config.dataset))
    before_the_start(config, target)
    if said := kept_at_another_sigma(st.session_state["preset"], config):
        st.info(f"{said[0].upper()}{said[1:]}.")
    if name := nothing_changes(config):
        st.info(f"{name} = 0 changes nothing: poisoned victims would be clean ones.")
    available = availability(config.dataset)
    run, state = existing(config)
    if run is not None:
        offer(run, state, open_now)
    if run is None or state != "done":
        st.button(
            "Start poisoning", on_click=start, disabled=state in ACTIVE or not available, type="primary",
            icon=":material/play_arrow:",
        )  # fmt: skip
    elif _shared.is_example(run):
        st.button("Compute it here all the same", on_click=start, disabled=not available, icon=":material/play_arrow:")
    if problem := st.session_state.get("start problem"):
        st.error(problem, icon=":material/error:")
    threat_card(config, target)
    preset, changed = st.session_state["preset"], _form.overrides()
    st.markdown("**The same from the command line**")
    st.code(commands.command(preset, changed), language=None, wrap_lines=True)


_shared.need_frame()
st.title("Poison")
st.markdown(
    "Change the training images of one class by at most ε, retrain victims **from scratch** on them, and certify them "
    "with randomized smoothing."
)
open_now = _shared.chosen_run()
_form.begin()
if (own := _form.own_run()) is not None:
    # its settings are to be changed: below a whole result nobody would see the form
    forking = (parent := _fork.parent_id()) is not None and own.request.get("forked_from") != parent
    with st.expander(f"The open run, {own.status().state}") if forking else st.container(border=True):
        run_section(own)

wanted: Config | None = None
problem: Exception | None = None
try:
    if _form.chosen("attack.name") != "from-file" or _form.chosen("attack.file"):
        wanted = _form.config()
except (ConfigError, DatasetUnavailable) as error:
    problem = error
_form.mark(problem)
settings_column, summary_column = st.columns(2, gap="large")
with settings_column:
    st.header("Settings")
    if of_link := st.session_state.get(_form.PROBLEM):
        st.warning(_links.plainly(of_link))
    _fork.what_changed()
    form()
with summary_column:
    st.header("Before you start")
    if problem is not None:
        st.error(f"These settings cannot be run. {_links.plainly(_form.in_words(problem))}.", icon=":material/error:")
    elif wanted is None:
        st.info("Bring the poison first: upload its file, or name the run to take it from.")
    else:
        summary(wanted)
