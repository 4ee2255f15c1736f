"""How long it takes until something can begin, beside what Python and torch take by themselves."""

import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.measure import Side, Table, children, in_turn, spread
from engine.experiment.environment import PROJECT

COMMANDS = {
    "Python alone": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "the command line: --help": ["-m", "engine", "--help"],
    "the command line: presets": ["-m", "engine", "presets"],
    "the command line: a dry run": ["-m", "engine", "run", "--preset", "smoke", "--dry-run"],
    "a run's process: import engine.experiment.protocol": ["-c", "import engine.experiment.protocol"],
}


def startup(rounds: int) -> Table:
    sides = [Side(what, "startup.command", dict(arguments=arguments)) for what, arguments in COMMANDS.items()]
    with children(sides) as started:
        found = in_turn(started, rounds)
    rows, raw = [], []
    for side, seconds in zip(sides, found, strict=True):
        rows.append((side.label, spread(seconds)))
        raw.append({"what": side.label, "seconds": seconds, "median": statistics.median(seconds)})
    return Table("Start", ("what", "s, median (range)"), rows, raw)


def command(*, arguments: list[str]) -> Callable[[], object]:
    """A Python process of its own, from start to end."""
    return lambda: subprocess.run([sys.executable, *arguments], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
