"""All that is asked of the engine, as an experiment asks it: one call of each kind, in one place."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from benchmarks import plain
from engine import datasets
from engine.attacks.base import AttackRecord
from engine.attacks.levels import Levels
from engine.attacks.pacd import Surrogate, pacd
from engine.certification import certified_radius
from engine.config import AttackConfig, ProcedureConfig
from engine.costs import workers_for
from engine.experiment.poisoning import pose_attack
from engine.experiment.pool import begin, can_fork, pool_of_threads
from engine.experiment.problem import Problem, pose
from engine.hypergradient import Loss
from engine.models import build
from engine.presets import PRESETS
from engine.streams import stream
from engine.training import make
from engine.training.base import fit
from engine.votes import BLOCK, GROUPS, Votes, count_votes, has_bfloat16

SIGMA, ALPHA, N0 = 0.5, 0.001, 100
CPU = torch.device("cpu")
PROCEDURES = {
    "gaussian": ProcedureConfig(name="gaussian"),
    "smoothadv": ProcedureConfig(name="smoothadv", draws=1, adversary_steps=2, adversary_size=1.0, warmup=0.0),
    "macer": ProcedureConfig(name="macer", draws=16, weight=16.0, warmup=0.0),
}


@cache
def problem() -> Problem:
    """The quick preset's problem: 3 000 training images of MNIST."""
    return pose(PRESETS["quick"].config, datasets.default_root(), CPU)


def train(
    seed: int, images: int, *, procedure: str, epochs: int, batch_size: int, precision: str = "fast"
) -> nn.Module:
    """A LeNet trained from scratch on the first images of the problem."""
    model, data = build("lenet", generator=stream(seed, "benchmark")), problem().training
    config = PRESETS["quick"].config.training.model_copy(update=dict(batch_size=batch_size))
    few = data.select(torch.arange(images))
    how, draws = make(PROCEDURES[procedure], sigma=SIGMA), stream(seed, "benchmark training")
    narrow = precision == "fast" and has_bfloat16()
    for _ in fit(model, few, procedure=how, config=config, epochs=epochs, generator=draws, bfloat16=narrow):
        pass
    return model


@cache
def victim() -> nn.Module:
    """A LeNet that knows its digits: what certification costs may depend on how sure its votes are."""
    return train(0, 3000, procedure="gaussian", epochs=3, batch_size=50)


def votes(model: nn.Module, images: Tensor, *, n: int, seed: int, sigma: float = SIGMA) -> Votes:
    """Of images [N, C, H, W] in groups that share their noise."""
    group_of = torch.arange(len(images)) % GROUPS
    *_, found = count_votes(
        model,
        images,
        sigma=sigma,
        n0=N0,
        n=n,
        num_classes=10,
        block=BLOCK["cpu"],
        groups=((where(group_of == k), stream(seed, "benchmark votes", k)) for k in group_of.unique().tolist()),
        screened=True,
    )
    return found


def where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def certify(model: nn.Module, images: Tensor, *, n: int, seed: int) -> list[tuple[int, float]]:
    """(Selected class, radius) of images [N, C, H, W]."""
    found = votes(model, images, n=n, seed=seed)
    radii = certified_radius(found.n_top.numpy(), n=n, sigma=SIGMA, alpha=ALPHA)
    return list(zip(found.selected_class.tolist(), radii.tolist(), strict=True))


def attack(settings: AttackConfig) -> Iterator[AttackRecord]:
    """PACD's upper steps against Gaussian augmentation."""
    config = PRESETS["quick"].config.model_copy(update=dict(attack=settings))
    return pacd(pose_attack(problem(), config, each=pool_of_threads(CPU).map), settings, 0)


def levels(settings: AttackConfig) -> tuple[Loss, Loss, Tensor, Tensor]:
    """(Lower loss, upper loss, weights [W], poison images) of the first upper step of PACD, its parts on workers."""
    config = PRESETS["quick"].config.model_copy(update=dict(attack=settings))
    posed = pose_attack(problem(), config, each=pool_of_threads(CPU).map)
    surrogate, rows = Surrogate(posed, settings, seed=0, life=0), torch.arange(settings.poison_batch)
    drawn = Levels(posed, settings, seed=0, generator=stream(0, "benchmark levels"))
    lower = drawn.minibatch(drawn.draw_lower(rows), poison=len(rows), strength=1.0).loss(surrogate.model)
    upper = drawn.upper(surrogate.model, drawn.draw_upper())
    return lower, upper, surrogate.bilevel.weights, posed.x_clean[rows]


def on_workers(tasks: Iterable[Callable[[], object]], workers: int | None = None, *, threads: bool = False) -> None:
    """Does the tasks as an experiment does its own: in processes where it has them, which stay, else in threads."""
    for _ in _pool(workers or workers_for("cpu"), threads or not can_fork(CPU)).map(_done, tasks):
        pass


def _done(task: Callable[[], object]) -> None:
    task()


@cache
def _pool(count: int, threads: bool) -> Executor:
    if threads:
        return pool_of_threads(CPU, count)
    return ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=begin, initargs=(CPU,))


def plainly(model: nn.Module) -> nn.Sequential:
    """The same function in plain code's layout, whose first linear layer takes channels first."""
    theirs, weights = plain.lenet(), list(model.state_dict().values())
    weights[4] = weights[4].unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2).flatten(1)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    return theirs.eval()
