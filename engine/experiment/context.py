"""What the stages of one experiment share: its data, where results go, what they depend on, and when to stop."""

import threading
from dataclasses import dataclass
from typing import Any

import torch

from engine.config import Config
from engine.experiment.problem import Problem
from engine.experiment.recorder import Recorder
from engine.records import Cancelled, Run
from engine.replay import ParallelMap
from engine.stages import StageCache


@dataclass(frozen=True)
class Context:
    """What they share.

    Args:
        depends_on: of the problem, for the keys of the cache.
        stop: set once nobody wants the results any more.
        each: as map; on a CPU side by side, while another worker has nothing else to do.
    """

    run: Run
    config: Config
    problem: Problem
    recorder: Recorder
    cache: StageCache
    depends_on: dict[str, Any]
    stop: threading.Event
    each: ParallelMap

    @property
    def device(self) -> torch.device:
        return self.problem.training.images.device

    def check_stop(self) -> None:
        """Raises: Cancelled."""
        if self.stop.is_set():
            raise Cancelled
