"""Certificates that need fewer draws: the votes are looked at on the way to n, and an image that is settled stops.

The failure probability alpha is spent over the looks: each bounds the vote probability by Clopper and Pearson at its
share of alpha. The shares are fixed beforehand and add up to 1, so with probability ≥ 1 − alpha not one of an image's
bounds is too large, whenever it stops and for whatever reason. A share is in proportion to the draws since the look
before; where a radius is asked to a precision, most images of a good classifier have only votes that agree, so a good
part goes to a look of its own, after just as many draws as such an image needs.
A bound depends on (n_top, draws) at the stop alone: a saved table of counts is enough to recompute every radius.

What stopping may lose is measured against Cohen et al.'s certificate from all n draws at the same alpha. Once it is
known how many of n votes fall to a class, all orders of the votes are equally likely: the votes so far are
hypergeometric and tell, whatever the vote probability, which totals can still be reached. This errs with probability
≤ DOUBT, for one image, and an error costs radius, never soundness.

Beta mixtures (Robbins; plug-in bets in closed form) pay for looks after every single draw: they decide a question with
as many draws, and know a radius later. Clopper–Pearson at a few growing numbers of draws is in Voráček 2024,
arXiv:2406.17830; these looks, their shares and the prediction are not.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaln, log_ndtr, ndtr
from scipy.stats import binom
from torch import Tensor

from engine.certification import ABSTAIN, lower_confidence_bound, radius_cap, radius_of
from engine.certification import check as check_settings
from engine.smoothing import Classifier
from engine.votes import count_votes

DOUBT = 0.05
FIRST_LOOK = 100
GROWTH = 1.2
FOR_UNANIMOUS = 0.4  # of alpha, to the look at which unanimous votes have the precision asked for


class Looks(NamedTuple):
    """When an image's votes are looked at, and of the error probabilities what each look may spend."""

    draws: np.ndarray  # int64 [L], estimation draws so far, increasing; the last is n
    share: np.ndarray  # float64 [L], > 0, adds up to 1

    @property
    def n(self) -> int:
        """The most draws that an image may get."""
        return int(self.draws[-1])

    def share_at(self, draws: int) -> float:
        """Raises: ValueError where there is no look after so many draws."""
        if draws not in self.draws:
            raise ValueError(f"draws must be those of a look ({', '.join(map(str, self.draws))}), got {draws}")
        return float(self.share[self.draws == draws][0])


class Certificates(NamedTuple):
    """Of N images."""

    selected_class: np.ndarray  # int64 [N], which the selection draws chose
    n_top: np.ndarray  # int64 [N], votes for it among the estimation draws
    draws: np.ndarray  # int64 [N], estimation draws that were made
    prediction: np.ndarray  # int64 [N], the smoothed classifier's answers, ABSTAIN included
    radius: np.ndarray  # float64 [N], L2, pixel units


def certify(
    base_classifier: Classifier,
    images: Tensor,
    *,
    sigma: float,
    n0: int,
    n: int,
    alpha: float,
    precision: float | None = None,
    radius: float | None = None,
    num_classes: int,
    block: int = 100,
    screened: bool = False,
    progress: Callable[[float], None] = lambda share: None,
    generator: torch.Generator,
) -> Certificates:
    """Certificates of images [N, C, H, W] under shared noise, each with n draws or, if asked so, as many as it needs.

    With probability ≥ 1 − alpha for each image: g abstains, or its answer is constant within the radius.
    Args:
        precision: as for settled: an image stops once its radius is nearly what n draws would certify.
        radius: or, in its place, L2 as for decided: it stops once it is known whether it is certified there.
        block, screened: as for votes.count_votes.
        progress: is told the share of all N·n draws that have been made.
    Raises: ValueError, as check.
    """
    check(sigma=sigma, n0=n0, n=n, alpha=alpha, precision=precision, radius=radius)
    plan = looks(n) if precision is None else looks_for(precision, n=n, alpha=alpha)

    def enough(n_top: Tensor, draws: int) -> Tensor:
        counts = n_top.cpu().numpy()
        if precision is not None:
            return torch.from_numpy(settled(counts, draws=draws, plan=plan, alpha=alpha, precision=precision))
        assert radius is not None
        return torch.from_numpy(decided(counts, draws=draws, plan=plan, alpha=alpha, radius=radius, sigma=sigma) != 0)

    early = precision is not None or radius is not None

    for votes in count_votes(
        base_classifier,
        images,
        sigma=sigma,
        n0=n0,
        n=n,
        num_classes=num_classes,
        block=block,
        groups=[(torch.arange(len(images)), generator)],
        screened=screened,
        looks=plan.draws.tolist() if early else (),
        settled=enough if early else None,
    ):
        progress(float(votes.estimation.sum()) / (len(images) * n))
    selected, n_top, draws = (t.cpu().numpy() for t in (votes.selected_class, votes.n_top, votes.estimation.sum(dim=1)))
    if early:
        p_lower = lower_bound(n_top, draws=draws, plan=plan, alpha=alpha)
    else:
        p_lower = lower_confidence_bound(n_top, n=n, alpha=alpha)
    radii = radius_of(p_lower, sigma=sigma)
    return Certificates(selected, n_top, draws, np.where(radii > 0, selected, ABSTAIN), radii)


def check(*, sigma: float, n0: int, n: int, alpha: float, precision: float | None, radius: float | None) -> None:
    """Raises ValueError where certify could not do what it is asked."""
    check_settings(sigma=sigma, n0=n0, n=n, alpha=alpha)
    if precision is not None and radius is not None:
        raise ValueError("give precision or radius, not both")
    if precision is not None:
        _check_precision(precision)
    cap = radius_cap(n=n, sigma=sigma, alpha=alpha)
    if radius is not None and not 0 < radius <= cap:
        raise ValueError(f"radius must be above 0 and at most the cap of {n} draws, {cap:.3f}, got {radius}")


def looks(n: int) -> Looks:
    """After multiples of 100 draws that grow by a fifth or more, and after n at last.

    Raises: ValueError unless n is at least 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    draws, look = [], FIRST_LOOK
    while look * GROWTH <= n:  # a look just before n would leave n too little alpha
        draws.append(look)
        look = FIRST_LOOK * int(np.ceil(look * GROWTH / FIRST_LOOK))
    draws.append(n)
    return Looks(np.array(draws), np.diff(draws, prepend=0) / n)


def looks_for(precision: float, *, n: int, alpha: float) -> Looks:
    """Those that know a radius to this precision early: of alpha FOR_UNANIMOUS goes where unanimous votes have it.

    The bound of t votes that all agree is (share · alpha)^(1/t), which gives the fewest draws in closed form. Where
    they are no fewer than n, the share goes to n.
    Args:
        precision: as for settled.
    Raises: ValueError, as looks; for a precision outside (0, 1).
    """
    _check_precision(precision)
    evenly, least = looks(n), (1 - precision) * radius_cap(n=n, sigma=1.0, alpha=alpha)
    needed = np.log(FOR_UNANIMOUS * alpha) / log_ndtr(least)
    own = min(FIRST_LOOK * int(np.ceil(needed / FIRST_LOOK)), n)
    draws = np.union1d(evenly.draws, own)
    share = np.diff(draws, prepend=0) / n * (1 - FOR_UNANIMOUS) + FOR_UNANIMOUS * (draws == own)
    return Looks(draws, share)


def lower_bound(n_top: np.ndarray | int, *, draws: np.ndarray | int, plan: Looks, alpha: float) -> np.ndarray:
    """Lower bound of P[f(x + noise) = selected class] that may be read at every look.

    With probability ≤ alpha, for this one image, any of them is too large.
    Args:
        n_top: votes for the selected class among the draws so far; any shape.
        draws: estimation draws so far, each of them a look's; a number, or one for each n_top.
        plan: fixed before the first of the votes.
    Returns: float64 of n_top's shape, in [0, 1).
    Raises: ValueError where draws are no look's, or n_top not in [0, draws].
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be in (0, 0.5), got {alpha}")
    votes, draws = np.broadcast_arrays(n_top, draws)
    bounds = np.empty(votes.shape)
    for look in np.unique(draws):
        here = draws == look
        bounds[here] = lower_confidence_bound(votes[here], n=int(look), alpha=alpha * plan.share_at(int(look)))
    return bounds


def certified_radius(
    n_top: np.ndarray | int, *, draws: np.ndarray | int, plan: Looks, sigma: float, alpha: float
) -> np.ndarray:
    """L2 radius around x inside which g's answer cannot change, or 0 where g must abstain, whenever the image stopped.

    Args: as for lower_bound; sigma is the noise level, standard deviation in pixel units of [0, 1].
    Returns: float64 of n_top's shape, pixel units; too large with probability ≤ alpha, for this one image.
    """
    return radius_of(lower_bound(n_top, draws=draws, plan=plan, alpha=alpha), sigma=sigma)


def settled(n_top: np.ndarray | int, *, draws: int, plan: Looks, alpha: float, precision: float) -> np.ndarray:
    """Whether the radius certified now is at least 1 − precision of the one that all n draws would certify.

    Abstention is settled where n draws would abstain too. Either holds with probability ≥ 1 − DOUBT for each image that
    stops before n. At n all are settled, and a radius may miss the precision, having only the last look's alpha.
    Args:
        n_top: votes for the selected class among `draws`, a look's; any shape.
        precision: in (0, 1), relative.
    Returns: bool of n_top's shape.
    """
    _check_precision(precision)
    now = certified_radius(n_top, draws=draws, plan=plan, sigma=1.0, alpha=alpha)
    too_many = votes_needed(ndtr(now / (1 - precision)), n=plan.n, alpha=alpha)
    return _out_of_reach(n_top, too_many, draws=draws, plan=plan)


def decided(
    n_top: np.ndarray | int, *, draws: int, plan: Looks, alpha: float, radius: float, sigma: float
) -> np.ndarray:
    """Whether g's answer is certified at this L2 radius: 1 yes, −1 no, 0 not decided yet.

    A yes is wrong with probability ≤ alpha, for this one image. A no before n says that n draws would not certify
    either, and errs with probability ≤ DOUBT. At n nothing is open.
    Args:
        n_top: votes for the selected class among `draws`, a look's; any shape.
        radius: L2, in sigma's pixel units, > 0.
    Returns: int8 of n_top's shape.
    """
    if not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    yes = certified_radius(n_top, draws=draws, plan=plan, sigma=sigma, alpha=alpha) >= radius
    no = _out_of_reach(n_top, votes_needed(ndtr(radius / sigma), n=plan.n, alpha=alpha), draws=draws, plan=plan)
    return np.where(yes, 1, -no.astype(np.int8)).astype(np.int8)


def votes_needed(p: np.ndarray | float, *, n: int, alpha: float) -> np.ndarray:
    """The fewest of n votes whose Clopper–Pearson bound reaches p, n + 1 where none does: int64 of p's shape."""
    return binom.isf(alpha, n, p).astype(np.int64) + 1  # isf: the least k of which P[Binomial(n, p) > k] ≤ alpha


def chance_of_so_few(n_top: np.ndarray | int, *, draws: int, total: np.ndarray | int, n: int) -> np.ndarray:
    """Upper bound of the probability that the first draws hold so few of a class's votes, when all n hold `total`.

    Hypergeometric probabilities fall faster than geometrically below their mode, so the last one and its ratio to the
    one before bound their sum, closely where it is small.
    Args:
        n_top: among the first `draws` of the n votes; any shape.
        total: among all n; broadcasts with n_top.
    Returns: float64, in [0, 1].
    """
    against, against_in_all = draws - np.asarray(n_top), n - np.asarray(total)
    top, rest = np.minimum(n_top, total), np.minimum(against, against_in_all)  # what cannot be is dealt with below
    log_last = _log_choose(total, top) + _log_choose(against_in_all, rest) - _log_choose(n, draws)
    last = np.exp(np.minimum(log_last, 0))
    ratio = top * (against_in_all - rest) / ((total - top + 1) * (rest + 1))
    bound = np.divide(last, 1 - ratio, out=np.ones_like(ratio), where=last < 1 - ratio)
    return np.where(against > against_in_all, 0.0, np.where(n_top > total, 1.0, bound))


def _out_of_reach(n_top: np.ndarray | int, total: np.ndarray, *, draws: int, plan: Looks) -> np.ndarray:
    """Whether the votes so far rule out, at this look's share of DOUBT, that `total` or more of n will be reached."""
    chance = chance_of_so_few(n_top, draws=draws, total=np.minimum(total, plan.n), n=plan.n)
    return (draws == plan.n) | (total > plan.n) | (chance <= DOUBT * plan.share_at(draws))


def _check_precision(precision: float) -> None:
    if not 0 < precision < 1:
        raise ValueError(f"precision must be in (0, 1), got {precision}")


def _log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    return -np.log1p(n) - betaln(np.add(k, 1), np.subtract(n, k) + 1)
