"""An ABX test: is X the clean image A or the poisoned image B? And what a number of right answers proves.

All of it is exact binomial arithmetic: a person who cannot tell is right in each trial with probability 1/2.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc

from engine.certification import lower_confidence_bound

GUESSING = 0.5
LEVEL, POWER = 0.05, 0.8  # a guesser passes with at most the one, and who can tell with at least the other
_MOST_TRIALS = 1024


@dataclass(frozen=True)
class Trial:
    """image: which of the pairs is shown; x_is_poisoned: whether X is B."""

    image: int
    x_is_poisoned: bool


def trials(seed: int, *, count: int, images: int) -> list[Trial]:
    """The trials of this seed, the same whenever they are asked for; a shorter test is the beginning of a longer one.

    Args:
        images: number of pairs to draw from, at least 1; no pair comes again before all have been shown.
    """
    if images < 1 or count < 0:
        raise ValueError(f"an ABX test needs at least one pair and no negative count, got {images} and {count}")
    order, sides = (np.random.default_rng([seed, part]) for part in (0, 1))
    shown = [image for _ in range(-(-count // images)) for image in order.permutation(images)]
    return [Trial(int(image), bool(sides.integers(2))) for image in shown[:count]]


def hit_rate_interval(hits: int, count: int) -> tuple[float, float]:
    """Two-sided 95 % Clopper–Pearson interval of the probability to be right; it covers it at least so often.

    Source: Clopper and Pearson 1934. Raises: ValueError if hits is not in [0, count].
    """
    _check(hits, count)
    right, wrong = lower_confidence_bound(np.array([hits, count - hits]), n=count, alpha=0.025)
    return float(right), float(1 - wrong)


def p_value(hits: int, count: int) -> float:
    """Probability that mere guessing gets at least so many of count right (one-sided, exact)."""
    _check(hits, count)
    return 1.0 if hits == 0 else float(bdtrc(hits - 1, count, GUESSING))


def hits_needed(count: int) -> int | None:
    """The fewest hits of count that guessing reaches with probability ≤ LEVEL, or None where even all are too few."""
    return next((hits for hits in range(count // 2, count + 1) if p_value(hits, count) <= LEVEL), None)


def trials_needed(hit_rate: float) -> int:
    """The fewest trials from which on somebody who is right so often passes the test with probability ≥ POWER.

    "From which on": power does not rise steadily with the number of trials, since hits are whole numbers.
    Raises: ValueError if hit_rate is not in (1/2, 1].
    """
    if not GUESSING < hit_rate <= 1:
        raise ValueError(f"hit_rate must be in (0.5, 1], got {hit_rate}")
    most = 32
    while most <= _MOST_TRIALS:
        weak = [n for n in range(1, most + 1) if _power(n, hit_rate) < POWER]
        if weak[-1] <= most // 2:
            return weak[-1] + 1
        most *= 2
    raise ValueError(f"hit_rate {hit_rate} is too close to guessing to be told from it in {_MOST_TRIALS} trials")


def _power(count: int, hit_rate: float) -> float:
    needed = hits_needed(count)
    return 0.0 if needed is None else float(bdtrc(needed - 1, count, hit_rate))


def _check(hits: int, count: int) -> None:
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"hits must be in [0, {count}] and count at least 1, got {hits} and {count}")
