"""What is timed: each function prepares some work and returns it, done by plain code, by the peer or by the engine."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import ours, peers, plain, vectorised
from benchmarks.ours import ALPHA, N0, SIGMA
from engine import hypergradient
from engine.config import AttackConfig
from engine.costs import workers_for
from engine.presets import PRESETS

Work = Callable[[], object]


def in_turn(tasks: list[Work]) -> Work:
    """One after the other, as ordinary code runs."""

    def work() -> None:
        for task in tasks:
            task()

    return work


def plain_certification(*, victims: int, images: int, n: int) -> Work:
    model, chosen = ours.plainly(ours.victim()), ours.problem().test.images[:images]

    def victim() -> None:
        for image in chosen:
            plain.certify(model, image, n0=N0, n=n, sigma=SIGMA, alpha=ALPHA)

    return in_turn([victim] * victims)


def peer_certification(*, victims: int, images: int, n: int, batch_size: int) -> Work:
    model, chosen = ours.plainly(ours.victim()), ours.problem().test.images[:images].numpy()
    settings: dict[str, Any] = dict(n0=N0, n=n, sigma=SIGMA, alpha=ALPHA, batch_size=batch_size)
    return in_turn([lambda: peers.certify(model, chosen, **settings)] * victims)


def engine_certification(*, victims: int, images: int, n: int, workers: int | None = None) -> Work:
    model, chosen = ours.victim(), ours.problem().test.images[:images]
    return lambda: ours.on_workers([partial(ours.certify, model, chosen, n=n, seed=k) for k in range(victims)], workers)


def plain_training(*, procedure: str, victims: int, images: int, batch_size: int, epochs: int = 1) -> Work:
    x, y = ours.problem().training.images[:images], ours.problem().training.labels[:images]
    how: dict[str, Any] = dict(procedure=procedure, epochs=epochs, batch_size=batch_size, sigma=SIGMA)
    return in_turn([lambda: plain.train(plain.lenet(), x, y, **how)] * victims)


def peer_training(*, procedure: str, victims: int, images: int, batch_size: int, epochs: int = 1) -> Work:
    x, y = ours.problem().training.images[:images].numpy(), ours.problem().training.labels[:images].numpy()
    how: dict[str, Any] = dict(procedure=procedure, epochs=epochs, batch_size=batch_size, sigma=SIGMA)
    return in_turn([lambda: peers.train(plain.lenet(), x, y, **how)] * victims)


def engine_training(
    *, procedure: str, victims: int, images: int, batch_size: int, epochs: int = 1, workers: int | None = None
) -> Work:
    ours.problem()
    how: dict[str, Any] = dict(procedure=procedure, epochs=epochs, batch_size=batch_size)
    return lambda: ours.on_workers([partial(ours.train, k, images, **how) for k in range(victims)], workers)


def plain_victims(*, victims: int, epochs: int, images: int, n: int) -> Work:
    """Victims of the quick preset, trained and certified one after the other."""
    data, chosen = ours.problem().training, ours.problem().test.images[:images]

    def victim() -> None:
        model = plain.lenet()
        plain.train(model, data.images, data.labels, procedure="gaussian", epochs=epochs, batch_size=50, sigma=SIGMA)
        for image in chosen:
            plain.certify(model.eval(), image, n0=N0, n=n, sigma=SIGMA, alpha=ALPHA)

    return in_turn([victim] * victims)


def vectorised_victims(*, victims: int, epochs: int, images: int, n: int) -> Work:
    """The same as one program for all of them."""
    data, chosen = ours.problem().training, ours.problem().test.images[:images]

    def work() -> None:
        how: dict[str, Any] = dict(epochs=epochs, batch_size=50, sigma=SIGMA)
        weights = vectorised.train(victims, data.images, data.labels, **how)
        vectorised.votes(weights, chosen, n=N0 + n, sigma=SIGMA)

    return work


def engine_victims(*, victims: int, epochs: int, images: int, n: int, threads: bool = False) -> Work:
    ours.problem()
    tasks = [partial(_victim, k, epochs=epochs, images=images, n=n) for k in range(victims)]
    return lambda: ours.on_workers(tasks, threads=threads)


def _victim(k: int, *, epochs: int, images: int, n: int) -> None:
    model = ours.train(k, len(ours.problem().training), procedure="gaussian", epochs=epochs, batch_size=50)
    ours.certify(model, ours.problem().test.images[:images], n=n, seed=k)


def plain_upper_step(*, preset: str, steps: int, threads: int | None = None) -> Work:
    """An upper step of a preset's sizes with so many lower and linear steps."""
    settings, data, held_out = _attack(preset, steps), ours.problem().training, ours.problem().validation
    clean, poison = slice(settings.clean_batch), ours.problem().poison_indices[: settings.poison_batch]
    upper = slice(settings.upper_batch)
    model = plain.lenet((8, 16, 100) if settings.surrogate == "lenet-narrow" else (20, 50, 500))
    torch.set_num_threads(threads or workers_for("cpu"))
    return lambda: plain.upper_step(
        model,
        (data.images[clean], data.labels[clean]),
        (data.images[poison], data.labels[poison]),
        (held_out.images[upper], held_out.labels[upper]),
        sigma=SIGMA,
        draws=settings.upper_noise,
        lower_steps=settings.lower_steps,
        linear_steps=settings.linear_steps,
    )


def engine_upper_step(*, preset: str, steps: int, solver: str) -> Work:
    """The same; the linear system is drawn afresh for each step of "adam", and once for any other solver."""
    records = ours.attack(_attack(preset, steps).model_copy(update=dict(linear_solver=solver)))
    return lambda: next(records)


def engine_part(*, preset: str, part: str) -> Work:
    """A part of an upper step of a preset's sizes, on the noise of one draw for each call."""
    lower, upper, weights, x_poison = ours.levels(PRESETS[preset].config.attack)
    vector = torch.ones_like(weights)
    parts: dict[str, Work] = {
        "lower": partial(hypergradient.gradient, lower, weights, x_poison),
        "upper": partial(hypergradient.gradient, upper, weights, x_poison),
        "graph": partial(hypergradient.hessian, lower, weights, x_poison),
        "product": partial(hypergradient.hessian(lower, weights, x_poison), vector),
        "cross": partial(hypergradient.cross_term, lower, weights, x_poison, vector),
    }
    return parts[part]


def _attack(preset: str, steps: int) -> AttackConfig:
    changed = dict(lower_steps=steps, linear_steps=steps, upper_steps=1000, restart_every=1000, warmup_steps=0)
    return PRESETS[preset].config.attack.model_copy(update=changed)
