"""A poison that somebody brought as a file: nothing is computed."""

from collections.abc import Iterator

from engine.attacks.base import AttackProblem, AttackRecord
from engine.config import AttackConfig


def from_file(problem: AttackProblem, config: AttackConfig, seed: int) -> Iterator[AttackRecord]:
    """The changes that were given; it has one step. Raises: ValueError where none were."""
    if problem.given is None:
        raise ValueError("the attack from-file needs the changes that its file holds, and was given none")
    yield AttackRecord(1, 1, problem.given)
