"""Runs: the queue, the history, comparison, export."""

import io
import json
import textwrap
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from engine import datasets, html_report, jobs
from engine.figures.comparison import RUN_STYLE
from engine.records import Run, RunNotFound
from engine.report import citations, commands, sentences, wording
from engine.report.numbers import certificates_csv
from engine.status import ACTIVE
from engine.studies import process
from pages import _comparison, _export, _fork, _form, _links, _live, _shared

# --- queue ---


def states_of(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Ids and states of the active ones: where one of them changes, so does the whole page."""
    return [(row["id"], row["state"]) for row in rows if row["state"] in ACTIVE]


def queue(seen: list[tuple[str, str]]) -> None:
    """Active runs in the order in which they compute. Args: seen: those that the rest of the page shows."""
    rows = _shared.run_rows()
    if states_of(rows) != seen:
        st.rerun()
    active = [row for row in rows if row["state"] in ACTIVE]
    if not active:
        st.caption("Nothing is computing or waiting.")
        return
    for place, row in enumerate(sorted(active, key=lambda row: row["submitted"])):
        run = _shared.run_of(row)
        status = run.status()
        words = "computing" if status.state == "running" else f"position {place} in the queue"
        left = _live.time_left(run, status)
        st.progress(status.fraction, f"{_links.plainly(_shared.row_label(row))}: {words}{left}")
        with st.container(horizontal=True, vertical_alignment="center"):
            _shared.watch_link(run)
            _live.cancel_button(run)


# --- history ---


SHOW = ("My runs", "Of studies", "Examples", "All")


def open_selected(key: str) -> None:
    """Callback of the table: a single ticked row is the open run."""
    ticked = st.session_state[key]["selection"]["rows"]
    if len(ticked) == 1:
        _shared.choose(st.session_state["history ids"][ticked[0]])


def of_studies() -> set[str]:
    """Ids of the runs that one's own studies are made of."""
    readable = []
    for record in process.all_studies(_shared.runs_root()):
        with suppress(RunNotFound):
            readable += record.study.cells()
    return {cell.run_id for cell in readable}


def shown_rows(rows: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """What the filter above the table says, and its rows."""
    cells = of_studies()
    kinds = ["Examples" if row["example"] else "Of studies" if row["id"] in cells else "My runs" for row in rows]
    st.session_state.setdefault("history show", "My runs" if "My runs" in kinds else "All")
    show = str(st.segmented_control("Show", SHOW, required=True, key="history show", label_visibility="collapsed"))
    return show, [row for row, kind in zip(rows, kinds, strict=True) if show in (kind, "All")]


def state_words(row: dict[str, Any]) -> str:
    return row["state"] + (", example" if row["example"] else ", published" if row["published"] else "")


def in_percent(share: float | None) -> int | None:
    """Rounded: a drop's spread over victims is of whole per cents."""
    return None if share is None else round(100 * share)


def first_words(note: str) -> str | None:
    return textwrap.shorten(note, 60, placeholder=" …") or None


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    seeds = [row["seed"] for row in rows]
    if any(seed > _form.LARGEST_NUMBER for seed in seeds if seed):  # which a browser would round
        seeds = [str(seed) for seed in seeds]
    return {
        "name": [("★ " if row["starred"] else "") + (row["name"] or row["preset"] or "own settings") for row in rows],
        "state": [state_words(row) for row in rows],
        "attack": [wording.attack_name(row["attack"] or "") for row in rows],
        "procedure": [wording.PROCEDURE_NAMES[row["procedure"] or ""] for row in rows],
        "class": [None if row["attack"] == "none" else row["target_name"] for row in rows],
        "ε (L∞)": [row["epsilon"] for row in rows],
        "σ": [row["sigma"] for row in rows],
        "seed": seeds,
        "drop": [in_percent(row["drop_poisoned"]) for row in rows],
        "drop sd": [in_percent(row["sd_poisoned"]) for row in rows],
        "noise": [in_percent(row["drop_random_noise"]) for row in rows],
        "noise sd": [in_percent(row["sd_random_noise"]) for row in rows],
        "note": [first_words(row["note"]) for row in rows],
        "started": [_shared.moment(row["submitted"]) for row in rows],
        "architecture": [wording.ARCHITECTURE_NAMES[row["architecture"] or ""] for row in rows],
        "data set": [wording.dataset_name(row["dataset"] or "") for row in rows],
        "victims": [row["victim_seeds"] for row in rows],
        "n": [row["n"] for row in rows],
        "MB": [row["bytes"] / 1e6 for row in rows],
        "id": [row["id"] for row in rows],
    }


def history(everything: list[dict[str, Any]]) -> None:
    show, rows = shown_rows(everything)
    st.caption("Tick a row to open its run. Tick two or more to compare them.")
    columns = columns_of(rows)
    settings = ("attack", "procedure", "class", "ε (L∞)", "σ", "seed", "architecture", "data set", "victims", "n")
    shared = {name: columns[name][0] for name in settings if len(rows) > 1 and len(set(columns[name])) == 1}
    empty = () if any(columns["note"]) else ("note",)
    number, key = st.column_config.NumberColumn, f"history {show}"
    spread = number("±", format="± %.0f %%", help="Standard deviation over pairs of victims of the same seed.")
    st.session_state["history ids"] = [row["id"] for row in rows]
    found = st.dataframe(
        pd.DataFrame({name: values for name, values in columns.items() if name not in empty and name not in shared}),
        hide_index=True,
        key=key,
        placeholder="–",
        on_select=partial(open_selected, key),
        selection_mode="multi-row",
        alt=f"Table of {len(rows)} runs with their settings and the drop in ACR.",
        column_config={
            "ε (L∞)": number(format="%g"),
            "σ": number(format="%g"),
            "drop": number("drop in ACR", format="%.0f %%", help="Of poisoned victims, target class, mean over seeds."),
            "drop sd": spread,
            "noise sd": spread,
            "noise": number(
                "random noise", format="%.0f %%", help="Drop in ACR under random noise of the same ε (L∞)."
            ),
            "victims": number("victims per arm"),
            "n": number(help="Draws for each certificate."),
            "MB": number(format="%.1f", help="On disk."),
        },
    )
    ticked = [rows[place]["id"] for place in found["selection"]["rows"] if place < len(rows)]
    if len(ticked) > 1:
        st.button(
            f"Compare these {len(ticked)} runs", type="primary", icon=":material/compare_arrows:",
            on_click=_fork.compare, args=(*ticked[: len(RUN_STYLE)],),
        )  # fmt: skip
    own = sum(row["bytes"] for row in everything if not row["example"])
    same = f"All of them: {', '.join(f'{name} {value}' for name, value in shared.items())}. " if shared else ""
    st.caption(
        f"{same}{len(rows)} of {len(everything)} runs shown; yours use {own / 1e6:.1f} MB in {_shared.runs_root()} "
        "(stages that runs share are counted for each of them). Drop in ACR: 1 − ACR(arm)/ACR(clean) of the target "
        f"class, L2 radii, victims of the same seed.{not_comparable(rows)}"
    )


def not_comparable(rows: list[dict[str, Any]]) -> str:
    """What to know of drops at different n or α; "" where all are the same."""
    found = [row for row in rows if row["drop_poisoned"] is not None]
    differ = [name for key, name in (("n", "n"), ("alpha", "α")) if len({row[key] for row in found}) > 1]
    if not differ:
        return ""
    return (
        f" These runs have different {' and '.join(differ)}: their drops must not be compared (fewer draws and a "
        "smaller α cap the radii and hide a part of the drop)."
    )


# --- the open run ---


def save_notes(run: Run) -> None:
    notes = {
        "name": str(st.session_state[f"name {run.id}"])[:80],
        "starred": bool(st.session_state[f"star {run.id}"]),
        "note": str(st.session_state[f"note {run.id}"])[:2000],
    }
    try:
        if run.published:
            raise OSError("the run is published, read-only")
        run.write_json("notes.json", notes)
        st.toast("Saved.", icon=":material/save:")
    except OSError as error:
        st.session_state["runs problem"] = f"The note could not be saved: {error}."


def delete(run: Run) -> None:
    try:
        jobs.delete(run)
        _shared.choose("")
        st.toast(f"Run {run.id} is deleted.", icon=":material/delete:")
    except (OSError, ValueError) as error:
        st.session_state["runs problem"] = f"Run {run.id} could not be deleted: {error}."


def open_run_section(run: Run) -> None:
    status = run.status()
    st.caption(sentences.settings_line(run))
    st.markdown(f"State: **{status.state}**" + (f" ({_links.plainly(status.error)})" if status.error else ""))
    links = st.container(horizontal=True)
    with links:
        if run.report:
            _shared.page_link("pages/certify.py", "See results (Certify)")
            _shared.page_link("pages/inspect.py", "See changes (Inspect)")
        if not _shared.is_example(run):
            _shared.page_link("pages/poison.py", "See progress and log (Poison)")
    _fork.family(run)
    _fork.fork_button(run)
    left, right = st.columns([2, 3], gap="large")
    with left:
        if _shared.is_example(run):
            st.caption("An example that comes with the project: it cannot be renamed or deleted.")
        elif run.published:
            notes = run.notes
            st.markdown(":material/lock: **Published**, read-only: it cannot be renamed or deleted here.")
            st.text("\n".join(part for part in (notes["name"], notes["note"]) if part))
        else:
            notes_form(run)
            _fork.publishing(run)
            deletion(run, active=status.active)
    with right:
        exports(run)
        environment(run)


def notes_form(run: Run) -> None:
    """No st.form, which leaves what was typed and not saved in the browser: it would be lost with the page."""
    notes = run.notes
    for field, value in (("name", notes["name"]), ("star", bool(notes["starred"])), ("note", notes["note"])):
        st.session_state.setdefault(f"{field} {run.id}", value)
    with st.container(border=True):
        st.text_input("Name", max_chars=80, key=f"name {run.id}", persist_state="session")
        st.checkbox("Starred", key=f"star {run.id}", persist_state="session")
        st.text_area("Note", max_chars=2000, key=f"note {run.id}", persist_state="session")
        st.button("Save", key=f"save {run.id}", on_click=save_notes, args=(run,), icon=":material/save:")


def deletion(run: Run, *, active: bool) -> None:
    if active:
        st.caption("An active run cannot be deleted: cancel it first, in the queue above.")
        return
    with st.popover("Delete this run", icon=":material/delete:"):
        st.markdown(f"Delete run {run.id} with all its files? This cannot be undone.")
        st.button("Yes, delete it", key=f"delete {run.id}", on_click=delete, args=(run,))


def exports(run: Run) -> None:
    st.markdown("**Export**")
    report, has_certificates = run.report, (run.directory / "certificates.parquet").is_file()
    buttons = st.container(horizontal=True)
    buttons.download_button(
        "report.json", json.dumps(report, indent=1), f"{run.id}-report.json", "application/json",
        disabled=report is None, help="Every number of the run.",
    )  # fmt: skip
    buttons.download_button(
        "Certificates (CSV)", lambda: certificates_csv(run.need_certificates(), run).encode(),
        f"{run.id}-certificates.csv", "text/csv",
        disabled=not has_certificates, help="A row per arm, victim and test image, with its votes.",
    )  # fmt: skip
    buttons.download_button(
        "Report (HTML)", lambda: html_report.write(run, data_root=_shared.data_root()), f"{run.id}.html", "text/html",
        disabled=report is None, help="One file that works offline: figures, images, numbers, threat model, limits.",
    )  # fmt: skip
    if has_images(run):
        for words, enlarged in (("Images (PNG)", False), ("Images enlarged (PNG)", True)):
            buttons.download_button(
                words, partial(_export.mosaic, run, enlarged=enlarged),
                f"{run.id}-images{'-enlarged' * enlarged}.png", "image/png",
                help=f"The first {_export.MOST_IMAGES} changed images: clean, poisoned, and what was added.",
            )  # fmt: skip
    buttons.download_button(
        "Whole run (zip)", lambda: zipped(run.directory), f"{run.id}.zip", "application/zip",
        help="All files: settings, poison, weights, votes, certificates, log.",
    )  # fmt: skip
    st.caption(
        "Single figures: the camera in a figure's corner saves it as SVG. The button below a chart, but in the lesson, "
        "saves its data as CSV."
    )
    st.markdown("**The same from the command line**")
    st.code(commands.command(*commands.asked_for(run)), language=None, wrap_lines=True)
    with st.expander("Cite: whose work this run rests on (BibTeX)", icon=":material/format_quote:"):
        st.code(citations.of_run(run), language=None)


def has_images(run: Run) -> bool:
    """Whether the run changed pixels of images that are on this machine."""
    changed = run.config.attack.traits.changes_pixels and (run.directory / "poison.safetensors").is_file()
    return changed and datasets.available(run.config.dataset, _shared.data_root())


def zipped(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name[0] != ".":  # locks, and files half written
                archive.write(path, Path(directory.name) / path.relative_to(directory))
    return buffer.getvalue()


def environment(run: Run) -> None:
    found = run.environment
    with st.expander("Where these numbers come from (environment)"):
        if not found:
            st.caption("The run has not started, so nothing is recorded yet.")
            return
        table = pd.DataFrame({"what": list(found), "value": [str(value) for value in found.values()]})
        st.dataframe(table, hide_index=True, alt="Versions, device, commit and time of the run.")


_shared.need_frame()
st.title("Runs")
if text := st.session_state.pop("runs problem", None):
    st.error(text)
all_rows = _shared.run_rows()
active_now = states_of(all_rows)
st.header("Queue")
st.fragment(queue, run_every="2s" if active_now else None)(active_now)
st.header("History")
history(all_rows)
st.header("Compare")
try:
    _comparison.comparison(all_rows)
except (OSError, RunNotFound) as problem:
    st.warning(f"One of these runs went away or cannot be read ({problem}). Choose others.")
st.header("The open run")
opened = _shared.chosen_run()
if opened is None:
    st.caption("None. Choose one in the sidebar.")
else:
    st.markdown(f"Run `{opened.id}`")
    try:
        open_run_section(opened)
    except (OSError, RunNotFound) as problem:
        st.warning(f"Run {opened.id} went away or cannot be read ({problem}). Choose another in the sidebar.")
