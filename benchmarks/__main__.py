"""`python -m benchmarks`: how fast the engine is beside plain code, a peer and the machine's own limits."""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import accuracy, ceilings, comparisons, growth, parts, runs, sequential, startup
from benchmarks.measure import Comparison, Table, compare, machine, ratios

Rates = dict[str, float]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="in which each side has its turn; of accuracy, victims of each (default: 5)",
    )
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="also write everything as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        parser.error(f"a group is one of {', '.join(GROUPS)}, got {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    facts = machine() | {"rounds": options.rounds}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    done: dict[str, list[dict[str, Any]]] = {}
    for table in tables(options.groups or list(GROUPS), options.rounds):
        print(table.markdown(), flush=True)
        done[table.title] = table.raw
        if options.output:
            options.output.write_text(json.dumps(facts | {"tables": done}, indent=1))


def tables(groups: list[str], rounds: int) -> Iterator[Table]:
    """The tables of these groups, as each is ready."""
    rates: Rates = {}
    if {"ceilings", *SHARES} & {*groups}:
        rates = ceilings.rates(*ceilings.KINDS if "ceilings" in groups else ceilings.PRODUCTS)
    for name in groups:
        yield from GROUPS[name](rates, rounds)


def against(title: str, comparisons: Callable[[], list[Comparison]], rates: Rates, rounds: int) -> Iterator[Table]:
    for comparison in comparisons():
        yield ratios(title, compare(comparison, rounds), rates)


def bounds(rates: Rates, rounds: int) -> Iterator[Table]:
    yield ceilings.measured(rates)
    yield ceilings.counted(rates)


def what_if(rates: Rates, rounds: int) -> Iterator[Table]:
    yield from SHARES["quick"](rates, rounds)
    yield runs.quick(rounds)


def growing(rates: Rates, rounds: int) -> Iterator[Table]:
    yield growth.growth(rounds)
    yield runs.grid()


SHARES: dict[str, Callable[[Rates, int], Iterator[Table]]] = {
    "certification": partial(against, "Certification", comparisons.certification),
    "training": partial(against, "Training", comparisons.training),
    "attack": partial(against, "Attack", comparisons.attack),
    "quick": partial(against, "Nine victims", comparisons.quick),
}
GROUPS: dict[str, Callable[[Rates, int], Iterator[Table]]] = SHARES | {
    "quick": what_if,
    "accuracy": lambda _rates, rounds: accuracy.tables(rounds),
    "parts": lambda _rates, rounds: parts.tables(rounds),
    "ceilings": bounds,
    "growth": growing,
    "draws": lambda _rates, rounds: sequential.tables(rounds),
    "memory": lambda _rates, _rounds: iter([runs.memory()]),
    "startup": lambda _rates, rounds: iter([startup.startup(rounds)]),
}


if __name__ == "__main__":
    main()
