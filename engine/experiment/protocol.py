"""The protocol, on one page: data → attack and controls → victims from scratch → certificates → report.

Every random draw comes from a named stream, so nothing depends on which of the workers was faster.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from engine import datasets
from engine.config import PROTOCOL_VERSION, arms_of
from engine.experiment import checkpoint
from engine.experiment.context import Context
from engine.experiment.environment import code, device_name
from engine.experiment.poisoning import make_poison, measure, with_file
from engine.experiment.pool import Pool
from engine.experiment.problem import pose
from engine.experiment.recorder import Recorder
from engine.experiment.retraining import Retraining
from engine.records import Cancelled, Run
from engine.stages import StageCache


def choose_device(*, tf32: bool = False) -> torch.device:
    """A GPU where there is one, told to compute the same each time, and in float32 proper unless TF32 is wanted."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def conduct(run: Run, recorder: Recorder, *, device: torch.device, cancelled: Callable[[], bool]) -> None:
    """Does the whole protocol into the run's directory; whatever happens on the way, what was finished is on disk.

    Raises: Cancelled soon after cancelled(), asked several times a second, became true; what Pool.finished does.
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
    recorder.phase, arms, seeds = "attack and first victims", arms_of(config), range(config.victim_seeds)
    pool = Pool(device)
    shared = pool.recorder, StageCache(runs_root), depends_on, pool.stop, pool.each
    context = Context(run, config, problem, *shared)
    retraining = Retraining(context)

    def start(*of: str) -> None:
        asked = [arm for arm in of if arm in arms]
        for arm, k in product(asked, seeds):
            pool.start("victim", arm, k)
        for arm in asked:
            measure(context, arm, recorder)

    with pool.at_work({"attack": partial(make_poison, context, given=given), "victim": retraining.victim}, recorder):
        if "poisoned" in arms:
            pool.start("attack")
        start("clean", "random_noise")
        while pool.unfinished:
            for task, arguments in pool.finished(recorder, timeout=0.3):
                if task == "attack":
                    recorder.phase = "victims and certificates"
                    start("poisoned", "shuffled_signs")
                else:
                    arm, k = arguments
                    recorder.add_certificates(arm, k, retraining.certificates(arm, k))
            if pool.unfinished and cancelled():  # what is finished was not cancelled
                raise Cancelled
    checkpoint.remove_all(run.directory)
