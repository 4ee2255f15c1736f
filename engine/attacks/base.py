"""What an attack is: a generator of step records that makes poison for one problem."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from engine.config import AttackConfig
from engine.data import LabelledImages
from engine.replay import ParallelMap
from engine.training.base import Procedure, State


@dataclass(frozen=True)
class AttackProblem:
    """What the attacker has, knows and may do. All tensors are on one device."""

    training: LabelledImages  # the images in the attacker's hands
    validation: LabelledImages  # held-out images of the target class
    indices: Tensor  # [P] positions in `training` of the images that may change, all of the target class
    epsilon: float  # L∞, pixel units
    target_class: int
    num_classes: int
    procedure: Procedure  # how the attacker believes that victims are trained, at which sigma
    augmentation: str = "none"
    each: ParallelMap = map  # an executor's, to compute parts of a loss side by side
    given: Tensor | None = None  # [P, C, H, W]: changes that come from a file, within the budget
    part: int | None = None  # noisy images in such a part; None: all in one
    state: State | None = None  # of a record: the same attack goes on behind that step as if it had never ended

    @property
    def x_clean(self) -> Tensor:
        """[P, C, H, W]: the images that may change, as they are."""
        return self.training.images[self.indices]


@dataclass(frozen=True)
class AttackRecord:
    """One step. Losses are of the minibatch just used; delta [P, C, H, W] is the whole poison after the step.

    An attack without one of these numbers leaves it at nan.
    """

    step: int
    steps: int
    delta: Tensor
    upper_loss: float = float("nan")  # soft radius of the target class at the surrogate, pixel units
    lower_loss: float = float("nan")
    relative_residual: float = float("nan")
    products: int = 0  # of the lower level's Hessian with a vector
    event: str | None = None  # what went wrong, in words
    labels: Tensor | None = None  # [P] int64, of an attack that is not clean-label
    state: Callable[[], State] | None = field(default=None, compare=False)  # valid until the next step


Attack = Callable[[AttackProblem, AttackConfig, int], Iterator[AttackRecord]]  # (problem, settings, seed)
