"""Attacks, one per file: a line here for each. The two controls are no attacks: they are functions of the images."""

from engine.attacks.base import Attack
from engine.attacks.pacd import pacd

ATTACKS: dict[str, Attack] = {"pacd": pacd}
