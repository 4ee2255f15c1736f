"""Seconds of the sides of a comparison, each in a process and environment of its own, in alternating rounds."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.costs import workers_for
from engine.experiment.environment import PROJECT, environment
from engine.jobs import WORKER_ENVIRONMENT
from engine.report.tables import table

# What a process is given beside the variables that none of these sets.
ENVIRONMENTS = {
    "default": {},
    "malloc": {name: value for name, value in WORKER_ENVIRONMENT.items() if name.startswith("MALLOC")},
    "engine": WORKER_ENVIRONMENT,
}
PEER = ("art", "statsmodels")  # modules without which the peer cannot work
QUIET = 0.15  # cores that others may keep busy before a table says so
INSTALL = "pip install adversarial-robustness-toolbox statsmodels"


@dataclass(frozen=True, eq=False)
class Side:
    """One of those that do the same work."""

    label: str
    task: str  # "module.function" of benchmarks: it prepares the work and returns what is timed
    settings: dict[str, Any]
    environment: str = "default"
    part: float = 1.0  # of the work, which this side does; its seconds stand for the whole
    precision: str = "float32"  # of its products, whose rate bounds it

    @property
    def missing(self) -> bool:
        return self.task.startswith("tasks.peer_") and not all(map(importlib.util.find_spec, PEER))


@dataclass(frozen=True)
class Comparison:
    """The same work done by the engine and by others."""

    what: str
    engine: Side
    others: tuple[Side, ...]
    counted: bool = True  # whether its operations are, for each side's share of the ceiling
    busy: int = 0  # other processes that compute meanwhile


@dataclass(frozen=True)
class Table:
    """What a group prints, and what it keeps."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    raw: list[dict[str, Any]]

    def markdown(self) -> str:
        return f"### {self.title}\n\n{table([self.columns, *self.rows])}\n"


def parsed(
    parser: argparse.ArgumentParser,
    groups: Collection[str],
    arguments: list[str] | None,
    *,
    rounds: int,
    what: str,
    at_least: int = 1,
) -> argparse.Namespace:
    """The groups that are asked for (all, where none is named), `rounds` unless it is told how many, and `output`."""
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)} (default: all)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"{what} (default: {rounds})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.groups if name not in groups]:
        parser.error(f"a group is one of {', '.join(groups)}, got {', '.join(unknown)}")
    if options.rounds < at_least:
        parser.error(f"--rounds must be at least {at_least}, got {options.rounds}")
    options.groups = options.groups or list(groups)
    return options


def tell(tables: Iterable[Table], facts: dict[str, Any], output: Path | None) -> None:
    """Prints what the figures depend on, and each table once it is there; output, if any, has all so far as JSON."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    done: dict[str, list[dict[str, Any]]] = {}
    for each in tables:
        print(each.markdown(), flush=True)
        done[each.title] = each.raw
        if output:
            output.write_text(json.dumps(facts | {"tables": done}, indent=1))


class Child:
    """A process that prepares a task, does it once to warm up, and then once for each question."""

    def __init__(self, side: Side) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in WORKER_ENVIRONMENT}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", side.task, json.dumps(side.settings)],
            cwd=PROJECT,
            env=inherited | ENVIRONMENTS[side.environment],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._label, self._part = side.label, side.part
        self._answer()

    def seconds(self) -> float:
        return self._ask("seconds") / self._part

    def flops(self) -> float:
        """Counted in the thread that asks: for work that is done in one."""
        return self._ask("flops") / self._part

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        for own in psutil.Process(self.pid).children(recursive=True):  # they would hold its end of the pipe
            own.kill()
        self._process.kill()  # it waits, or is at work that nobody wants any more
        self._process.communicate()

    def _ask(self, question: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._label} ended with code {self._process.wait()}")
        return float(line)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other work on the machine: so many processes that never pause."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def others(started: list[Child], *, expected: int) -> Iterator[list[float]]:
    """How many cores all that is neither these children nor expected kept busy meanwhile, in a list at the end."""

    def spent() -> float:
        now = psutil.cpu_times()
        own = (psutil.Process(child.pid).cpu_times() for child in started)
        return sum(now) - now.idle - getattr(now, "iowait", 0.0) - sum(each.user + each.system for each in own)

    before, began, found = spent(), time.perf_counter(), list[float]()
    yield found
    found.append(max(0.0, (spent() - before) / (time.perf_counter() - began) - expected))


@contextmanager
def children(sides: list[Side]) -> Iterator[list[Child]]:
    """One after the other they get ready; from then on they only wait."""
    started: list[Child] = []
    try:
        for side in sides:
            started.append(Child(side))
        yield started
    finally:
        for child in started:
            child.close()


def in_turn(started: list[Child], rounds: int) -> list[list[float]]:
    """Seconds of each round, for each child: A B C A B C."""
    each = [[child.seconds() for child in started] for _ in range(rounds)]
    return list(map(list, zip(*each, strict=True)))


def compare(comparison: Comparison, rounds: int) -> dict[str, Any]:
    """Seconds of every round by side, the engine first, and the FLOPs of the side after it, which are the work's."""
    sides = (comparison.engine, *comparison.others)
    present = [side for side in sides if not side.missing]
    with children(present) as started:
        flops = started[1].flops() if comparison.counted else None
        with busy(comparison.busy), others(started, expected=comparison.busy) as elsewhere:
            seconds = dict(zip(present, in_turn(started, rounds), strict=True))
    return {
        "what": comparison.what,
        "sides": [
            {
                "label": side.label,
                "environment": side.environment,
                "precision": side.precision,
                "seconds": seconds.get(side),
            }
            for side in sides
        ],
        "others": elsewhere[0],
        "flops": flops,
    }


def ratios(title: str, found: dict[str, Any], rates: dict[str, float]) -> Table:
    """A row for each side: its seconds, over the engine's in the same round, and its share of the machine's ceiling.

    The share is the time that all cores' ceiling of a side's precision allows for plain code's operations, over the
    side's time: code that saves operations has a larger one. That ceiling is the faster of a product and a convolution.
    """
    rows, engine = [], found["sides"][0]["seconds"]
    for side in found["sides"]:
        seconds, share = side["seconds"], ""
        if seconds is None:
            rows.append((side["label"], side["environment"], f"not installed ({INSTALL})", "", ""))
            continue
        if found["flops"]:
            precision = side["precision"]
            ceiling = max(rates[f"{kind} {precision}, all cores"] for kind in ("GEMM", "convolution"))
            share = f"{found['flops'] / statistics.median(seconds) / ceiling:.0%} ({precision})"
        each = [own / ours for own, ours in zip(seconds, engine, strict=True)]
        rows.append((side["label"], side["environment"], spread(seconds), f"**{spread(each)}**", share))
    columns = ("who", "environment", "s, median (range)", "times the engine's, median (range)", "share of ceiling")
    disturbed = f" (others kept {found['others']:.1f} cores busy)" if found["others"] > QUIET else ""
    return Table(f"{title}: {found['what']}{disturbed}", columns, rows, [found | {"rates": rates}])


def median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    facts = environment("cpu") | {"workers": workers_for("cpu"), "load": os.getloadavg()}
    with contextlib.suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
        facts["flags"] = sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"})
    if importlib.util.find_spec("art"):
        facts["adversarial-robustness-toolbox"] = importlib.metadata.version("adversarial-robustness-toolbox")
    return facts


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
