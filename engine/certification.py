"""CERTIFY of Cohen et al.: from votes under noise to an L2 radius that holds with a stated probability. No torch."""

from numbers import Integral

import numpy as np
from scipy.special import betaincinv, ndtri  # scipy.stats would take a second to import

from engine.config import MOST_DRAWS, smallest_useful_n

ABSTAIN = -1


def lower_confidence_bound(n_top: np.ndarray | int, *, n: int, alpha: float) -> np.ndarray:
    """One-sided Clopper–Pearson bound: P[f(x + noise) = selected class] is below it with probability ≤ alpha.

    Args:
        n_top: of n draws, those that voted for the selected class; any shape.
    Returns: float64 of n_top's shape, in [0, alpha^(1/n)].
    """
    votes = np.asarray(n_top)
    if n < 1 or ((votes < 0) | (votes > n)).any():
        raise ValueError(f"n_top must be in [0, n] and n at least 1, got n_top {n_top} and n {n}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be in (0, 0.5), got {alpha}")
    distinct, where = np.unique(votes, return_inverse=True)  # betaincinv is slow, and counts repeat
    # it is nan at 0 votes, where the bound is 0
    bounds = np.where(distinct > 0, betaincinv(np.maximum(distinct, 1), n - distinct + 1, alpha), 0.0)
    return bounds[where].reshape(votes.shape)


def radius_of(p_lower: np.ndarray, *, sigma: float) -> np.ndarray:
    """L2 radius around x inside which g's answer cannot change, where P[f(x + noise) = selected class] ≥ p_lower.

    Returns: float64 of p_lower's shape, sigma's pixel units; 0 where p_lower ≤ 1/2 and g must abstain.
    Source: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, Theorem 1 with p_B = 1 − p_A.
    """
    return sigma * ndtri(np.maximum(p_lower, 0.5))


def certified_radius(n_top: np.ndarray | int, *, n: int, sigma: float, alpha: float) -> np.ndarray:
    """radius_of the bound that votes give.

    Args:
        n_top: votes for the selected class among n fresh draws; any shape.
        sigma: noise level, standard deviation in pixel units of [0, 1].
        alpha: the radius is too large with probability ≤ alpha, for this one point.
    Returns: float64 of n_top's shape, pixel units, in [0, radius_cap].
    """
    return radius_of(lower_confidence_bound(n_top, n=n, alpha=alpha), sigma=sigma)


def check(*, sigma: float, n0: int, n: int, alpha: float) -> None:
    """Raises ValueError where these settings of CERTIFY could not certify anything."""
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be above 0 and finite, got {sigma}")
    for name, draws in (("n0", n0), ("n", n)):
        if not isinstance(draws, Integral):
            raise ValueError(f"{name} must be a whole number, got {draws!r}")
        if draws > MOST_DRAWS:
            raise ValueError(f"{name} must be at most {MOST_DRAWS}, got {draws}")
    if n0 < 1:
        raise ValueError(f"n0 must be at least 1, got {n0}")
    lower_confidence_bound(0, n=1, alpha=alpha)  # says what alpha may be
    if n < smallest_useful_n(alpha):
        raise ValueError(f"n must be at least {smallest_useful_n(alpha)} at alpha = {alpha}, got {n}")


def radius_cap(*, n: int, sigma: float, alpha: float) -> float:
    """The largest radius that n draws can certify, reached when all vote alike: sigma·Φ⁻¹(alpha^(1/n)), or 0."""
    return float(certified_radius(n, n=n, sigma=sigma, alpha=alpha))
