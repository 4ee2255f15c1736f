"""`python -m benchmarks.earlier REVISION`: a run as an earlier commit had it, by that commit and by the files at hand.

Both are whole commands in alternating rounds, each with an empty folder of runs, and both get every setting that the
earlier commit's preset has and today's configuration knows; what is newer keeps its default here, but for --set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Table, machine, spread
from engine import datasets
from engine.experiment.environment import PROJECT
from engine.overrides import field_names

Report = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.earlier", description=__doc__)
    parser.add_argument("revision", help="any name of a commit that git knows")
    parser.add_argument("--preset", default="quick", help="of the earlier commit (default: quick)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="here alone; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    with worktree(options.revision) as then:
        asked = [*settings(then, options.preset), *options.set]
        sides = {options.revision: (then, []), "here": (PROJECT, asked)}
        found: dict[str, list[tuple[float, Report]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, (folder, sets) in sides.items():
                found[name].append(timed(folder, options.preset, sets))
    table = compared(found, options.preset)
    print(table.markdown(), json.dumps(machine()), sep="\n")
    if options.json:
        kept = {"machine": machine(), "preset": options.preset, "set": options.set, "rows": table.raw}
        options.json.write_text(json.dumps(kept, indent=1) + "\n")


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """A folder with the files of a commit, gone afterwards. Raises: SystemExit, where git knows none of this name."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", folder, revision], cwd=PROJECT, capture_output=True, text=True
        )
        if made.returncode:
            sys.exit(made.stderr.strip().splitlines()[-1])
        try:
            yield Path(folder)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=PROJECT, check=True)


def settings(folder: Path, preset: str) -> list[str]:
    """What the preset is there, as --set takes it here."""
    plan = engine(folder, "run", "--preset", preset, "--dry-run")
    known = {name for name in field_names() if name != "protocol_version"}
    return [f"{name}={json.dumps(value)}" for name, value in leaves(json.loads(plan)["config"]) if name in known]


def leaves(values: dict[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """(Field, value) of a configuration; a procedure by its name, and then the settings that it takes."""
    for name, value in values.items():
        if not isinstance(value, dict):
            yield f"{head}{name}", value
        elif name == "procedure":
            yield f"{head}{name}", value["name"]
            yield from ((f"{head}{name}.{part}", v) for part, v in value.items() if v and part != "name")
        else:
            yield from leaves(value, f"{head}{name}.")


def timed(folder: Path, preset: str, sets: list[str]) -> tuple[float, Report]:
    """Seconds of the whole command, and its report."""
    with tempfile.TemporaryDirectory() as runs:
        arguments = [part for item in sets for part in ("--set", item)]
        began = time.perf_counter()
        text = engine(folder, "run", "--preset", preset, *arguments, "--json", "--runs-root", runs)
        return time.perf_counter() - began, json.loads(text)


def engine(folder: Path, *arguments: str) -> str:
    """What the command line of these files prints. Raises: SystemExit with what it said, where it fails."""
    places = {"PACD_DATA": str(datasets.default_root().resolve())}
    command = [sys.executable, "-m", "engine", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | places, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def compared(found: dict[str, list[tuple[float, Report]]], preset: str) -> Table:
    columns = ("files of", "s, median (range)", "of the earlier's time", "ACR clean", "drop, mean over victims")
    first = statistics.median(seconds for seconds, _ in next(iter(found.values())))
    rows, raw = [], []
    for name, runs in found.items():
        seconds, report = [each for each, _ in runs], runs[0][1]
        acr = report["arms"]["clean"]["average_certified_radius"]["target"]["mean"]
        drop = report["relative_drop"]["poisoned"]["mean"]
        share = statistics.median(seconds) / first
        rows.append((name, spread(seconds), f"{share:.2f}", f"{acr:.3f}", f"{drop:.0%}"))
        raw.append({"files": name, "seconds": seconds, "acr_clean": acr, "drop": drop})
    return Table(f"{preset}, as an earlier commit had it", columns, rows, raw)


if __name__ == "__main__":
    main()
