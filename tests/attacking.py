"""What tests of the attack share: a small problem of 4×4 images, and tiny surrogates for it."""

import importlib

import pytest
import torch
from torch import nn

from engine import models
from engine.attacks.base import AttackProblem, AttackRecord
from engine.config import AttackConfig, ProcedureConfig
from engine.data import LabelledImages
from engine.streams import stream
from engine.training import Procedure, make

attack = importlib.import_module("engine.attacks.pacd")  # in its package this name is the function
CONFIG = AttackConfig(
    surrogate="lenet-narrow",
    upper_steps=7,
    restart_every=3,
    warmup_steps=4,
    lower_steps=2,
    linear_steps=2,
    linear_solver="cg",
    damping=0.1,
    clean_batch=15,
    poison_batch=6,
    upper_batch=8,
    upper_noise=4,
    weights_learning_rate=0.05,
    linear_learning_rate=0.01,
    poison_learning_rate=0.05,
)
TARGET, EPSILON = 2, 0.1
SIGMA = 0.25


def procedure(name: str = "gaussian", *, sigma: float = SIGMA) -> Procedure:
    return make(ProcedureConfig(name=name), sigma=sigma)


def tiny(dtype: torch.dtype = torch.float32):
    """A builder of a 16-6-10 softplus network for 4×4 images, and how its weights begin."""

    def builder(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * shape[0], 6, dtype=dtype),
            nn.Softplus(),
            nn.Linear(6, num_classes, dtype=dtype),
        )

    return builder, models.glorot_uniform


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    """Surrogates of 4×4 images are tiny, whatever the configuration says."""
    build = models.build

    def build_tiny(architecture: str, *, shape: tuple[int, ...], **settings) -> nn.Module:
        return build("tiny" if shape[1:] == (4, 4) else architecture, shape=shape, **settings)

    monkeypatch.setitem(models.BUILDERS, "tiny", tiny())
    monkeypatch.setitem(models.SMALLEST_SIDE, "tiny", 4)
    monkeypatch.setattr(attack, "build", build_tiny)


def toy(count: int, name: str, *, side: int = 4) -> LabelledImages:
    """Three classes of images of this side, by which column is bright; some pixels are exactly 0 or 1."""
    labels = torch.arange(count) % 3
    images = 0.5 * torch.rand(count, 1, side, side, generator=stream(0, name))
    images[torch.arange(count), 0, :, labels] += 0.5
    images[:, :, 0] = images[:, :, 0].round()
    return LabelledImages(images, labels, torch.arange(count))


TRAINING, VALIDATION = toy(60, "training"), toy(30, "validation").of_class(TARGET)
INDICES = (TRAINING.labels == TARGET).nonzero().squeeze(1)[::2]


def attacked(config: AttackConfig = CONFIG, seed: int = 0, **changes) -> list[AttackRecord]:
    """All records; changes are fields of the problem."""
    return list(attack.pacd(posed(**changes), config, seed))


def posed(**changes) -> AttackProblem:
    settings = dict(
        training=TRAINING,
        validation=VALIDATION,
        indices=INDICES,
        epsilon=EPSILON,
        target_class=TARGET,
        num_classes=10,
        procedure=procedure(),
    )
    return AttackProblem(**settings | changes)
