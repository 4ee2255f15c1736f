"""A bilevel problem in the plane, small enough to run live: points, a victim whose boundary is a line, an attacker.

Lower level: logistic regression on points smoothed by Gaussian noise. Upper level: the mean certified radius of
held-out points of the target class, which the attacker lowers by moving training points of that class; labels stay.
The smoothed victim is a half-space, so its certified radii are exact and a loss at once: no soft radius is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import inf, nan

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from engine.hypergradient import cross_term, gradient, hessian
from engine.solvers import LinearSolution, conjugate_gradient
from engine.streams import stream

TARGET_POINTS = OTHER_POINTS = HELD_OUT = 20  # training points of the target class and of the other; held-out points
CENTRE, SPREAD = 1.0, (0.65, 0.1)  # clusters around (±CENTRE, 0), long in the direction that tells them apart
EPSILONS, SIGMAS, REGULARISATIONS = (0.0, 0.6), (0.05, 1.0), (1e-3, 0.3)  # allowed ranges
INNER_STEPS = 10  # of a whole step
INNER_RATE, OUTER_RATE = 1.0, 0.1  # learning rates of the two levels
CONTROLS = 10  # draws of random moves
MOST_STEPS, STILL = 300, 5e-4  # upper steps until it ends at the latest; a largest move below STILL is the end


@dataclass(frozen=True)
class Settings:
    """What can be chosen. Lengths are units of the plane.

    Args:
        epsilon: L∞ bound on the move of each poison point, in EPSILONS.
        sigma: noise level of the victim's training, standard deviation per coordinate, in SIGMAS.
        regularisation: λ of the victim's λ/2·|w|² (not on b), in REGULARISATIONS.
        poison_points: training points of the target class that the attacker may move, 0 to TARGET_POINTS.
    Raises: ValueError that names the field and what is allowed.
    """

    epsilon: float
    sigma: float
    regularisation: float
    poison_points: int

    def __post_init__(self) -> None:
        allowed = {"epsilon": EPSILONS, "sigma": SIGMAS, "regularisation": REGULARISATIONS}
        for name, (low, high) in (allowed | {"poison_points": (0, TARGET_POINTS)}).items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


@dataclass(frozen=True)
class Step:
    """What was measured after an upper step; 0 is the beginning."""

    upper_steps: int
    lower_loss: float
    upper_loss: float  # mean certified radius with the victim as it is
    retrained: float  # the same with a victim trained to the end on the poison


@dataclass(frozen=True)
class State:
    """The whole game at one moment: a value, which the functions below take and return anew. Tensors are float64.

    Weights are [3]: w, and b of the half-space w·x + b > 0, in which the target class should lie.
    """

    settings: Settings
    seed: int
    training: Tensor  # [N, 2], clean, the target class first, and of it the points that may be moved
    held_out: Tensor  # [H, 2], all of the target class
    clean: Tensor  # weights of a victim trained to the end on clean points
    control: tuple[float, ...]  # mean radii after random moves of the whole budget
    poison: Tensor  # [P, 2], where the moved points are now
    weights: Tensor  # of the victim as it is
    p: Tensor  # [3], of the linear system (g_ww) p = f_w
    retrained: Tensor  # weights of a victim trained to the end on the poison as it is
    level: int = 0  # what ran last: 1 the victim's step, 2 the linear system, 3 the attacker's step
    losses: tuple[float, ...] = ()  # lower loss before each of the victim's steps
    reached: tuple[float, ...] = ()  # mean radius before each of them
    slope: float = nan  # |g_w| before the last of them
    upper_steps: int = 0
    moved: float = inf  # largest move of a coordinate in the last upper step
    residual: float = nan  # relative, of the linear system when it was last solved
    history: tuple[Step, ...] = ()
    before_hand: float | None = None  # mean radius, victim trained to the end, before points were moved by hand

    @property
    def done(self) -> bool:
        return self.moved < STILL or self.upper_steps >= MOST_STEPS


def start(settings: Settings, seed: int) -> State:
    """Points drawn from the seed, an untrained victim, and what the end will be compared with."""
    draws = stream(seed, "toy points")
    cloud = torch.randn(TARGET_POINTS + OTHER_POINTS + HELD_OUT, 2, generator=draws, dtype=torch.float64)
    side = torch.ones(len(cloud), 1, dtype=torch.float64)
    side[TARGET_POINTS : TARGET_POINTS + OTHER_POINTS] = -1
    points = cloud * cloud.new_tensor(SPREAD) + side * cloud.new_tensor([CENTRE, 0.0])
    training, held_out = points.split([TARGET_POINTS + OTHER_POINTS, HELD_OUT])
    poison = training[: settings.poison_points]
    angle = 2 * torch.pi * torch.rand((), generator=stream(seed, "toy start"), dtype=torch.float64)
    weights = torch.stack([0.3 * angle.cos(), 0.3 * angle.sin(), 0 * angle])
    zero = torch.zeros_like(weights)
    state = State(settings, seed, training, held_out, zero, (), poison, weights, zero, zero)
    clean = trained(state, weights)
    signs = torch.randint(0, 2, (CONTROLS, *poison.shape), generator=stream(seed, "toy control")) * 2.0 - 1
    moved = [replace(state, poison=poison + settings.epsilon * sign) for sign in signs]
    control = tuple(mean_radius(state, trained(other, clean)) for other in moved)
    return _noted(replace(state, clean=clean, control=control, retrained=clean))


def settled(state: State) -> State:
    """The victim trained to the end on the poison as it is, and the linear system solved there."""
    return _noted(solve_linear(replace(state, weights=state.retrained)))


def lower_step(state: State) -> State:
    """The victim's step: gradient descent on its training loss."""
    loss, slope = gradient(lower_loss(state), state.weights, state.poison)
    weights = state.weights - INNER_RATE * slope
    losses, reached = (*state.losses, float(loss)), (*state.reached, mean_radius(state, state.weights))
    return replace(state, weights=weights, losses=losses, reached=reached, slope=float(slope.norm()), level=1)


def solve_linear(state: State) -> State:
    """How the solution would move: g_ww p = f_w, in as many conjugate-gradient steps as there are weights."""
    found = _solved(state, state.weights, upper_slope(state))
    return replace(state, p=found.solution, residual=float(found.relative_residual), level=2)


def stepped(state: State) -> Tensor:
    """[P, 2]: poison points a step against the hypergradient that p gives, each coordinate cut at epsilon."""
    clean, epsilon = state.training[: len(state.poison)], state.settings.epsilon
    wanted = state.poison - OUTER_RATE * len(state.training) * hypergradient(state)
    return clean + (wanted - clean).clamp(-epsilon, epsilon)


def upper_step(state: State) -> State:
    """The attacker's step."""
    poison = stepped(state)
    moved = float((poison - state.poison).abs().max()) if len(poison) else 0.0
    after = replace(state, poison=poison, upper_steps=state.upper_steps + 1, moved=moved, level=3, before_hand=None)
    return _noted(replace(after, retrained=trained(after, after.retrained)))


def whole_step(state: State) -> State:
    """INNER_STEPS steps of the victim, the linear system, a step of the attacker."""
    for _ in range(INNER_STEPS):
        state = lower_step(state)
    return upper_step(solve_linear(state))


def move_point(state: State, index: int, xy: tuple[float, float]) -> State:
    """Poison point `index` put at xy by hand; the victim is as it was, and learns of it with its next step.

    Raises: ValueError if there is no such point, or if xy, rounded to three digits, is outside its box.
    """
    if not 0 <= index < len(state.poison):
        raise ValueError(f"index must be in [0, {len(state.poison) - 1}], got {index}")
    low, high = box(state, index)
    for axis, value, least, most in zip("xy", xy, low, high, strict=True):
        if not least - 5e-4 <= value <= most + 5e-4:  # as the sentence rounds them
            raise ValueError(
                f"{axis} must be in [{least:.3f}, {most:.3f}], within ε = {state.settings.epsilon:g} of the point's "
                f"clean place, got {value:g}"
            )
    poison = state.poison.clone()
    poison[index] = torch.tensor(xy, dtype=poison.dtype).clamp(torch.tensor(low), torch.tensor(high))
    before = state.history[-1].retrained if state.before_hand is None else state.before_hand
    after = replace(state, poison=poison, moved=inf, before_hand=before)
    return _noted(replace(after, retrained=trained(after, after.retrained)))


def box(state: State, index: int) -> tuple[list[float], list[float]]:
    """Lower and upper corner of where poison point `index` may be."""
    clean, epsilon = state.training[index], state.settings.epsilon
    return (clean - epsilon).tolist(), (clean + epsilon).tolist()


def lower_loss(state: State) -> Callable[[Tensor, Tensor], Tensor]:
    """(weights [3], poison [P, 2]) → mean expected logistic loss of the points under noise, plus λ/2·|w|².

    Of the noise only its part along w counts, N(0, σ²|w|²): one dimension, which Gauss–Hermite quadrature integrates to
    more digits than draws would, so that the loss is smooth and the same each time. It has no derivative at w = 0.
    """
    settings, moved = state.settings, len(state.poison)
    ones = torch.ones_like(state.training[:, :1])
    rest = torch.cat([state.training, ones], dim=1)[moved:]  # [N − P, 3], signed so that w·row is the margin
    rest[TARGET_POINTS - moved :] *= -1
    nodes, shares = _quadrature()
    noise = settings.sigma * nodes

    def loss(weights: Tensor, poison: Tensor) -> Tensor:
        rows = torch.cat([torch.cat([poison, ones[:moved]], dim=1), rest])  # [N, 3]
        size = weights[:2].square().sum()  # |w|²
        margins = (rows @ weights)[:, None] + size.sqrt() * noise  # [N, nodes]
        return softplus(-margins).mean(dim=0) @ shares + settings.regularisation / 2 * size

    return loss


def upper_loss(state: State) -> Callable[[Tensor, Tensor], Tensor]:
    """(weights [3], poison) → mean certified radius of the held-out points, 0 where wrong; needs no poison."""
    return lambda weights, poison: signed_distance(weights, state.held_out).clamp(min=0).mean()


def upper_slope(state: State) -> Tensor:
    """f_w [3]."""
    return gradient(upper_loss(state), state.weights, state.poison)[1]


def hypergradient(state: State) -> Tensor:
    """d mean radius / d poison [P, 2] at these weights and with this p: f_x − g_xw p, where f_x is 0."""
    return -cross_term(lower_loss(state), state.weights, state.poison, state.p)


def signed_distance(weights: Tensor, points: Tensor) -> Tensor:
    """(w·x + b) / |w| for points [N, 2]: where positive, the certified radius (L2) of a point of the target class.

    Source: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, Appendix B: for a half-space it does not depend on σ.
    """
    return (points @ weights[:2] + weights[2]) / weights[:2].norm()


def radii(state: State, weights: Tensor) -> Tensor:
    """Certified radii (L2) [H] of the held-out points for a victim with these weights: 0 where wrong."""
    return signed_distance(weights, state.held_out).clamp(min=0)


def mean_radius(state: State, weights: Tensor) -> float:
    return float(radii(state, weights).mean())


def trained(state: State, weights: Tensor) -> Tensor:
    """Weights [3] of a victim trained to the end on the poison as it is: by Newton's method, from these weights."""
    loss, poison = lower_loss(state), state.poison
    for _ in range(100):
        value, slope = gradient(loss, weights, poison)
        if slope.norm() < 1e-10:
            return weights
        change = _solved(state, weights, slope).solution
        length = 1.0
        while loss(weights - length * change, poison) > value + 1e-12:
            length /= 2
        weights = weights - length * change
    raise RuntimeError("the victim's training did not converge")


def _solved(state: State, weights: Tensor, target: Tensor) -> LinearSolution:
    """g_ww v = target at these weights."""
    system = hessian(lower_loss(state), weights, state.poison), target
    return conjugate_gradient(lambda: system, torch.zeros_like(target), steps=len(target), damping=0.0)


def _noted(state: State) -> State:
    """With what is measured now, in place of what was measured since the same upper step."""
    step = Step(
        state.upper_steps,
        float(lower_loss(state)(state.weights, state.poison)),
        mean_radius(state, state.weights),
        mean_radius(state, state.retrained),
    )
    return replace(state, history=(*state.history[: state.upper_steps], step))


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights for the mean over a standard normal variable."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(16)
    return torch.from_numpy(nodes), torch.from_numpy(shares / shares.sum())
