"""Poison: choose a threat and a budget, see what it will cost, start it, watch it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlencode

import streamlit as st

from engine import datasets, jobs, records
from engine.certification import radius_cap
from engine.config import Config, ConfigError, Settings, arms_of, field_names, smallest_useful_n, with_overrides
from engine.costs import estimate
from engine.datasets import DATASETS
from engine.presets import PRESETS
from engine.records import Run
from pages import _live, _shared

SECTIONS = {
    "": "Whole experiment",
    "threat": "Threat",
    "data": "Data",
    "attack": "Attack",
    "training": "Victims' training",
}
SECTIONS |= {"certification": "Certification"}
LARGEST_INTEGER = 2**53 - 1  # that a browser's number field can hold
FIRST = ("threat.target_class", "threat.epsilon", "threat.poison_fraction", "sigma", "seed", "victim_seeds", "dataset")
LABELS = {
    "threat.target_class": "Target digit (target_class)",
    "threat.epsilon": "Distortion budget ε (L∞, pixel units of [0, 1])",
    "threat.poison_fraction": "Poison fraction (share of the digit's training images)",
    "sigma": "Noise level σ (standard deviation, pixel units)",
    "seed": "Seed (every random draw follows from it)",
    "victim_seeds": "Victims for each arm (victim seeds)",
    "dataset": "Data set",
}
# --- the form: every field of the configuration is a widget, and a query parameter of the same name ---


def leaves(settings: type[Settings] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic field) of every field that can be chosen."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif name != "protocol_version":
            yield prefix + name, field


def value_of(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def fill_form(config: Config) -> None:
    for name, _ in leaves():
        st.session_state[f"field {name}"] = value_of(config, name)


def fill_form_from_preset() -> None:
    fill_form(PRESETS[st.session_state["preset"]].config)


def begin_form() -> None:
    """Once per session, and whenever a link asks for it: preset and fields from the address, else the default."""
    asked = {name: st.query_params[name] for name in st.query_params if name in ("preset", *field_names())}
    if "field seed" in st.session_state and st.session_state.get("asked", {}) == asked:
        return
    st.session_state["asked"] = asked
    preset = asked.pop("preset", default_preset())
    st.session_state.pop("link problem", None)
    if preset not in PRESETS:
        st.session_state["link problem"] = f"there is no preset {preset[:40]!r}; the presets are {', '.join(PRESETS)}"
        preset = default_preset()
    config = PRESETS[preset].config
    try:
        config = with_overrides(config, [f"{name}={text}" for name, text in asked.items()])
    except ConfigError as error:
        st.session_state["link problem"] = str(error)
    st.session_state["preset"] = preset
    fill_form(config)


def fill_form_from_run(run: Run) -> None:
    """Callback: the run's settings, as the start of a what-if."""
    preset = run.request.get("preset")
    st.session_state["preset"] = preset if preset in PRESETS else default_preset()
    fill_form(run.config)


def default_preset() -> str:
    return "quick" if _shared.default_dataset() == "mnist" else "smoke"


def field_widget(name: str, field: Any) -> None:
    """The widget of one field. The browser's bounds are a help only: `chosen_config` checks everything again."""
    key, help_text = f"field {name}", field.description or name
    label = LABELS.get(name, name.rpartition(".")[2])
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        st.selectbox(label, choices, key=key, help=help_text, persist_state="session")
    elif field.annotation is bool:
        st.checkbox(label, key=key, help=help_text, persist_state="session")
    else:
        low, high = bounds(field)
        whole = field.annotation is int
        st.number_input(
            label,
            min_value=int(low) if whole else float(low),
            max_value=int(high) if whole else float(high),
            step=1 if whole else float_step(name),
            format=None if whole else "%g",
            key=key,
            help=f"{help_text} ({name})",
            persist_state="session",
        )


def bounds(field: Any) -> tuple[float, float]:
    """What the field's own limits allow, as far as a number field of a browser can hold it."""
    low, high = 0.0, float(LARGEST_INTEGER)
    for limit in field.metadata:
        low = max(low, getattr(limit, "ge", low), getattr(limit, "gt", low))
        high = min(high, getattr(limit, "le", high), getattr(limit, "lt", high))
    return low, high


def float_step(name: str) -> float:
    return {"threat.epsilon": 0.01, "threat.poison_fraction": 0.1, "sigma": 0.125}.get(name, 0.001)


def overrides() -> list[str]:
    """The form's fields that differ from the preset, as --set takes them."""
    preset = PRESETS[st.session_state["preset"]].config
    changed = ((name, st.session_state.get(f"field {name}")) for name, _ in leaves())
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in changed
        if value is not None and value != value_of(preset, name)
    ]


def chosen_config() -> Config:
    """Raises: ConfigError."""
    return with_overrides(PRESETS[st.session_state["preset"]].config, overrides())


def start() -> None:
    """Callback of the start button: checks on this side of the wire, then submits."""
    st.session_state.pop("start problem", None)
    try:
        config = chosen_config()
        if not datasets.available(config.dataset, _shared.data_root()):
            raise ConfigError(
                "MNIST is not on this machine: run `python -m engine fetch mnist`, or choose the data set digits "
                "(the preset smoke does)"
            )
        run = jobs.submit(
            config,
            runs_root=_shared.runs_root(),
            data_root=_shared.data_root(),
            preset=st.session_state["preset"],
        )
    except (ConfigError, OSError) as error:
        st.session_state["start problem"] = str(error)
    else:
        _shared.choose(run.id)


def form() -> None:
    st.radio(
        "Preset",
        list(PRESETS),
        captions=[preset.sentence for preset in PRESETS.values()],
        key="preset",
        on_change=fill_form_from_preset,
        persist_state="session",
    )
    fields = dict(leaves())
    with st.container(border=True):
        columns = st.columns(2)
        for position, name in enumerate(FIRST):
            with columns[position % 2]:
                field_widget(name, fields[name])
    with st.expander("Every other setting"):
        st.caption("The same fields, names and bounds as on the command line. Changing the preset sets them all.")
        for section, title in SECTIONS.items():
            names = [n for n in fields if n not in FIRST and n.rpartition(".")[0] == section]
            if not names:
                continue
            st.markdown(f"**{title}**" + (f" (`{section}.`)" if section else ""))
            thirds = st.columns(3)
            for position, name in enumerate(names):
                with thirds[position % 3]:
                    field_widget(name, fields[name])
    preset = PRESETS[st.session_state["preset"]]
    with st.expander(f"How the preset {preset.name} departs from the authors' setting"):
        st.markdown("\n".join(f"- {difference[0].upper()}{difference[1:]}." for difference in preset.departs))


def threat_card(config: Config) -> None:
    threat = config.threat
    with st.container(border=True):
        st.markdown("**Threat model**")
        st.markdown(
            f"- **Knowledge**: the training data and how victims train ({config.procedure.name}, "
            f"σ = {config.sigma:g}); not their weights, and no test image. Works on a surrogate (`{config.attack.surrogate}`).\n"
            f"- **Capability**: changes {threat.poison_fraction:.0%} of the training images of digit "
            f"{threat.target_class}, each pixel by at most ε = {threat.epsilon:g} (L∞, pixel units of [0, 1]).\n"
            "- **Clean-label**: no label changes, no image is added or removed; checked before any victim trains.\n"
            f"- **Goal**: victims that train from scratch on it certify digit {threat.target_class} with a smaller "
            "average certified radius (L2).\n"
            f"- **Controls**: random noise of the same ε, and the poison with its signs shuffled, on the same images."
        )


def before_the_start(config: Config) -> None:
    """Device, seconds, memory, the radius cap: what is known before anything has run."""
    device, settings = _shared.expected_device(), config.certification
    expected = estimate(config, device=device)
    cap = radius_cap(n=settings.n, sigma=config.sigma, alpha=settings.alpha)
    columns = st.columns(3)
    columns[0].metric(
        "Time",
        f"~{_shared.duration(expected.seconds)}",
        help=f"Estimate for this {device.upper()}, if nothing can be reused and nothing else computes. Rough: within a "
        "factor of two.",
    )
    columns[1].metric("Memory", f"~{expected.memory_bytes / 1e9:.1f} GB", help="Estimated peak of the run's process.")
    columns[2].metric(
        "Cap (L2)",
        f"{cap:.3f}",
        help="Radius cap σ·Φ⁻¹(α^(1/n)), pixel units of [0, 1]: no certificate from n draws can be larger, even if all "
        "draws agree.",
    )
    st.caption(
        f"Computes on the {'GPU' if device == 'cuda' else 'CPU'}. Radii cannot exceed σ·Φ⁻¹(α^(1/n)) = {cap:.3f} (L2, "
        f"pixel units of [0, 1]). n = {settings.n} draws for each of "
        f"{settings.target_images} images of digit {config.threat.target_class} and {settings.other_images} of each "
        f"other digit, α = {settings.alpha:g}, {config.victim_seeds} victims in each of {len(arms_of(config))} arms."
    )
    least = smallest_useful_n(settings.alpha)
    if settings.n < 2 * least:
        st.warning(
            f"n = {settings.n} is hardly enough: at α = {settings.alpha:g} fewer than {least} draws certify nothing, "
            "and with so few most points abstain."
        )


def existing(config: Config, shown: Run | None) -> None:
    """Says if this very configuration was run before, and offers the result."""
    try:
        run = records.find(_shared.runs_root(), records.run_id(config))
    except records.RunNotFound:
        return
    state = run.status().state
    if shown is not None and run.directory == shown.directory and not _shared.is_example(run):
        st.info(f"These are the settings of the run above, which is {'active' if state in records.ACTIVE else state}.")
        return
    if state == "done":
        st.info("This very configuration already has a result: starting it again would give the same numbers.")
    elif state in records.ACTIVE:
        st.info(f"This very configuration is {state} now.")
    else:
        st.info(
            f"This very configuration was started before and is {state}. Starting it again reuses what is finished."
        )
        return None
    opened = st.button(
        "Open it", key="open_existing", on_click=_shared.choose, args=(run.id,), icon=":material/open_in_new:"
    )
    if opened and state == "done":
        st.switch_page("pages/certify.py")


def command_of(preset: str, changed: list[str]) -> str:
    return " ".join(["python -m engine run --preset", preset, *(f"--set {shlex.quote(item)}" for item in changed)])


def link_of(preset: str, changed: list[str]) -> str:
    fields = [(name, value) for name, _, value in (item.partition("=") for item in changed)]
    return "/poison?" + urlencode([("preset", preset), *fields])


def run_section(run: Run) -> None:
    status = run.status()
    st.subheader(f"Run {run.id}")
    st.caption(_shared.settings_line(run.config))
    if status.active:
        asked = (run.directory / "cancel").exists()
        st.button(
            "Stop now" if asked else "Cancel",
            key="cancel",
            on_click=_live.cancel,
            args=(run,),
            icon=":material/stop:",
            help="Ends its process."
            if asked
            else "It stops at its next step and keeps what it has; press again to insist.",
        )
    else:
        _live.ended(run, status)
    st.button(
        "Copy its settings into the form", on_click=fill_form_from_run, args=(run,), icon=":material/content_copy:"
    )
    st.fragment(_live.live_view, run_every="1s" if status.active else None)(run)


def fetch_mnist() -> None:
    with st.spinner("Downloading MNIST …"):
        done = subprocess.run(
            [sys.executable, "-m", "engine", "fetch", "mnist", "--data-root", str(_shared.data_root())],
            cwd=jobs.PROJECT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    st.session_state["start problem"] = done.stderr.strip().splitlines()[-1] if done.returncode else None


_shared.need_frame()
st.title("Poison")
st.markdown(
    "Change the training images of one digit imperceptibly, retrain victims **from scratch** on them, and certify them "
    "with randomized smoothing."
)
begin_form()
open_now = _shared.chosen_run()
if open_now is not None and not _shared.is_example(open_now):
    with st.container(border=True):
        run_section(open_now)

settings_column, summary_column = st.columns(2, gap="large")
with settings_column:
    st.subheader("Settings")
    if problem := st.session_state.get("link problem"):
        st.warning(f"The link asks for something that cannot be run, so the preset's values are shown: {problem}.")
    form()
with summary_column:
    st.subheader("Before you start")
    changed = overrides()
    try:
        config: Config | None = chosen_config()
    except ConfigError as error:
        config = None
        st.error(f"These settings cannot be run: {error}.", icon=":material/error:")
    if config is not None:
        before_the_start(config)
        available = datasets.available(config.dataset, _shared.data_root())
        if not available:
            st.warning(
                f"{DATASETS[config.dataset]}, is not on this machine. Download it, or choose the data set digits."
            )
            st.button("Download MNIST (12 MB)", on_click=fetch_mnist, icon=":material/download:")
        existing(config, open_now)
        st.button(
            "Start poisoning", type="primary", on_click=start, disabled=not available, icon=":material/play_arrow:"
        )
    if problem := st.session_state.get("start problem"):
        st.error(f"Nothing was started: {problem}.", icon=":material/error:")
    if config is not None:
        threat_card(config)
        st.markdown("**The same from the command line**")
        st.code(command_of(st.session_state["preset"], changed), language="bash", wrap_lines=True)
        st.markdown("**A link to these settings** (append it to this app's address)")
        st.code(link_of(st.session_state["preset"], changed), language=None, wrap_lines=True)
