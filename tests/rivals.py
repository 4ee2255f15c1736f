"""What tests of the rivals share: a small problem of 8×8 images, tiny surrogates for it, and all attacks on it."""

import math
from typing import Any

import pytest
from torch import Tensor, nn

from engine import models
from engine.attacks import ATTACKS
from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.random_noise import random_noise
from engine.choices import ATTACK_TRAITS
from engine.config import ProcedureConfig
from engine.hypergradient import ApproxGrad
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.streams import stream
from engine.training import make
from tests.attacking import toy

SMALL = (
    *("attack.upper_steps=4", "attack.restart_every=3", "attack.warmup_steps=2", "attack.linear_steps=2"),
    *("attack.damping=0.1", "attack.clean_batch=15", "attack.poison_batch=6", "attack.upper_batch=8"),
    *("attack.upper_noise=4", "attack.weights_learning_rate=0.05", "attack.poison_learning_rate=0.05"),
)
QUICK = PRESETS["quick"].config
CONFIG = with_overrides(QUICK, [*SMALL]).attack.model_copy(update=dict(surrogate="tiny"))
TARGET, EPSILON, SIGMA = 2, 0.1, 0.25
GAUSSIAN = make(ProcedureConfig(name="gaussian"), sigma=SIGMA)
OPTIMISED = tuple(name for name, traits in ATTACK_TRAITS.items() if traits.surrogates)


class Tiny(nn.Sequential):
    """A 64-6-3 softplus network for 8×8 images."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        pixels = math.prod(shape)
        super().__init__(nn.Flatten(), nn.Linear(pixels, 6), nn.Softplus(), nn.Linear(6, num_classes))


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BUILDERS, "tiny", (Tiny, models.glorot_uniform))
        yield


TRAINING = toy(60, "training", side=8)
PROBLEM = AttackProblem(
    TRAINING,
    toy(30, "validation", side=8).of_class(TARGET),
    (TRAINING.labels == TARGET).nonzero().squeeze(1)[::2],
    epsilon=EPSILON,
    target_class=TARGET,
    num_classes=3,
    procedure=GAUSSIAN,
)


def attacked(name: str, problem: AttackProblem = PROBLEM, *, seed: int = 0, **changes) -> list[AttackRecord]:
    return list(ATTACKS[name](problem, CONFIG.model_copy(update=changes), seed))


MADE = [name for name in ATTACKS if name != "from-file"]  # of what the attacker has, not of a file


def at(weights: Tensor) -> ApproxGrad:
    """A surrogate with these weights; its linear solver is not used."""
    unused: dict[str, Any] = dict(linear_steps=1, damping=1.0, linear_learning_rate=1.0)
    return ApproxGrad(weights, linear_solver="cg", weights_learning_rate=0.05, generator=stream(0, "unused"), **unused)


def random_change(index: int = 0) -> Tensor:
    return random_noise(PROBLEM.x_clean, epsilon=EPSILON, generator=stream(9, "random", index))
