"""Every architecture and every attack that can be asked for is built, named, and has its price."""

from typing import get_args

from engine import costs, models
from engine.attacks import ATTACKS
from engine.config import ATTACK_TRAITS, Architecture, AttackName
from engine.report import wording


def test_architectures() -> None:
    known = set(get_args(Architecture))
    for table in (models.BUILDERS, costs.RELATIVE_COST, costs.KEPT, wording.ARCHITECTURE_NAMES):
        assert set(table) == known


def test_attacks() -> None:
    known = set(get_args(AttackName))
    assert set(wording.ATTACKS) == known
    assert set(ATTACKS) == known - {"none"}
    assert set(ATTACK_TRAITS) == known
