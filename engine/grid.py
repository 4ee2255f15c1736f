"""The gallery's grid: finished runs of the quick presets at many settings, among which a reader moves at once.

A point of the grid is an ordinary run: one computed here by anybody, from the app or the command line, belongs to it
as soon as it is finished.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from engine.config import Config
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, run_id

BASES = {preset.config.procedure.name: name for name, preset in PRESETS.items() if name.partition("-")[0] == "quick"}
WHAT_IFS = (  # at quick's own point: what a defender or a weaker attacker would change, each by itself
    "training.squeezing=one-bit",
    "training.squeezing=three-bit",
    "training.squeezing=median",
    "threat.attacker_share=0.5",
    "threat.attacker_share=0.25",
    "threat.poison_fraction=0.5",
    "threat.poison_fraction=0.25",
    "training.fine_tune_epochs=2",
    "attack.sigma=0.25",
)
DIGITS, SIGMAS, EPSILONS = (8, 3, 7, 0, 1, 2, 4, 5, 6, 9), (0.5, 0.25), (0.1, 0.2, 0.05)  # most wanted first


class Point(NamedTuple):
    """Where a run stands in the grid. sigma, epsilon (L∞): pixel units of [0, 1]."""

    procedure: str
    target_class: int
    sigma: float
    epsilon: float

    @property
    def preset(self) -> str:
        return BASES[self.procedure]

    @property
    def overrides(self) -> list[str]:
        """What is set otherwise than in the preset, as --set takes it."""
        return [f"threat.target_class={self.target_class}", f"sigma={self.sigma:g}", f"threat.epsilon={self.epsilon:g}"]


def config_of(point: Point) -> Config:
    """The configuration of the run at a point; a procedure without a quick preset raises KeyError."""
    base = PRESETS[point.preset].config
    threat = base.threat.model_copy(update=dict(target_class=point.target_class, epsilon=point.epsilon))
    return base.model_copy(update=dict(sigma=point.sigma, threat=threat))


def plan(
    procedures: Sequence[str], classes: Sequence[int], sigmas: Sequence[float], epsilons: Sequence[float]
) -> list[Point]:
    """The points that `python -m engine gallery` computes, in its order: one procedure, one class after the other."""
    return [Point(*values) for values in product(procedures, classes, sigmas, epsilons)]


def what_ifs() -> dict[str, Config]:
    """The other runs that `python -m engine gallery` computes: quick with one field changed, by that override."""
    return {override: with_overrides(PRESETS["quick"].config, [override]) for override in WHAT_IFS}


def found(runs: Iterable[Run]) -> Iterator[tuple[Point, Run]]:
    """Those of the runs that are finished and stand in the grid, with their points. Reads little of each."""
    for run in runs:
        point = _stands_at(run)
        if point is not None and (run.directory / "report.json").is_file() and run.status().state == "done":
            yield point, run


def _stands_at(run: Run) -> Point | None:
    raw = run.read_json("config.json") or {}
    try:
        point = Point(raw["procedure"]["name"], raw["threat"]["target_class"], raw["sigma"], raw["threat"]["epsilon"])
        return point if point.procedure in BASES and _id_at(point) == run.id else None
    except (KeyError, TypeError):  # of an older protocol
        return None


@cache
def _id_at(point: Point) -> str:
    return run_id(config_of(point))
