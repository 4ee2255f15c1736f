"""Every architecture and every attack that can be asked for is built, named, and has its price."""

from typing import get_args

import pytest
import torch

from engine import costs, models
from engine.attacks import ATTACKS
from engine.choices import ATTACK_TRAITS, SMALLEST_SIDE, Architecture, AttackName
from engine.report import wording
from engine.streams import stream
from engine.votes import count_votes


def test_architectures() -> None:
    known = set(get_args(Architecture))
    for table in (models.BUILDERS, costs.RELATIVE_COST, costs.KEPT, wording.ARCHITECTURE_NAMES):
        assert set(table) == known
    assert set(SMALLEST_SIDE) <= known


@pytest.mark.parametrize("name", models.BUILDERS)
def test_every_architecture_can_be_certified(name: str) -> None:
    """Which needs an affine stem."""
    model = models.build(name, shape=(3, 16, 16), generator=stream(0, "model")).eval()
    drawn = [(torch.arange(1), stream(0, "votes"))]
    *_, votes = count_votes(
        model, torch.zeros(1, 3, 16, 16), sigma=0.5, n0=1, n=4, num_classes=10, block=5, groups=drawn
    )
    assert votes.estimation.sum() == 4


def test_attacks() -> None:
    known = set(get_args(AttackName))
    assert set(wording.ATTACKS) == known
    assert set(ATTACKS) == known - {"none"}
    assert set(ATTACK_TRAITS) == known
