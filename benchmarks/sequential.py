"""Draws that certificates need when they stop early, what is lost by that, and the seconds saved.

Votes are simulated, at vote probabilities from several sources. All radii are in units of sigma.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from benchmarks.measure import Table
from engine import certification, datasets, sequential
from engine.experiment.more_draws import certify_again
from engine.records import GALLERY, Run

N, ALPHA = 100_000, 0.001
PRECISIONS = (0.02, 0.05, 0.1)
RADII = np.arange(0.25, 3.01, 0.25)
SHOWN = (1.0, 2.0, 3.0)  # of RADII, with a row of their own
SEQUENCES = 5000  # at each boundary
RUN = Run(GALLERY / "c581efa259fa479f")  # at the authors' scale, with N votes of each image
IMAGES = 10  # certified for their seconds
COLUMNS = (
    *("question", "draws", "n / draws (range)", "fixed n", "sequential", "images worse than stated"),
    *("draws at the boundary", "false there"),
)


def tables(rounds: int) -> Iterator[Table]:
    for title, source in sources().items():
        yield draws(title, [source(np.random.default_rng(seed)) for seed in range(rounds)])
    yield seconds()


def sources() -> dict[str, Callable[[np.random.Generator], np.ndarray]]:
    """Vote probabilities by what they are of: the arms of RUN, and one mixture of easy and hard images."""
    votes = pd.read_parquet(RUN.directory / "certificates.parquet", columns=["arm", "n_top", "n"])
    arms = {
        f"{arm.replace('_', ' ')} victims of run {RUN.id[:5]}, their vote shares": partial(jeffreys, of_arm)
        for arm, of_arm in votes.groupby("arm", sort=False)
    }
    return {**arms, "a mixture: a third 1 − 10^−Uniform(3, 6), two thirds Beta(1.5, 0.35)": mixture}


def jeffreys(votes: pd.DataFrame, generator: np.random.Generator) -> np.ndarray:
    """Vote shares, each smoothed by a draw of its Jeffreys posterior."""
    return generator.beta(votes["n_top"] + 0.5, votes["n"] - votes["n_top"] + 0.5)


def mixture(generator: np.random.Generator) -> np.ndarray:
    return np.concatenate([1 - 10 ** -generator.uniform(3, 6, 500), generator.beta(1.5, 0.35, 1000)])


def draws(title: str, rounds: list[np.ndarray]) -> Table:
    """A row for each precision, for some radii, and one over all radii."""
    rows, of_precisions, of_radii = [], [], []
    for precision in PRECISIONS:
        plan = sequential.looks_for(precision, n=N, alpha=ALPHA)
        stop = partial(sequential.settled, plan=plan, alpha=ALPHA, precision=precision)
        cells, saving = compare(rounds, plan, stop, worth=np.positive, precision=precision)
        of_precisions.append(saving)
        rows.append((f"mean radius to {precision:.0%}", *cells, *boundary(plan, stop, 1.0)))
    plan = sequential.looks(N)
    for radius in RADII:
        stop = partial(sequential.decided, plan=plan, alpha=ALPHA, radius=radius, sigma=1.0)
        cells, saving = compare(rounds, plan, stop, worth=partial(np.less_equal, radius), precision=0)
        of_radii.append(saving)
        if radius in SHOWN:
            rows.append((f"share certified at {radius}", *cells, *boundary(plan, stop, radius)))
    mean = f"{fmean(of_radii):.0f} ({min(of_radii):.0f}–{max(of_radii):.0f} over radii)"
    rows.append((f"mean over the {len(RADII)} radii", "", mean, *[""] * (len(COLUMNS) - 3)))
    what = f"{len(rounds)} rounds of {len(rounds[0])} images, n = {N}, alpha = {ALPHA}"
    return Table(
        f"Draws: {title}; {what}",
        COLUMNS,
        rows,
        [{"savings at precisions": of_precisions, "savings at radii": of_radii}],
    )


def seconds() -> Table:
    """Of certifying some test images again by the clean victim of RUN: with all draws, and with as many as it takes."""
    config, found, table = RUN.config, {}, RUN.need_certificates()
    known = sorted(set(table["image"]))[:IMAGES]
    questions: dict[str, dict[str, Any]] = {
        "all draws": {},
        "radius to 5 %": {"precision": 0.05},
        "certified at σ?": {"radius": config.sigma},
        "certified at 3σ?": {"radius": 3 * config.sigma},
    }
    for title, question in questions.items():
        began = time.perf_counter()
        again = partial(certify_again, RUN, "clean", 0, data_root=datasets.default_root(), n=N, alpha=ALPHA)
        answers = pd.concat(again(images=known, **question))
        found[title] = time.perf_counter() - began, float(answers["draws"].mean())
    whole, _ = found["all draws"]
    rows = [
        (title, f"{drawn:.0f}", f"{N / drawn:.1f}", f"{s:.1f}", f"{whole / s:.1f}")
        for title, (s, drawn) in found.items()
    ]
    columns = ("question", "draws an image", "times fewer", "s", "times faster")
    return Table(
        f"Seconds: {len(known)} test images, the clean victim of run {RUN.id[:5]}, n = {N}", columns, rows, [found]
    )


def compare(
    rounds: list[np.ndarray], plan: sequential.Looks, stop: Callable, *, worth: Callable, precision: float
) -> tuple[tuple[str, ...], float]:
    """(Cells of mean draws and of the mean worth of the radii that n draws and fewer certify, n over mean draws)."""
    results = [follow(p, plan, stop, np.random.default_rng(seed)) for seed, p in enumerate(rounds)]
    savings = [N / draws.mean() for draws, _, _ in results]
    draws, radii, fixed = (np.concatenate(parts) for parts in zip(*results, strict=True))
    worse = worth(radii) < (1 - precision) * worth(fixed)
    saving = N / draws.mean()
    return (
        f"{draws.mean():.0f}",
        f"{saving:.1f} ({min(savings):.1f}–{max(savings):.1f})",
        f"{worth(fixed).mean():.4f}",
        f"{worth(radii).mean():.4f}",
        f"{worse.mean():.2%}",
    ), saving


def boundary(plan: sequential.Looks, stop: Callable, radius: float) -> tuple[str, str]:
    """Cells of mean draws and of false certificates where the true radius is a hair below this one."""
    draws, radii, _ = follow(np.full(SEQUENCES, ndtr(radius) - 1e-12), plan, stop, np.random.default_rng(0))
    return f"{draws.mean():.0f}", f"{(radii >= radius).sum()} of {SEQUENCES}"


def follow(
    p: np.ndarray, plan: sequential.Looks, stop: Callable, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(draws at the stop, radius certified there, radius from all N draws), one each for every vote probability p."""
    n_top, stopped_top, draws = (np.zeros(len(p), dtype=np.int64) for _ in range(3))
    before = 0
    for look in plan.draws:
        n_top += generator.binomial(look - before, p)
        going = np.flatnonzero(draws == 0)
        done = going[stop(n_top[going], draws=int(look)) != 0]
        stopped_top[done], draws[done] = n_top[done], look
        before = look
    radii = sequential.certified_radius(stopped_top, draws=draws, plan=plan, sigma=1.0, alpha=ALPHA)
    return draws, radii, certification.certified_radius(n_top, n=N, sigma=1.0, alpha=ALPHA)
