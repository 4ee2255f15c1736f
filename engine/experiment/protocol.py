"""The protocol, on one page: data → attack and controls → victims from scratch → certificates → report.

Tasks run in a few threads of one torch thread each (faster than torch's own threads, and they don't collapse beside
other work). Every random draw comes from a named stream, so nothing depends on which thread was faster.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import torch

from engine import datasets
from engine.config import PROTOCOL_VERSION, arms_of
from engine.costs import workers_for
from engine.experiment import checkpoint
from engine.experiment.context import Context
from engine.experiment.environment import code, device_name
from engine.experiment.poisoning import make_control, make_poison, with_file
from engine.experiment.problem import pose
from engine.experiment.recorder import Recorder
from engine.experiment.retraining import Retraining
from engine.records import Cancelled, Run
from engine.replay import use_own_stream
from engine.stages import StageCache


def choose_device(*, tf32: bool = False) -> torch.device:
    """A GPU where there is one, told to compute the same each time, and in float32 proper unless TF32 is wanted."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def pool_of_workers(device: torch.device, count: int | None = None) -> ThreadPoolExecutor:
    """Threads of one torch thread each, on a GPU with a stream each.

    Numbers below 1.2e-38 are 0 in them: the attack's sharp softmax has many, on which a CPU is slow, and beside
    all else they are nothing (benchmarks attack).
    """

    def begin() -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        use_own_stream(device)

    return ThreadPoolExecutor(count or workers_for(device.type), initializer=begin)


def conduct(run: Run, recorder: Recorder, *, device: torch.device, cancelled: Callable[[], bool]) -> None:
    """Does the whole protocol into the run's directory; whatever happens on the way, what was finished is on disk.

    Raises: Cancelled soon after cancelled(), asked a few times a second, became true; whatever a stage raises.
    """
    config, runs_root, data_root = run.config, run.directory.parent, run.data_root
    posed = pose(config, data_root, device)
    recorder.begin(posed.class_names)
    problem, given = with_file(posed, config, runs_root=runs_root, recorder=recorder)
    depends_on = {
        "protocol": PROTOCOL_VERSION,
        "code": code(),  # so that env.json is true of every part, those of earlier runs included
        "device_name": device_name(device.type),
        "torch": torch.__version__,
        "device": device.type,
        "dataset": config.dataset,
        "images": datasets.fingerprint(config.dataset, data_root),
        "data": config.data.model_dump(),
        "seed": config.seed,
    }
    if device.type == "cuda":
        depends_on["tf32"] = torch.backends.cuda.matmul.allow_tf32
    recorder.phase = "attack and first victims"
    seeds = range(config.victim_seeds)
    pool, helpers = (pool_of_workers(device) for _ in range(2))
    tasks: list[Future[Any]] = []

    def start(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        tasks.append(pool.submit(work, *arguments))
        return tasks[-1]

    def helped(compute: Callable[..., Any], parts: Iterable[Any]) -> Iterable[Any]:
        """As map; on a CPU side by side, while a worker has nothing else to do."""
        unfinished = sum(not task.done() for task in tasks)
        idle = device.type == "cpu" and unfinished < workers_for("cpu")
        return (helpers.map if idle else map)(compute, parts)

    stop = threading.Event()
    context = Context(run, config, problem, recorder, StageCache(runs_root), depends_on, stop, helped)
    victims = Retraining(context)
    try:
        arms = arms_of(config)
        attack = start(partial(make_poison, context, given=given)) if "poisoned" in arms else None
        for k in seeds:
            start(victims.victim, "clean", k, None)
        if "random_noise" in arms:
            noise = make_control(context, "random_noise")
            for k in seeds:
                start(victims.victim, "random_noise", k, noise)
        pending = set(tasks)
        while pending:
            finished, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
            for future in finished:
                if future is attack:
                    poison = future.result()
                    recorder.phase = "victims and certificates"
                    pending |= {start(victims.victim, "poisoned", k, poison) for k in seeds}
                    if "shuffled_signs" in arms:
                        shuffled = make_control(context, "shuffled_signs", poison.delta)
                        pending |= {start(victims.victim, "shuffled_signs", k, shuffled) for k in seeds}
                else:
                    recorder.add_certificates(*future.result())
            if pending and cancelled():  # what is finished was not cancelled
                raise Cancelled
        checkpoint.remove_all(run.directory)
    finally:
        stop.set()  # whoever still computes stops at its next step
        for each in (pool, helpers):
            each.shutdown(wait=True, cancel_futures=True)
