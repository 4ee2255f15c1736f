"""The live view of a run, read from its directory alone, so that any browser at any time sees the same."""

import re
import subprocess
import sys
import time

import numpy as np
import streamlit as st
from safetensors import SafetensorError

from engine import jobs
from engine.figures.attack import attack_losses
from engine.records import Run
from engine.report import sentences, wording
from engine.status import Status
from pages import _images, _links, _shared
from pages._export import chart_and_data
from pages._show import chart

STATES = {
    "queued": ":material/hourglass_empty: Queued",
    "running": ":material/play_arrow: Running",
    "done": ":material/check_circle: Done",
    "cancelled": ":material/cancel: Cancelled",
    "failed": ":material/error: Failed",
    "lost": ":material/help: Lost",
}

DOUBLE_CLICK = 1.5  # seconds


def live_view(run: Run) -> None:
    """State, progress and what there is so far. Runs once a second while the run is active."""
    status = run.status()
    seen, now = st.session_state.get("seen active"), (run.id, status.state)
    st.session_state["seen active"] = now if status.active else None
    if seen is not None and seen[0] == run.id and seen != now:  # the rest of the page names the state, too
        st.rerun()
    progress(run, status)
    try:
        left, right = st.columns([3, 2])
        with left:
            losses(run)
        with right:
            evolving_poison(run)
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        st.caption(f"Some of the run's files cannot be read just now ({error}).")
    log = run.log_tail()
    if not log:
        return
    with st.expander(f"Log ({len(log.splitlines())} lines)"):
        st.code(log, language=None)
        st.download_button("Download log.txt", log, f"{run.id}-log.txt", "text/plain", key=f"log {run.id}")


def progress(run: Run, status: Status) -> None:
    if status.state == "queued":
        ahead = jobs.queue_position(run)
        st.progress(
            0.0, f"{STATES['queued']}: {ahead} run{'s' * (ahead != 1)} before this one; one run computes at a time"
        )
    elif status.state == "running":
        words = f"{STATES['running']}: {sentences.of_hundred(status.fraction)}, {status.phase}{time_left(run, status)}"
        st.progress(status.fraction, words)
        if status.detail:
            st.caption(_links.plainly(detail_words(run, status.detail)))
    for event in status.events:
        st.warning(_links.plainly(event))


def time_left(run: Run, status: Status) -> str:
    """The end of a run's line of progress."""
    asked = (run.directory / "cancel").exists()
    return ", stopping at its next step" if asked else sentences.time_left(status.eta_seconds)


def detail_words(run: Run, detail: str) -> str:
    """What the process is at; of a victim's training and its votes in words."""
    if (found := re.fullmatch(r"victim (\w+)-(\d+): (epoch \d+ of \d+)", detail)) is not None:
        arm, number, epoch = found.groups()
        victim = f"{int(number) + 1} of {run.config.victim_seeds}"
        return f"Training victims: {arm.replace('_', ' ')}, {victim}, {epoch}"
    if (found := re.fullmatch(r"votes (\w+)-(\d+): (.+)", detail)) is not None:
        arm, number, share = found.groups()
        return f"Certifying victims: {arm.replace('_', ' ')}, {int(number) + 1} of {run.config.victim_seeds}, {share}"
    return detail[0].upper() + detail[1:]


def losses(run: Run) -> None:
    attack, found = wording.attack_of(run.config), run.metrics("attack")
    if run.config.attack.name == "none":
        st.caption("No attack: only clean victims are trained.")
    elif found and found[-1]["steps"] == 1:
        st.caption(f"{attack.name}: made at once, in a single step, so there are no losses to watch.")
    elif found:
        figure = attack_losses(found, run.config.attack.restart_every)
        show = chart if run.status().active else chart_and_data  # a button that is drawn every second flickers
        show(figure, f"losses {run.id}")
        st.caption(
            "Upper loss: the soft radius of the target class, which the attacker drives down. Lower loss: the "
            "surrogate's training loss. Curves that this attack does not have are left out."
        )
    elif run.status().active:
        st.caption("The attack has made no step yet.")


def evolving_poison(run: Run) -> None:
    """A few images as they are now: clean, poisoned, magnified change."""
    evolution = run.tensors("evolution")
    if evolution is None or _images.only_labels(run) or not evolution["delta"].size:
        return
    step, delta = int(evolution["steps"][-1]), evolution["delta"][-1].astype(np.float32)
    x_clean = _images.training_images(run, evolution["indices"])
    if x_clean is None:
        return
    _images.triple_mosaic(x_clean, delta, epsilon=run.config.threat.epsilon, columns=6)
    st.caption(f"Poison after step {step}.")


def ended(run: Run, status: Status) -> None:
    """How it ended, and the way on."""
    report = run.report
    if status.state == "done" and report:
        st.success("Done.", icon=":material/check_circle:")
        st.markdown(sentences.headline(report))
        st.caption(sentences.numbers_line(report))
    elif status.state == "cancelled":
        st.warning("Cancelled. What was finished is kept, labelled as partial.", icon=":material/cancel:")
    else:
        why = _links.plainly(status.error or "no reason was recorded")
        st.error(
            f"{status.state.capitalize()}: {why}. What was finished is kept; the "
            "log below may say more. Resume continues where it stopped.",
            icon=":material/error:",
        )
    if report:
        columns = st.columns(3)
        with columns[0]:
            _shared.page_link("pages/certify.py", "See results (Certify)")
        with columns[1]:
            if run.config.attack.name != "none":
                _shared.page_link("pages/inspect.py", "See changes (Inspect)")
        with columns[2]:
            _shared.page_link("pages/runs.py", "Compare and export (Runs)")
        st.caption(sentences.limits_line(run))


def cancel_button(run: Run) -> None:
    asked = (run.directory / "cancel").exists()
    st.button(
        "Stop now" if asked else "Cancel", key=f"cancel {run.id}", on_click=cancel, args=(run,), icon=":material/stop:",
        help="Ends its process at once."
        if asked
        else "It stops at its next step and keeps what it has. Press again to stop it at once.",
    )  # fmt: skip


def cancel(run: Run) -> None:
    """Callback: the first press asks, the second insists (in a process of its own, so that the page goes on).

    A double click is one press.
    """
    asked = run.directory / "cancel"
    if not asked.exists():
        jobs.cancel(run)
        return
    if time.time() - asked.stat().st_mtime < DOUBLE_CLICK:
        return
    subprocess.Popen(
        [sys.executable, "-m", "engine", "runs", "--runs-root", str(_shared.runs_root()), "--cancel", run.id],
        cwd=jobs.PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
