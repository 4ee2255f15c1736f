"""Several runs as one experiment: a grid of configurations, computed cell by cell by one process that can be resumed.

A study is a base configuration and one or two axes; each cell is an ordinary run of the ordinary queue, so that runs
share their stages and a finished cell answers at once. The directory says nothing that the runs do not say themselves:
runs/studies/<id>/study.json (canonical: its hash is the id), request.json, status.json, log.txt, cancel.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from engine import datasets, jobs, records
from engine.config import Config, ConfigError, Settings, arms_of, poison_depends_on
from engine.costs import (
    STARTUP_SECONDS,
    expected_device,
    larger,
    units_per_second,
    work_of_attack,
    work_of_training,
    work_of_votes,
)
from engine.overrides import with_overrides
from engine.records import (
    GALLERY,
    GRID,
    Record,
    Run,
    RunNotFound,
    Status,
    canonical_json,
    run_id,
    short_hash,
    the_one,
    write_atomically,
)
from engine.report.sentences import several

MOST_CELLS = 400
POLL = 0.3  # seconds


class Point(Settings):
    """A place on an axis: its name, and the fields that make it ("field=value")."""

    name: str
    overrides: tuple[str, ...] = ()


class Axis(Settings):
    label: str = ""
    points: tuple[Point, ...] = Field(default=(Point(name=""),), min_length=1)

    def fields(self) -> set[str]:
        return {override.partition("=")[0] for point in self.points for override in point.overrides}


@dataclass(frozen=True)
class Cell:
    row: int
    column: int
    config: Config

    @property
    def run_id(self) -> str:
        return run_id(self.config)


def place_name(kind: str, row: str, column: str) -> str:
    """A cell's name; in transfers the way from what poison was made against to what victims are."""
    return (" → " if kind.startswith("transfer") else " × ").join(name for name in (row, column) if name)


class Study(Settings):
    """A grid: the base with a row's and a column's overrides. Every cell is checked when the study is made."""

    kind: str
    base: Config
    rows: Axis
    columns: Axis = Axis()

    @model_validator(mode="after")
    def _has_a_sound_grid(self) -> "Study":
        for axis in (self.rows, self.columns):
            names = [point.name for point in axis.points]
            if len(set(names)) < len(names):
                raise ValueError(f"points of an axis must differ, got {', '.join(names)}")
        both = self.rows.fields() & self.columns.fields()
        if both:
            raise ValueError(f"rows and columns must set different fields, both set {', '.join(sorted(both))}")
        if len(self.rows.points) * len(self.columns.points) > MOST_CELLS:
            raise ValueError(f"a study has at most {MOST_CELLS} cells")
        for row, column in self._places():
            self._config(row, column)
        return self

    def canonical(self) -> str:
        return canonical_json(self.model_dump(mode="json"))

    @property
    def id(self) -> str:
        return short_hash(self.canonical())

    def cells(self) -> list[Cell]:
        """All cells, row by row."""
        return [Cell(row, column, self._config(row, column)) for row, column in self._places()]

    def in_order(self) -> list[Cell]:
        """All cells in the order in which they are computed: those that share their poison one after the other."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells():
            groups.setdefault(_poison_of(cell.config), []).append(cell)
        return [cell for group in groups.values() for cell in group]

    def name_of(self, cell: Cell) -> str:
        return place_name(self.kind, self.rows.points[cell.row].name, self.columns.points[cell.column].name)

    def _places(self) -> Iterator[tuple[int, int]]:
        return ((r, c) for r in range(len(self.rows.points)) for c in range(len(self.columns.points)))

    def _config(self, row: int, column: int) -> Config:
        return with_overrides(self.base, [*self.rows.points[row].overrides, *self.columns.points[column].overrides])


def checked(**values: Any) -> Study:
    """A study. Raises: ConfigError, one line."""
    try:
        return Study(**values)
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


# --- what a cell shares with others, and what it costs ---


def _poison_of(config: Config) -> str:
    """Equal for cells that share their poison."""
    return canonical_json([config.model_dump(include={"dataset", "data", "seed"}), poison_depends_on(config)])


def _victims_of(config: Config, arm: str) -> str:
    """What an arm's victims and their votes depend on."""
    about = config.model_dump(
        include={"dataset", "data", "seed", "procedure", "architecture", "sigma", "training", "certification"}
    )
    images: Any = {"clean": config.threat.target_class, "random_noise": config.threat.model_dump()}.get(arm)
    return canonical_json([about, config.victim_seeds, arm, _poison_of(config) if images is None else images])


def seconds_of(study: Study, *, device: str, data_root: Path) -> dict[str, float]:
    """Expected wall seconds of each run, by its id, in the order of computing and with what earlier cells leave.

    Rough: within a factor of two on a machine of the kind that costs was measured on.
    """
    seen: set[str] = set()
    seconds: dict[str, float] = {}

    def new(key: str) -> bool:
        fresh = key not in seen
        seen.add(key)
        return fresh

    for cell in study.in_order():
        config, arms = cell.config, arms_of(cell.config)
        victim = work_of_training(config) + work_of_votes(config)
        units = work_of_attack(config) if "poisoned" in arms and new(_poison_of(config)) else 0.0
        units += victim * config.victim_seeds * sum([new(_victims_of(config, arm)) for arm in arms])
        units *= larger(config, datasets.shape(config.dataset, data_root))
        seconds.setdefault(cell.run_id, STARTUP_SECONDS + units / units_per_second(device))
    return seconds


# --- a study's directory, and the process that works on it ---


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
        request={"preset": preset, "data_root": str(data_root.resolve())},
        finished=lambda: not record.unfinished(),
    )
    return record


def stop_now(record: StudyRecord) -> None:
    """Stops a study and its current run, waiting for both."""
    status = record.status()
    if not jobs.can_end(status):
        return
    jobs.stop_now(record, grace=jobs.GRACE + 10)  # its process gives the run its own time to stop
    current = Run(record.runs_root / (status.detail or "none"))
    if current.exists():
        jobs.stop_now(current)


def delete(record: StudyRecord) -> None:
    """Removes a study, stopping it first. Its runs stay: they are runs like any other."""
    stop_now(record)
    jobs.remove(record)


def work(directory: Path) -> int:
    """The study's own process: submits one cell after the other and waits for each. Returns an exit code."""
    record = StudyRecord(directory.resolve())
    if not record.exists():
        raise RunNotFound(f"{directory} is not a study directory")
    status = replace(jobs.begin(record), state="running", started=time.time())
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
        status = replace(status, state="failed", error=jobs.in_words(error), eta_seconds=None)
    return jobs.end(record, status)


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
        run = jobs.submit(
            cell.config,
            runs_root=record.runs_root,
            data_root=data_root,
            preset=request.get("preset"),
        )
        whole, began = ahead.pop(cell.run_id), time.monotonic()
        phase = f"cell {number} of {len(order)}: {study.name_of(cell)}"
        while (current := jobs.awaited(run)).active:
            if not record.exists() or (record.directory / "cancel").exists():
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
        if current.state == "done":
            speed.add(time.monotonic() - began, whole)
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


# --- studies that come with the project ---


def exhibit(record: StudyRecord, results: dict[str, Any], gallery: Path = GALLERY) -> Path:
    """Writes a finished study's results (tables.results) where all can see them, and small copies of its runs.

    Raises: ConfigError, if cells are missing, or a run is there already with numbers of another machine.
    """
    if record.unfinished():
        raise ConfigError(f"study {record.id} is not finished: {len(record.unfinished())} cell(s) have no result")
    new = []
    for run in map(record.run, record.study.cells()):
        shown = next((kept for place in (gallery, gallery / GRID.name) if (kept := Run(place / run.id)).exists()), None)
        if shown is None:
            new.append(run)
        elif shown.need_report()["arms"] != run.need_report()["arms"]:
            raise ConfigError(
                f"run {run.id} is in {gallery.name}/ already, with other numbers: put that one in the place of "
                f"{run.directory}, so that the study and its run say the same"
            )
    for run in new:
        records.exhibit(run, gallery / GRID.name, weights=False)
    path = gallery / "studies" / f"{record.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=1, allow_nan=False))
    return path


def exhibited(gallery: Path = GALLERY) -> list[dict[str, Any]]:
    """The results that come with the project."""
    return [json.loads(path.read_bytes()) for path in sorted((gallery / "studies").glob("*.json"))]
