"""`python -m benchmarks`: how fast the engine is beside plain code, a peer and the machine's own limits."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import accuracy, ceilings, comparisons, growth, parts, runs, sequential, startup
from benchmarks.measure import Comparison, Table, compare, machine, parsed, ratios, tell

Rates = dict[str, float]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    what = "in which each side has its turn; of accuracy, victims of each"
    options = parsed(parser, GROUPS, arguments, rounds=5, what=what)
    tell(tables(options.groups, options.rounds), machine() | {"rounds": options.rounds}, options.output)


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
