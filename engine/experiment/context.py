"""What the stages of one experiment share: its data, where results go, what they depend on, and when to stop."""

from ctypes import c_byte
from dataclasses import dataclass
from typing import Any

import torch

from engine.config import Config
from engine.experiment.pool import Teller
from engine.experiment.problem import Problem
from engine.records import Cancelled, Run
from engine.replay import ParallelMap
from engine.stages import StageCache


@dataclass(frozen=True)
class Context:
    """What they share.

    Args:
        depends_on: of the problem, for the keys of the cache.
        recorder, stop, each: as Pool has them.
    """

    run: Run
    config: Config
    problem: Problem
    recorder: Teller
    cache: StageCache
    depends_on: dict[str, Any]
    stop: c_byte
    each: ParallelMap

    @property
    def device(self) -> torch.device:
        return self.problem.training.images.device

    def check_stop(self) -> None:
        """Raises: Cancelled."""
        if self.stop.value:
            raise Cancelled
