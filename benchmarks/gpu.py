"""`python -m benchmarks.gpu`: the engine beside plain code on a GPU, taking turns in one process.

A ratio is over the engine's time in the same round; a share is of the card's own rate for such products, measured
just before.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks import ours, plain
from benchmarks.ceilings import lenet_flops
from benchmarks.measure import Table, parsed, spread, tell
from engine import datasets
from engine.attacks.pacd import pacd
from engine.experiment.environment import environment
from engine.experiment.poisoning import pose_attack
from engine.experiment.pool import pool_of_threads
from engine.experiment.problem import Problem, pose
from engine.experiment.protocol import choose_device
from engine.models import build
from engine.models.convolution import convolved
from engine.presets import PRESETS
from engine.streams import stream
from engine.training import make
from engine.training.base import fit
from engine.votes import BLOCK, count_votes

SECOND = 2 * 8 * 8 * 50 * 5 * 5 * 20  # operations of a LeNet's second convolution for an image
CONFIG = PRESETS["paper-ga-mnist"].config
NINE, EPOCHS, TWO = 9, 3, 2  # victims of the engine, of how many epochs, and of plain code
IMAGES, GROUP, DRAWS, FEW = 64, 32, 100_000, 2  # images certified by the engine, of a group, and by plain code
SIZE, COPIED = 8192, 2_000_000_000
Work = Callable[[], object]


@dataclass(frozen=True)
class Side:
    label: str
    work: Work
    flops: float  # of the work that stands for the whole
    ceiling: str
    part: float = 1.0  # of the whole, which this side does


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    options = parsed(parser, GROUPS, arguments, rounds=3, what="in which each side has its turn")
    device = choose_device()
    if device.type != "cuda":
        parser.error("there is no GPU here")
    facts = environment("cuda") | {"rounds": options.rounds, "rates": ceilings()}
    problem = pose(CONFIG, datasets.default_root(), device)
    with pool_of_threads(device) as pool:
        asked = (GROUPS[name] for name in options.groups)
        tables = (compared(what, sides(problem, pool), facts["rates"], options.rounds) for what, sides in asked)
        tell(tables, facts, options.output)


def ceilings() -> dict[str, float]:
    """The best of some: operations a second of large products in float32 and bfloat16, bytes read and written."""
    a, b = torch.randn(2, SIZE, SIZE, device="cuda").unbind()
    narrow_a, narrow_b = a.bfloat16(), b.bfloat16()
    source = torch.ones(COPIED // 4, device="cuda")
    target = torch.empty_like(source)
    return {
        "float32": 2.0 * SIZE**3 / min(timed(lambda: a @ b) for _ in range(6)),
        "bfloat16": 2.0 * SIZE**3 / min(timed(lambda: narrow_a @ narrow_b) for _ in range(20)),
        "copy": 2.0 * COPIED / min(timed(lambda: target.copy_(source)) for _ in range(6)),
    }


def compared(title: str, sides: list[Side], rates: dict[str, float], rounds: int) -> Table:
    """A row for each side, the engine first: seconds, over the engine's in the same round, share of the ceiling."""
    most = []
    for side in sides:
        torch.cuda.reset_peak_memory_stats()
        side.work()  # libraries choose their algorithms, and what is compiled is compiled
        most.append(torch.cuda.max_memory_allocated() / 1e9)
    each = [[timed(side.work) / side.part for side in sides] for _ in range(rounds)]
    rows, seconds = [], list(zip(*each, strict=True))
    for side, own, memory in zip(sides, seconds, most, strict=True):
        times = [mine / ours for mine, ours in zip(own, seconds[0], strict=True)]
        share = side.flops / statistics.median(own) / rates[side.ceiling]
        rows.append((side.label, spread(own), f"**{spread(times)}**", f"{share:.1%} ({side.ceiling})", f"{memory:.2f}"))
    raw = [
        {"label": side.label, "seconds": own, "gigabytes": m} for side, own, m in zip(sides, seconds, most, strict=True)
    ]
    columns = ("who", "s, median (range)", "times the engine's, median (range)", "share", "GB of tensors at most")
    return Table(title, columns, rows, raw)


def timed(work: Work) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def victims(problem: Problem, pool: ThreadPoolExecutor) -> list[Side]:
    """Nine LeNets by Gaussian augmentation in the authors' batches; plain code has all data on the card as well."""
    batches = len(problem.training) // CONFIG.training.batch_size
    each = lenet_flops()["forward and gradient of the weights"]
    flops = NINE * EPOCHS * batches * CONFIG.training.batch_size * each

    def ordinary() -> None:
        data, size = problem.training, CONFIG.training.batch_size
        model = plain.lenet().cuda()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            order = torch.randperm(len(data), device="cuda")
            for chosen in order.split(size)[:batches]:
                x = data.images[chosen]
                optimiser.zero_grad()
                plain.gaussian_loss(
                    model, x, data.labels[chosen], CONFIG.sigma * torch.randn_like(x)[:, None]
                ).backward()
                optimiser.step()

    return [
        Side("engine", lambda: list(pool.map(partial(trained, problem), range(NINE))), flops, "float32"),
        Side("one after the other", lambda: in_turn(ordinary, TWO), flops, "float32", TWO / NINE),
    ]


def trained(problem: Problem, seed: int, epochs: int = EPOCHS) -> nn.Module:
    draws = stream(seed, "benchmark", device="cuda")
    model, procedure = build("lenet", generator=draws), make(CONFIG.procedure, sigma=CONFIG.sigma)
    for _ in fit(model, problem.training, procedure=procedure, config=CONFIG.training, epochs=epochs, generator=draws):
        pass
    return model


def certification(problem: Problem, pool: ThreadPoolExecutor) -> list[Side]:
    """One victim's votes; plain code does a few images, one at a time."""
    model = pool.submit(trained, problem, 0, 2).result().eval()
    images, theirs = problem.test.images[:IMAGES], ours.plainly(model).cuda()

    def engine() -> None:
        groups = [torch.arange(first, first + GROUP, device="cuda") for first in range(0, IMAGES, GROUP)]
        *_, found = count_votes(
            model,
            images,
            sigma=CONFIG.sigma,
            n0=100,
            n=DRAWS,
            num_classes=10,
            block=BLOCK["cuda"],
            groups=((group, stream(k, "benchmark votes", device="cuda")) for k, group in enumerate(groups)),
            screened=True,
        )
        found.estimation.cpu()

    def loop(batch_size: int) -> None:
        for image in images[:FEW]:
            plain.votes(theirs, image, n=DRAWS, sigma=CONFIG.sigma, batch_size=batch_size)

    flops, part = IMAGES * DRAWS * lenet_flops()["forward"], FEW / IMAGES
    return [
        Side("engine", lambda: pool.submit(engine).result(), flops, "bfloat16"),
        Side("Cohen's loop, batch 400", lambda: loop(400), flops, "float32", part),
        Side("Cohen's loop, batch 10 000", lambda: loop(10_000), flops, "float32", part),
    ]


def attack(problem: Problem, pool: ThreadPoolExecutor) -> list[Side]:
    """Upper steps of the authors' sizes: 1 000 images, ten lower and ten linear steps with fresh noise in each."""
    settings = CONFIG.attack
    lower, linear, upper = settings.lower_steps, settings.linear_steps, settings.upper_batch * settings.upper_noise
    images = settings.clean_batch + settings.poison_batch
    _, gradient, from_scratch = lenet_flops().values()
    product = from_scratch - gradient
    each = gradient + 2 * product  # a system drawn afresh for each linear step
    flops = images * (lower * gradient + linear * each + product) + linear * upper * gradient
    given = pose_attack(problem, CONFIG)

    def steps(solver: str) -> Iterator[object]:
        return pacd(given, settings.model_copy(update=dict(linear_solver=solver)), 0)

    def engine(records: Iterator[object]) -> None:
        pool.submit(lambda: in_turn(lambda: next(records), 8)).result()

    model, data = plain.lenet().cuda(), problem.training
    clean, poison, held = (
        slice(settings.clean_batch),
        problem.poison_indices[: settings.poison_batch],
        slice(settings.upper_batch),
    )

    def ordinary() -> object:
        return plain.upper_step(
            model,
            (data.images[clean], data.labels[clean]),
            (data.images[poison], data.labels[poison]),
            (problem.validation.images[held], problem.validation.labels[held]),
            sigma=CONFIG.sigma,
            draws=settings.upper_noise,
            lower_steps=lower,
            linear_steps=linear,
        )

    names = ("adam", "adam-shared", "minres")
    return [
        *(Side(f"engine, {name}", partial(engine, steps(name)), flops, "float32", 8) for name in names),
        Side("plain ApproxGrad", lambda: in_turn(ordinary, 2), flops, "float32", 2),
    ]


def convolution(problem: Problem, pool: ThreadPoolExecutor) -> list[Side]:
    """cuDNN's kernels for LeNet's second convolution, as votes have it, at the padded widths and others."""
    copies, times = BLOCK["cuda"], 100

    def side(label: str, channels: int, width: int) -> Side:
        layer = nn.Conv2d(channels, width, 5).to("cuda", torch.bfloat16)
        h = torch.randn(copies, channels, 12, 12, device="cuda", dtype=torch.bfloat16)

        @torch.inference_mode()
        def work() -> None:
            in_turn(lambda: convolved(layer, h), times)

        h = h.to(memory_format=torch.channels_last)
        return Side(f"{label}: {channels} to {width} channels", work, times * copies * SECOND, "bfloat16")

    widths = {"engine": (32, 64), "in multiples of 8": (24, 56), "as they are": (20, 50)}
    return [side(label, *pair) for label, pair in widths.items()]


GROUPS: dict[str, tuple[str, Callable[[Problem, ThreadPoolExecutor], list[Side]]]] = {
    "victims": (f"Nine victims, {EPOCHS} epochs of 55 000 images each, by Gaussian augmentation", victims),
    "certification": (
        f"Certification: one victim, {IMAGES} images, n = {DRAWS}; by others {FEW}, scaled",
        certification,
    ),
    "attack": ("An upper step of the authors' sizes, 10 lower and 10 linear steps", attack),
    "convolution": ("LeNet's second convolution, 100 blocks of 10 000 noisy copies in bfloat16", convolution),
}


if __name__ == "__main__":
    main()
