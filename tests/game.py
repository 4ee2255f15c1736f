"""States of the bilevel problem in the plane that several tests start from."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from engine import toy

SETTINGS = toy.Settings(epsilon=0.4, sigma=0.2, regularisation=0.01, poison_points=20)


@cache
def begun(**changes: Any) -> toy.State:
    return toy.settled(toy.start(replace(SETTINGS, **changes), 0))


@cache
def on_its_way() -> toy.State:
    """After some upper steps, the victim trained to the end."""
    state = begun()
    for _ in range(3):
        state = toy.whole_step(state)
    return toy.settled(state)


@cache
def attacked() -> toy.State:
    state = begun()
    while not state.done:
        state = toy.whole_step(state)
    return state


def clean(state: toy.State) -> torch.Tensor:
    return state.training[: len(state.poison)]


def same(one: toy.State, other: toy.State) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in toy.State.__dataclass_fields__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else repr(a) == repr(b) for a, b in pairs)
