"""`python -m benchmarks.sequential`: draws that certificates need when they stop early, and what is lost by that.

Votes are simulated, at vote probabilities from two sources. All radii are in units of sigma.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import ndtr

from engine import certification, sequential
from engine.records import GALLERY

N, ALPHA = 100_000, 0.001
PRECISIONS = (0.02, 0.05, 0.1)
RADII = np.arange(0.25, 3.01, 0.25)
HEAD = (
    "| question | draws | n / draws (range) | fixed n | sequential | images worse than stated "
    "| draws at the boundary | false there |\n|---|---|---|---|---|---|---|---|"
)


def gallery(generator: np.random.Generator) -> np.ndarray:
    """The gallery's vote shares, each smoothed by a draw of its Jeffreys posterior"""
    votes = pd.concat(pd.read_parquet(path, columns=["n_top", "n"]) for path in sorted(GALLERY.glob("*/*.parquet")))
    return generator.beta(votes["n_top"] + 0.5, votes["n"] - votes["n_top"] + 0.5)


def mixture(generator: np.random.Generator) -> np.ndarray:
    """A third 1 − 10^−Uniform(3, 6), two thirds Beta(1.5, 0.35)"""
    return np.concatenate([1 - 10 ** -generator.uniform(3, 6, 500), generator.beta(1.5, 0.35, 1000)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of simulated votes (default: 5)")
    parser.add_argument("--sequences", type=int, default=20_000, help="at each boundary (default: 20000)")
    options = parser.parse_args()
    for source in (gallery, mixture):
        rounds = [source(np.random.default_rng(seed)) for seed in range(options.rounds)]
        print(
            f"\n{source.__doc__}: {len(rounds)} rounds of {len(rounds[0])} images, n = {N}, alpha = {ALPHA}\n\n{HEAD}"
        )
        for precision in PRECISIONS:
            stop = partial(sequential.settled, n=N, alpha=ALPHA, precision=precision)
            cells = compare(rounds, stop, worth=np.positive, precision=precision) + boundary(
                stop, 1.0, options.sequences
            )
            print(f"| mean radius to {precision:.0%} | {cells} |", flush=True)
        for radius in RADII:
            stop = partial(sequential.decided, n=N, alpha=ALPHA, radius=radius, sigma=1.0)
            cells = compare(rounds, stop, worth=partial(np.less_equal, radius), precision=0)
            print(f"| share certified at {radius} | {cells + boundary(stop, radius, options.sequences)} |", flush=True)


def compare(rounds: list[np.ndarray], stop: Callable, *, worth: Callable, precision: float) -> str:
    """Cells of mean draws, and of the mean worth of the radii that n draws and fewer certify."""
    results = [follow(p, stop, np.random.default_rng(seed)) for seed, p in enumerate(rounds)]
    savings = [N / draws.mean() for draws, _, _ in results]
    draws, radii, fixed = (np.concatenate(parts) for parts in zip(*results, strict=True))
    worse = worth(radii) < (1 - precision) * worth(fixed)
    return (
        f"{draws.mean():.0f} | {N / draws.mean():.1f} ({min(savings):.1f}–{max(savings):.1f}) "
        f"| {worth(fixed).mean():.4f} | {worth(radii).mean():.4f} | {worse.mean():.2%} | "
    )


def boundary(stop: Callable, radius: float, sequences: int) -> str:
    """Cells of mean draws and of false certificates where the true radius is a hair below this one."""
    draws, radii, _ = follow(np.full(sequences, ndtr(radius) - 1e-12), stop, np.random.default_rng(0))
    return f"{draws.mean():.0f} | {(radii >= radius).sum()} of {sequences}"


def follow(p: np.ndarray, stop: Callable, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(draws at the stop, radius certified there, radius from all N draws), one each for every vote probability p."""
    n_top, stopped_top, draws = (np.zeros(len(p), dtype=np.int64) for _ in range(3))
    before = 0
    for look in sequential.looks(N):
        n_top += generator.binomial(look - before, p)
        going = np.flatnonzero(draws == 0)
        done = going[stop(n_top[going], draws=int(look)) != 0]
        stopped_top[done], draws[done] = n_top[done], look
        before = look
    radii = sequential.certified_radius(stopped_top, draws=draws, n=N, sigma=1.0, alpha=ALPHA)
    return draws, radii, certification.certified_radius(n_top, n=N, sigma=1.0, alpha=ALPHA)


if __name__ == "__main__":
    main()
