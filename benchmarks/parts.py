"""Where an upper step of PACD spends its time: its parts by themselves, and how often it takes each."""

import statistics
from collections.abc import Iterator

from benchmarks.measure import Side, Table, children, in_turn, median
from engine.config import AttackConfig
from engine.presets import PRESETS

NAMES = {
    "lower": "lower loss and its gradient",
    "upper": "upper loss and its gradient",
    "graph": "lower gradient whose graph is kept",
    "product": "Hessian-vector product through that graph",
    "cross": "cross term",
}


def counts(config: AttackConfig) -> dict[str, int]:
    """How often an upper step takes each part, of the solvers that the presets have: "adam", or one that draws once."""
    drawn = config.linear_steps if config.linear_solver == "adam" else 1
    products = (2 if config.linear_solver == "adam" else 1) * config.linear_steps + 1
    return {"lower": config.lower_steps, "upper": drawn, "graph": drawn, "product": products, "cross": 1}


def tables(rounds: int) -> Iterator[Table]:
    for preset in ("paper-ga-mnist", "quick"):
        often = counts(PRESETS[preset].config.attack)
        sides = [Side(part, "tasks.engine_part", dict(preset=preset, part=part), "engine") for part in NAMES]
        with children(sides) as started:
            seconds = dict(zip(NAMES, in_turn(started, rounds), strict=True))
        total = sum(often[part] * statistics.median(seconds[part]) for part in NAMES)
        rows = [
            (
                name,
                median([1000 * value for value in seconds[part]]),
                str(often[part]),
                f"{often[part] * statistics.median(seconds[part]) / total:.0%}",
            )
            for part, name in NAMES.items()
        ]
        raw = [{"preset": preset, "part": part, "times": often[part], "seconds": seconds[part]} for part in NAMES]
        title = f"Parts of an upper step of {preset}, {total:.2f} s in all"
        yield Table(title, ("part", "ms", "times in a step", "share"), rows, raw)
