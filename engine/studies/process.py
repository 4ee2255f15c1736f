"""A study's directory, and the one process that computes it cell by cell and can be resumed.

The directory says nothing that the runs do not say themselves: runs/studies/<id>/study.json (canonical: its hash is the
id), request.json, status.json, log.txt, cancel.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from engine import datasets, jobs, worker
from engine.costs import expected_device
from engine.records import Record, Run, RunNotFound, the_one
from engine.report.sentences import several
from engine.status import Status, in_words
from engine.studies.study import Cell, Study, seconds_of

POLL = 0.3  # seconds


@dataclass(frozen=True)
class StudyRecord(Record):
    definition = "study.json"

    @property
    def study(self) -> Study:
        try:
            return Study.model_validate_json((self.directory / self.definition).read_bytes())
        except (OSError, ValidationError) as error:
            raise RunNotFound(f"study {self.id} cannot be read: {error}") from error

    @property
    def runs_root(self) -> Path:
        return self.directory.parents[1]

    def run(self, cell: Cell) -> Run:
        return Run(self.runs_root / cell.run_id)

    def unfinished(self) -> list[Cell]:
        """Cells without a whole result, in the order of computing."""
        return [cell for cell in self.study.in_order() if not is_finished(self.run(cell))]


def is_finished(run: Run) -> bool:
    """Whether it is done, with a report of every victim."""
    return run.exists() and run.status().state == "done" and bool((run.report or {}).get("complete"))


def all_studies(runs_root: Path) -> Iterator[StudyRecord]:
    """Every study under a root, in no particular order."""
    folder = runs_root / "studies"
    for directory in folder.iterdir() if folder.is_dir() else ():
        if len(directory.name) == 16 and (record := StudyRecord(directory)).exists():
            yield record


def find(runs_root: Path, identifier: str) -> StudyRecord:
    """The study of this id, or of the one id that begins so. Raises: RunNotFound."""
    return the_one(all_studies(runs_root), identifier, f"study under {runs_root}")


def check(study: Study, *, runs_root: Path, data_root: Path) -> None:
    """As jobs.check, of all cells."""
    for cell in study.cells():
        jobs.check(cell.config, runs_root=runs_root, data_root=data_root)


def submit(study: Study, *, runs_root: Path, data_root: Path, preset: str | None = None) -> StudyRecord:
    """The record of this study: the finished or live one if there is one, else a new process that goes on with it."""
    record = StudyRecord(runs_root / "studies" / study.id)
    jobs.launch(
        record,
        "study-work",
        study.canonical(),
        request={"preset": preset, "data_root": str(data_root.resolve()), "images": _images(study, data_root)},
        finished=lambda: not record.unfinished(),
    )
    return record


def _images(study: Study, data_root: Path) -> dict[str, str]:
    """Fingerprints of its data sets, by name."""
    return {name: datasets.fingerprint(name, data_root) for name in {cell.config.dataset for cell in study.cells()}}


def stop_now(record: StudyRecord) -> None:
    """Stops a study and the run that it has started, waiting for both."""
    status = record.status()
    if not jobs.can_end(status):
        return
    jobs.stop_now(record, grace=jobs.GRACE + 10)  # its process gives the run its own time to stop
    current = Run(record.runs_root / (status.detail or "none"))
    if current.exists() and _is_own(current, record):
        jobs.stop_now(current)


def _is_own(run: Run, record: StudyRecord) -> bool:
    """Whether the study started it, and it is not a run of somebody else's that it waits for as well."""
    return run.request.get("study") == record.id


def delete(record: StudyRecord) -> None:
    """Removes a study, stopping it first. Its runs stay: they are runs like any other."""
    stop_now(record)
    jobs.remove(record)


def work(directory: Path) -> int:
    """The study's own process: submits one cell after the other and waits for each. Returns an exit code."""
    record = StudyRecord(directory.resolve())
    if not record.exists():
        raise RunNotFound(f"{directory} is not a study directory")
    with worker.alone(record):
        status = replace(worker.begin(record), state="running", started=time.time())
        try:
            for status in _steps(record, status):  # noqa: B020 - the latest is the one that ends
                record.write_status(status)
                time.sleep(POLL)
            failed = len(record.unfinished())
            if (record.directory / "cancel").exists():
                status = replace(status, state="cancelled", eta_seconds=None)
            elif failed:
                status = replace(status, state="failed", eta_seconds=None, error=f"{failed} cell(s) have no result")
            else:
                status = replace(status, state="done", phase="done", detail="", fraction=1.0, eta_seconds=0.0)
        except Exception as error:  # whatever it was, the record must say so
            status = replace(status, state="failed", error=in_words(error), eta_seconds=None)
        return worker.end(record, status)


def _steps(record: StudyRecord, status: Status) -> Iterator[Status]:
    """Does the cells, yielding how far the study is a few times a second; ends early once it is to be cancelled."""
    study, request = record.study, record.request
    data_root = Path(request["data_root"])
    expected, speed = seconds_of(study, device=expected_device(), data_root=data_root), Speed()
    order = study.in_order()
    ahead = {cell.run_id: expected[cell.run_id] for cell in record.unfinished()}
    for number, cell in enumerate(order, start=1):
        if cell.run_id not in ahead:
            continue
        if _images(study, data_root) != request["images"]:
            raise datasets.DatasetUnavailable(
                "the images have changed since the study was started, and its cells must be of the same ones: put them "
                "back, or give the new images a folder of another name"
            )
        run = jobs.submit(
            cell.config,
            runs_root=record.runs_root,
            data_root=data_root,
            preset=request.get("preset"),
            study=record.id,
        )
        whole = ahead.pop(cell.run_id)
        phase = f"cell {number} of {len(order)}: {study.name_of(cell)}"
        while (current := jobs.awaited(run)).active:
            if not record.exists() or (record.directory / "cancel").exists():
                if _is_own(run, record):
                    jobs.stop_now(run)
                return
            rest = speed.seconds(sum(ahead.values())) + (current.eta_seconds or speed.seconds(whole))
            done = sum(expected.values()) - sum(ahead.values()) - whole * (1 - current.fraction)
            fraction = min(1.0, max(0.0, done / sum(expected.values())))
            before = jobs.queue_position(run) if current.state == "queued" else 0
            waits = f", queued behind {several(before, 'run')}" if before else ""
            status = replace(
                status, phase=phase + waits, detail=run.id, fraction=fraction, eta_seconds=rest, heartbeat=time.time()
            )
            yield status
        if current.state == "done":  # not counting what it waited for others
            speed.add((current.ended or 0.0) - (current.started or 0.0), whole)
        else:
            event = f"{study.name_of(cell)}: run {run.id} {current.state}" + (
                f", {current.error}" if current.error else ""
            )
            status = replace(status, events=(*status.events, event))
            yield status


@dataclass
class Speed:
    """How long things take here against what was expected of them."""

    took: float = 0.0
    expected: float = 0.0

    def add(self, took: float, expected: float) -> None:
        self.took, self.expected = self.took + took, self.expected + expected

    def seconds(self, expected: float) -> float:
        return expected * (self.took / self.expected if self.expected else 1.0)
