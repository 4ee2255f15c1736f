"""Summaries of certificate tables: every number on screen comes from these and a saved table, never from a model.

A certificate table has one row per arm, victim and test image, with at least the columns arm, victim, image, label,
weight, selected_class (of the n0 draws), n_top (its votes among n), n, p_lower, radius, prediction (ABSTAIN included).
A run's own has selection_votes and estimation_votes, too, the votes for each class of its n0 and n draws.
`weight` makes a class-stratified sample stand for the whole test set.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from engine.certification import ABSTAIN, lower_confidence_bound, radius_of


@dataclass(frozen=True)
class Estimate:
    """A mean with its approximate 95 % interval over the test images."""

    value: float
    low: float
    high: float


def certificates(selection: np.ndarray, estimation: np.ndarray, *, sigma: float, alpha: float) -> pd.DataFrame:
    """A certificate table's columns that follow from votes, from selected_class on: a row for each of N images.

    Args:
        selection, estimation: int64 [N, K], votes for each class of n0 and of n draws, n the same for all images.
    """
    selected = selection.argmax(axis=1)  # the lower class where two have as many
    counted = pd.DataFrame(
        {
            "selected_class": selected,
            "n_top": estimation[np.arange(len(selected)), selected],
            "n": estimation.sum(axis=1),
            "selection_votes": list(selection),
            "estimation_votes": list(estimation),
        }
    )
    return recertify(counted, sigma=sigma, alpha=alpha)


def recertify(table: pd.DataFrame, *, sigma: float, alpha: float, n: int | None = None, seed: int = 0) -> pd.DataFrame:
    """The table with p_lower, radius and prediction at this alpha and at n of the recorded estimation draws.

    Fewer draws are a random subset of those recorded: the selected class's votes among them are hypergeometric, hence
    exactly as valid as if only n had been drawn. Rows are drawn independently, so arms that saw the same noise are no
    longer paired by it. More draws than recorded cannot be had.
    Raises: ValueError if n is not in [1, recorded n].
    """
    recorded = int(table["n"].iloc[0])
    n = recorded if n is None else n
    if not 1 <= n <= recorded:
        raise ValueError(f"n must be in [1, {recorded}], the draws recorded, got {n}")
    n_top = table["n_top"].to_numpy()
    if n < recorded:
        n_top = np.random.default_rng(seed).hypergeometric(n_top, recorded - n_top, n)
    p_lower = lower_confidence_bound(n_top, n=n, alpha=alpha)
    radius = radius_of(p_lower, sigma=sigma)
    prediction = np.where(radius > 0, table["selected_class"], ABSTAIN)
    return table.assign(n_top=n_top, n=n, p_lower=p_lower, radius=radius, prediction=prediction)


def with_fewer_votes(table: pd.DataFrame, fewer: pd.DataFrame) -> pd.DataFrame:
    """The table, whose estimation_votes are arrays [K], with the votes that belong to `fewer`, recertify's of its rows.

    `fewer` has the selected class's; those of the others are drawn here, as a random subset of the recorded ones.
    """
    rng, rows = np.random.default_rng(0), []
    for row, n, n_top in zip(table.itertuples(), fewer["n"], fewer["n_top"], strict=True):
        others = np.array(row.estimation_votes)
        others[row.selected_class] = 0
        votes = rng.multivariate_hypergeometric(others, n - n_top)
        votes[row.selected_class] = n_top
        rows.append(votes)
    return table.assign(n=fewer["n"].to_numpy(), n_top=fewer["n_top"].to_numpy(), estimation_votes=rows)


def is_correct(table: pd.DataFrame) -> pd.Series:
    """Whether g answers, and with the right class."""
    return table["prediction"] == table["label"]


def correct_radius(table: pd.DataFrame) -> pd.Series:
    """Each row's radius where g is correct, else 0 (abstentions and errors have no radius worth having)."""
    return table["radius"].where(is_correct(table), 0.0)


def average_certified_radius(table: pd.DataFrame) -> float:
    """ACR: weighted mean over all rows of radius·[correct], L2, pixel units. Source: Zhai et al. 2020, Section 5.1."""
    return float(np.average(correct_radius(table), weights=table["weight"]))


def accuracy(table: pd.DataFrame) -> float:
    """Share of points where g answers correctly; an abstention is wrong."""
    return float(np.average(is_correct(table), weights=table["weight"]))


def abstention_rate(table: pd.DataFrame) -> float:
    return float(np.average(table["prediction"] == ABSTAIN, weights=table["weight"]))


def certified_accuracy(table: pd.DataFrame, radii: np.ndarray) -> np.ndarray:
    """Share of points that are correct with radius ≥ r, for each r of radii. "Approximate" in Cohen et al.'s sense:
    each certificate alone holds with probability ≥ 1 − alpha, and nothing corrects for the number of images."""
    correct, radius = is_correct(table).to_numpy(), table["radius"].to_numpy()
    holds = correct[:, None] & (radius[:, None] >= np.asarray(radii)[None, :])
    return np.average(holds, axis=0, weights=table["weight"])


def interval_of_mean(values: pd.Series | np.ndarray, weights: pd.Series | np.ndarray) -> Estimate:
    """Weighted mean with a normal 95 % interval over rows as independent draws, clipped to the range of values."""
    x, w = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    w = w / w.sum()
    mean = float(x @ w)
    half = float(ndtri(0.975) * np.sqrt((w**2 * (x - mean) ** 2).sum()))
    return Estimate(mean, max(mean - half, float(x.min())), min(mean + half, float(x.max())))


def interval_of_share(share: float, count: float) -> Estimate:
    """Wilson's 95 % interval of a share seen in `count` independent points; it never leaves [0, 1]."""
    z = float(ndtri(0.975))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def relative_drop(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 − other/clean, victim by victim (paired by seed); nan where clean is 0 and there is nothing to lose."""
    clean, other = np.asarray(clean, dtype=float), np.asarray(other, dtype=float)
    return np.divide(clean - other, clean, out=np.full_like(clean, np.nan), where=clean > 0)


def interval_of_drop(clean: np.ndarray, other: np.ndarray, weights: np.ndarray) -> Estimate:
    """Mean relative drop over victims with a normal 95 % interval over images as independent draws (delta method).

    Args:
        clean, other: [V, N] correct radii of V pairs of victims at the same N images; clean victims without any radius
            have nothing to lose and are left out.
    Raises: ValueError where that leaves none.
    """
    w = np.asarray(weights, dtype=float) / np.sum(weights)
    kept = clean @ w > 0
    if not kept.any():
        raise ValueError("no clean victim has any radius to lose")
    clean, other = clean[kept], other[kept]
    acr = (clean @ w)[:, None]
    ratio = (other @ w)[:, None] / acr
    slope = ((other - ratio * clean) / acr).mean(axis=0)  # of the mean ratio, in each image's weight
    drop, half = 1 - float(ratio.mean()), float(ndtri(0.975) * np.sqrt(w**2 @ slope**2))
    return Estimate(drop, drop - half, min(drop + half, 1.0))  # nobody loses more than there is


def effective_count(weights: pd.Series | np.ndarray) -> float:
    """Kish's effective number of equally weighted points."""
    w = np.asarray(weights, dtype=float)
    return float(w.sum() ** 2 / (w**2).sum())
