"""The other end of `measure.Child`: `python -m benchmarks.child TASK SETTINGS`, answering each line with one."""

import json
import sys
from collections.abc import Callable
from importlib import import_module

from benchmarks.measure import timed


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else a task prints must not be taken for an answer
    task, settings = sys.argv[1:]
    module, _, function = task.partition(".")
    work = getattr(import_module(f"benchmarks.{module}"), function)(**json.loads(settings))
    print(timed(work), file=answers, flush=True)
    for question in sys.stdin:
        print(timed(work) if question.strip() == "seconds" else flops(work), file=answers, flush=True)


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the products and convolutions of some work that one thread does."""
    from torch.utils.flop_counter import FlopCounterMode  # tasks that need no torch should start without it

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
