"""A study: several runs as one experiment, a grid of configurations around a base, with one or two axes.

Each cell is an ordinary run of the ordinary queue, so that runs share their stages and a finished cell answers at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from engine import datasets
from engine.config import Config, ConfigError, Settings, arms_of, canonical_json, poison_depends_on
from engine.costs import (
    STARTUP_SECONDS,
    pixel_ratio,
    units_per_second,
    work_of_attack,
    work_of_training,
    work_of_votes,
)
from engine.overrides import with_overrides
from engine.records import run_id, short_hash

MOST_CELLS = 400


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


def _poison_of(config: Config) -> str:
    """Equal for cells that share their poison."""
    return canonical_json([config.model_dump(include={"dataset", "data", "seed"}), poison_depends_on(config)])


def _victims_of(config: Config, arm: str) -> tuple[str, str]:
    """(What the training of an arm's victims depends on, what their votes do)."""
    about = config.model_dump(include={"dataset", "data", "seed", "procedure", "architecture", "sigma", "training"})
    changes: Any = {"clean": None, "random_noise": config.threat.model_dump()}
    trained = [about, config.victim_seeds, arm, changes[arm] if arm in changes else _poison_of(config)]
    sampling = config.certification.model_dump(exclude={"alpha"})
    return canonical_json(trained), canonical_json([trained, sampling, config.threat.target_class])


def seconds_of(study: Study, *, device: str, data_root: Path) -> dict[str, float]:
    """Expected wall seconds of each run, by its id, in the order of computing and with what earlier cells leave.

    Rough: within a factor of two on a machine of the kind that costs was measured on.
    Raises: DatasetUnavailable, of a folder that is not there or does not fit.
    """
    used = {cell.config.dataset for cell in study.cells()}
    shapes = {name: datasets.shape(name, data_root) for name in used}
    classes = {name: len(datasets.class_names(name, data_root)) for name in used}
    seen: set[str] = set()
    seconds: dict[str, float] = {}

    def new(key: str) -> bool:
        fresh = key not in seen
        seen.add(key)
        return fresh

    for cell in study.in_order():
        config, arms = cell.config, arms_of(cell.config)
        training, votes = work_of_training(config), work_of_votes(config, classes=classes[config.dataset])
        units = work_of_attack(config) if "poisoned" in arms and new(_poison_of(config)) else 0.0
        for arm in arms:
            trained, certified = map(new, _victims_of(config, arm))
            units += config.victim_seeds * (training * trained + votes * certified)
        units *= pixel_ratio(config, shapes[config.dataset])
        seconds.setdefault(cell.run_id, STARTUP_SECONDS + units / units_per_second(device))
    return seconds
