"""How the engine's cost grows: with draws, images, victims and workers."""

import statistics
from typing import Any

from benchmarks.measure import Side, Table, children, in_turn, median
from engine.costs import workers_for

ALONE = dict(victims=1, images=16, n=1000, workers=1)  # a victim's certification on one worker
TRAINED = dict(procedure="gaussian", victims=1, images=2000, batch_size=200, workers=1)


def axes() -> list[tuple[str, str, dict[str, Any], str, list[int]]]:
    """(What grows, the task, its other settings, the setting that grows, its values)."""
    cores = workers_for("cpu")
    together = ALONE | dict(victims=2 * cores)
    return [
        ("certification with n", "tasks.engine_certification", ALONE, "n", [500, 1000, 2000, 4000]),
        ("certification with images", "tasks.engine_certification", ALONE, "images", [1, 4, 16, 64]),
        ("certification with workers", "tasks.engine_certification", together, "workers", [1, cores, 2 * cores]),
        ("training with images", "tasks.engine_training", TRAINED, "images", [1000, 2000, 3000]),
        ("training with victims", "tasks.engine_training", TRAINED | dict(workers=cores), "victims", [1, 2, 4, 8]),
        ("training with workers", "tasks.engine_training", TRAINED | dict(victims=4), "workers", [1, cores, 2 * cores]),
    ]


def growth(rounds: int) -> Table:
    """Seconds along each axis, beside what they would be in proportion."""
    rows, raw = [], []
    for what, task, settings, axis, values in axes():
        sides = [Side(f"{axis} = {value}", task, settings | {axis: value}, "engine") for value in values]
        with children(sides) as started:
            columns = in_turn(started, rounds)
        for value, seconds in zip(values, columns, strict=True):
            times = statistics.median(seconds) / statistics.median(columns[0])
            rows.append((what, str(value), median(seconds), f"{times:.2f}", f"{value / values[0]:g}"))
            raw.append({"what": what, "axis": axis, "value": value, "seconds": seconds})
    return Table("Growth", ("what", "value", "s", "times the first", "in proportion"), rows, raw)
