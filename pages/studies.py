"""Studies: many runs as one heat map (transfer, sweeps, rivals), the runs behind each cell, a study of one's own."""

import json
from typing import Any

import pandas as pd
import streamlit as st

from engine import jobs, records
from engine.config import Config
from engine.figures.study import heat_map
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, RunNotFound
from engine.report import commands, sentences, wording
from engine.status import ACTIVE
from engine.studies import exhibits, kinds, process, results, tables
from engine.studies.process import StudyRecord
from pages import _chosen_study, _links, _new_study, _shared
from pages._chosen_study import choose_study, is_readable, known_studies, size_of
from pages._show import chart

# --- progress of one's own ---


def states(record: StudyRecord) -> tuple[str, ...]:
    """Of the study and of each cell's run: where one of them changes, so does the whole page."""
    runs = [record.run(cell) for cell in record.study.cells()]
    return (record.status().state, *(run.status().state if run.exists() else "" for run in runs))


def is_busy(record: StudyRecord) -> bool:
    """Also while a cancelled study's last run is still stopping."""
    return any(state in ACTIVE for state in states(record))


def progress(record: StudyRecord) -> None:
    """State, ETA, failures. Runs every two seconds while the study is active."""
    if not is_readable(record):  # deleted meanwhile, in another browser
        st.rerun()
    status, seen = record.status(), (record.id, states(record))
    if st.session_state.get("seen study") not in (None, seen):
        st.session_state["seen study"] = seen
        st.rerun()
    st.session_state["seen study"] = seen
    cells = len(record.study.cells())
    done = cells - len(record.unfinished())
    if status.active:
        left = sentences.time_left(status.eta_seconds)
        stopping = ", stopping" if (record.directory / "cancel").exists() else ""
        st.progress(status.fraction, f"{phase_of(record)}{left}{stopping} ({done} of {cells} cells done)")
    elif done < cells:
        error = f": {_links.plainly(status.error)}" if status.error else ""
        st.warning(f"**Partial result: {done} of {cells} cells.** The study is {status.state}{error}.")
    for event in status.events:
        st.warning(_links.plainly(event))


def phase_of(record: StudyRecord) -> str:
    """What is computing now, its cell in the words of the page."""
    status, study = record.status(), record.study
    phase, plan = status.phase or "starting", {"study": study.model_dump(mode="json")}
    for cell in study.cells():
        if cell.run_id == status.detail:
            title = results.cell_title(plan, {"row": cell.row, "column": cell.column})
            phase = phase.replace(study.name_of(cell), title)
    return phase[0].upper() + phase[1:]


def manage(record: StudyRecord) -> None:
    """Cancel while it is active, resume where cells are missing."""
    if record.status().active:
        asked = (record.directory / "cancel").exists()
        st.button(
            "Cancel", on_click=jobs.cancel, args=(record,), disabled=asked, icon=":material/stop:",
            help="Stops the current run and the study. Finished cells stay, and the study can be continued later.",
        )  # fmt: skip
    elif record.unfinished():
        st.button(
            "Resume", icon=":material/resume:",
            on_click=_new_study.start, args=(record.study, record.request.get("preset")),
            help="Computes the missing cells. Finished ones, and finished stages of others, are reused.",
        )  # fmt: skip


def deletion(record: StudyRecord) -> None:
    with st.popover("Delete this study", icon=":material/delete:"):
        st.markdown("Delete the study? Its runs stay, and can be deleted on the Runs page.")
        st.button("Yes, delete it", on_click=delete, args=(record,))


def delete(record: StudyRecord) -> None:
    try:
        process.delete(record)
    except (OSError, ValueError) as error:
        st.session_state["studies problem"] = f"The study could not be deleted: {error}."


# --- results ---


def show(found: dict[str, Any], *, arrived: bool) -> None:
    finished, cells = results.finished(found)
    st.caption(question(found))
    kind = found["study"]["kind"]
    if kind.startswith(kinds.REPRODUCE) and not results.has_the_papers_settings(found):
        st.warning(f"{'Small scale, for CPUs: not' if kind.endswith('small') else 'Not'} the authors' setting.")
    left, right = st.columns([3, 2], gap="large")
    key, options = _chosen_study.cell_key(found["id"]), list(range(len(found["cells"])))
    if arrived:
        _links.check(cell=options)
    if st.session_state.get(key) not in options:
        st.session_state[key] = next((k for k in options if found["cells"][k]["drop"]), 0)
    cell = found["cells"][st.session_state[key]]
    with left:
        st.header("Relative drop of the target class's ACR")
        figure = heat_map(found, (cell["row"], cell["column"]))
        chart(figure, f"heat {found['id']}", on_select=select_clicked, selection_mode="points")
        st.caption(
            "1 − ACR(poisoned)/ACR(clean), mean ± standard deviation over pairs of victims of the same seed. Beneath "
            "it the control: random noise of the same ε (L∞) on the same images, trained and certified the same way. "
            "Darker means a larger drop; the colours mean the same in every study. "
            f"{finished} of {cells} cells are complete. The same settings on another machine give numbers that differ "
            "a little. Click a cell for the run behind it."
        )
    with right:
        st.selectbox("Cell", options, format_func=lambda k: results.cell_title(found, found["cells"][k]), key=key)
        cell_panel(found, cell)
    _chosen_study.follow(found["id"], st.session_state[key], arrived=arrived)


def question(found: dict[str, Any]) -> str:
    """What the study asks, and of how many runs of which preset."""
    study, preset = found["study"], found["preset"]
    known = kinds.KINDS.get(study["kind"])
    asked = "Clean victims, poisoned ones and random noise, for each setting and each seed."
    if study["kind"] == "sweep":
        asked = f"Rows: {results.field(study['rows'])}. Columns: {results.field(study['columns'])}."
    elif known is not None:
        asked = known.sentence
    return f"{asked} {size_of(study)} runs" + (f" of the preset {preset}." if preset else ".")


def select_clicked() -> None:
    """Callback of the heat map: the clicked cell is the chosen one."""
    identifier = st.session_state["study"]
    for point in st.session_state[f"heat {identifier}"]["selection"]["points"]:
        if "customdata" in point:
            row, column = point["customdata"]
            found = results_of(known_studies()[identifier])
            st.session_state[_chosen_study.cell_key(identifier)] = row * len(results.names(found, "columns")) + column


def results_of(known: StudyRecord | dict[str, Any]) -> dict[str, Any]:
    return results.of(known) if isinstance(known, StudyRecord) else known


def cell_panel(found: dict[str, Any], cell: dict[str, Any]) -> None:
    """The run behind a cell, and the ways to it."""
    with st.container(border=True):
        st.markdown(f"**{results.cell_title(found, cell)}**")
        if cell["state"] != "not started":
            st.markdown(f"Run `{cell['run']}` ({cell['state']})\n{numbers_of(cell)}")
        try:
            run = records.find(_shared.runs_root(), cell["run"])
        except RunNotFound:
            said = "Not started yet" if cell["state"] == "not started" else "This run is not on this machine"
            st.caption(f"{said}. From the command line:")
            st.code(command_of_cell(found, cell), language=None, wrap_lines=True)
        else:
            run_links(run)


def numbers_of(cell: dict[str, Any]) -> str:
    """What was asked for, and what came out so far: a line of Markdown each."""
    pairs = sentences.several(results.victims(cell), "pair")
    if not results.victims(cell) and (planned := cell.get("victim_seeds")):  # older copies do not say
        pairs = f"{sentences.several(planned, 'pair')} planned"
    lines = [
        f"Poison: {wording.attack_name(cell['attack'])} against "
        f"{wording.PROCEDURE_NAMES[cell['attack_procedure']]} on {wording.ARCHITECTURE_NAMES[cell['surrogate']]}, "
        f"σ = {cell['attack_sigma']:g}, ε = {cell['epsilon']:g} (L∞)",
        f"Victims: {wording.PROCEDURE_NAMES[cell['procedure']]}, {wording.ARCHITECTURE_NAMES[cell['architecture']]}, "
        f"σ = {cell['sigma']:g}, {pairs}, seed {cell['seed']}",
    ]
    if cell["drop"]:
        more = "" if (limits := beyond(cell)) == "–" else f"; {limits} points beyond it (95 %, Student's t)"
        lines += [
            f"Drop in ACR **{sentences.percent(cell['drop'])}**, random noise "
            f"{sentences.percent(cell['control_drop'])}{more}",
            f"ACR (L2, pixel units) {sentences.with_spread(cell['acr_clean'])} clean, "
            f"{sentences.with_spread(cell['acr_poisoned'])} poisoned",
        ]
    if cell["perturbation"]:
        l2, psnr, ssim = tables.visibility(cell)
        lines.append(f"Size of the poison: L2 {l2}, PSNR {psnr} dB, SSIM {ssim}")
    return "\n".join(f"- {line}" for line in lines)


def beyond(cell: dict[str, Any]) -> str:
    return sentences.interval(results.beyond_control(cell))


def overrides_of(found: dict[str, Any], cell: dict[str, Any]) -> list[str]:
    """What the cell's row and column set."""
    points = (found["study"][axis]["points"][cell[name]] for axis, name in (("rows", "row"), ("columns", "column")))
    return [override for point in points for override in point["overrides"]]


def run_links(run: Run) -> None:
    if not run.report:
        _shared.watch_link(run)
        return
    with st.container(horizontal=True):
        for title in ("Certify", "Inspect", "Poison"):
            _shared.run_link(f"pages/{title.lower()}.py", f"Open in {title}", run)


def command_of_cell(found: dict[str, Any], cell: dict[str, Any]) -> str:
    """The run of a cell as a command, from the study's preset, or quick where it has none."""
    preset = found["preset"] if found["preset"] in PRESETS else "quick"
    try:
        config = with_overrides(Config.model_validate(found["study"]["base"]), overrides_of(found, cell))
    except ValueError:
        return "# of an older protocol"
    return commands.command(preset, commands.changes(commands.values_of(config), PRESETS[preset].config))


def rivals(found: dict[str, Any]) -> None:
    st.header("Is bilevel optimisation worth its cost?")
    head, *lines = tables.rivals(found, results.titles)
    table = pd.DataFrame(lines, columns=head)
    st.dataframe(table, hide_index=True, alt="The attacks side by side: drop, transfer, visibility, seconds.")
    st.caption(
        "All at the same ε (L∞). Drop in ACR: mean ± standard deviation over pairs of victims. L2 (pixel units of "
        "[0, 1]), PSNR (decibels) and SSIM: means over poisoned images; more L2, or less PSNR or SSIM, is easier to "
        "see. "
        "Attack s: seconds to compute it; – where the poison was taken from an earlier run."
    )


def table_and_downloads(found: dict[str, Any]) -> None:
    st.header("Every cell")
    cells, percent, number = found["cells"], sentences.percent, sentences.with_spread
    table = pd.DataFrame(
        {
            "cell": [results.cell_title(found, cell) for cell in cells],
            "state": [cell["state"] for cell in cells],
            "drop in ACR, poisoned": [percent(cell["drop"]) for cell in cells],
            "random noise": [percent(cell["control_drop"]) for cell in cells],
            "points beyond random noise (95 %)": [beyond(cell) for cell in cells],
            "victims": [results.victims(cell) for cell in cells],
            "ACR clean (L2)": [number(cell["acr_clean"]) for cell in cells],
            "ACR poisoned (L2)": [number(cell["acr_poisoned"]) for cell in cells],
            "seconds": [cell["seconds"] for cell in cells],
            "run": [cell["run"] for cell in cells],
        }
    )
    same = [name for name in ("state", "victims") if len(cells) > 1 and table[name].nunique() == 1]
    table = table.drop(columns=same)
    st.dataframe(
        table, hide_index=True, placeholder="–", alt="A row for each cell of the study with its numbers.",
        column_config={"seconds": st.column_config.NumberColumn(format="%.0f")},
    )  # fmt: skip
    buttons = st.container(horizontal=True)
    markdown = tables.markdown(found)
    buttons.download_button("CSV", tables.csv_text(found), f"{found['id']}.csv", "text/csv")
    buttons.download_button("Markdown", markdown, f"{found['id']}.md", "text/markdown")
    buttons.download_button("JSON", json.dumps(found, indent=1), f"{found['id']}.json", "application/json")
    st.caption(tables.grounds(found))


_shared.chosen_run()
st.title("Studies")
st.markdown(
    "One run answers one question. A study asks the same question for a grid of settings: does the poison carry over "
    "to another training procedure, another network, another σ? How does the drop grow with ε? Does a cheaper attack "
    "do as well?"
)
if problem := st.session_state.pop("studies problem", None):
    st.error(problem, icon=":material/error:")
try:
    arrived = _chosen_study.arrives(known := known_studies())
    chosen = choose_study(known)
    if isinstance(chosen, StudyRecord) and not is_readable(chosen):
        st.warning("What this study was to compute cannot be read: its study.json is damaged or of another version.")
        deletion(chosen)
        chosen = None
    if isinstance(chosen, StudyRecord):
        manage(chosen)
        st.session_state["seen study"] = None  # all is drawn anew: running again at once would only take a toast away
        st.fragment(progress, run_every="2s" if is_busy(chosen) else None)(chosen)
    elif chosen is not None and (note := exhibits.notes().get(chosen["id"])) is not None:
        st.markdown(f"**Finding:** {note.finding}")
    if chosen is not None:
        shown = results_of(chosen)
        show(shown, arrived=arrived)
        if shown["study"]["kind"] == "rivals":
            rivals(shown)
        table_and_downloads(shown)
        if isinstance(chosen, StudyRecord) and not chosen.status().active:
            deletion(chosen)
except (OSError, RunNotFound) as error:
    st.warning(f"A study went away or cannot be read ({error}). Reload the page.")
_new_study.new_study(known_studies())
