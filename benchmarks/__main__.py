"""`python -m benchmarks`: how much faster the engine is than plain code, as medians of alternating rounds."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import plain
from engine import datasets, jobs
from engine.attacks.base import AttackProblem
from engine.attacks.pacd import pacd
from engine.certification import count_votes
from engine.config import AttackConfig, Config
from engine.costs import workers_for
from engine.models import build
from engine.presets import PRESETS
from engine.problem import Problem, pose
from engine.streams import stream
from engine.training import make
from engine.training.base import fit

Pair = tuple[str, Callable[[], float], Callable[[], float]]  # what, seconds of plain code, seconds of the engine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of plain code and engine in turn (default: 5)")
    parser.add_argument(
        "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
    )
    parser.add_argument("--output", type=Path, default=None, help="also write everything as JSON")
    options = parser.parse_args()
    config = PRESETS["quick"].config
    problem = pose(config, options.data_root or datasets.default_root(), torch.device("cpu"))
    rows = [measure(pair, options.rounds) for pair in pairs(config, problem)]
    facts = {
        "commit": jobs.commit(),
        "machine": platform.processor() or platform.machine(),
        "cpus": workers_for("cpu"),
        "torch": torch.__version__,
        "rounds": options.rounds,
    }
    print("| what | plain, s | engine, s | plain / engine (median, range) |\n|---|---|---|---|")
    for row in rows:
        ratios = row["ratios"]
        print(
            f"| {row['what']} | {statistics.median(row['plain']):.3f} | {statistics.median(row['engine']):.3f} "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f}) |"
        )
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if options.output:
        options.output.write_text(json.dumps(facts | {"rows": rows}, indent=1))


def measure(pair: Pair, rounds: int) -> dict:
    """Seconds of both, in turn, after one round that does not count."""
    what, plainly, engine = pair
    plainly(), engine()
    seconds = [(plainly(), engine()) for _ in range(rounds)]
    first, second = zip(*seconds, strict=True)
    return {"what": what, "plain": first, "engine": second, "ratios": [a / b for a, b in seconds]}


def pairs(config: Config, problem: Problem) -> list[Pair]:
    """What is compared. Whole-machine figures give plain code torch's own threads, the engine its workers."""
    everywhere, alone = os.cpu_count() or 1, 1
    image, n = problem.test.images[0], 2000
    images, labels = problem.training.images, problem.training.labels
    authors = PRESETS["paper-ga-mnist"].config.attack
    return [
        (
            f"votes of n = {n} for an image, lenet, whole machine",
            lambda: timed(everywhere, lambda: plain.votes(plain.lenet().eval(), image, n=n, sigma=0.5)),
            lambda: on_all_workers(lambda: votes(problem, n)),
        ),
        (
            f"a victim's epoch of {len(images)} images, batch 50, GA, lenet, whole machine",
            lambda: timed(everywhere, lambda: plain.train(plain.lenet(), images, labels, batch_size=50, sigma=0.5)),
            lambda: on_all_workers(lambda: epoch(config, problem)),
        ),
        (
            "an upper step of the authors' sizes (1000 images, 10 lower and 10 linear steps), lenet, one thread",
            lambda: timed(alone, lambda: plain_step(problem, authors)),
            lambda: engine_step(problem, config, authors),
        ),
    ]


def timed(threads: int, task: Callable[[], object]) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def on_all_workers(task: Callable[[], object]) -> float:
    """Seconds per task when every worker does one, each with one torch thread, as in an experiment."""
    workers = workers_for("cpu")
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = time.perf_counter()
        for done in [pool.submit(task) for _ in range(workers)]:
            done.result()
        return (time.perf_counter() - started) / workers


def votes(problem: Problem, n: int) -> None:
    model = build("lenet", generator=stream(0, "benchmark")).eval()
    draws = (stream(0, "benchmark votes", k) for k in range(1))
    image = problem.test.images[:1]
    list(count_votes(model, image, sigma=0.5, n0=1, n=n, num_classes=10, batch_size=100, generators=draws))


def epoch(config: Config, problem: Problem) -> None:
    model, procedure = build("lenet", generator=stream(0, "benchmark")), make(config.procedure, sigma=0.5)
    generator = stream(0, "benchmark epoch")
    list(fit(model, problem.training, procedure=procedure, config=config.training, epochs=1, generator=generator))


def plain_step(problem: Problem, attack: AttackConfig) -> None:
    training, held_out = problem.training, problem.validation
    clean, poison = attack.clean_batch, problem.poison_indices[: attack.poison_batch]
    upper = attack.upper_batch
    plain.upper_step(
        plain.lenet(),
        (training.images[:clean], training.labels[:clean]),
        (training.images[poison], training.labels[poison]),
        (held_out.images[:upper], held_out.labels[:upper]),
        sigma=0.5,
        draws=attack.upper_noise,
        lower_steps=attack.lower_steps,
        linear_steps=attack.linear_steps,
    )


def engine_step(problem: Problem, config: Config, attack: AttackConfig) -> float:
    """Seconds of the second upper step: the first also builds the surrogate."""
    training, indices = problem.attackers_training()
    given = AttackProblem(
        training,
        problem.validation,
        indices,
        epsilon=config.threat.epsilon,
        target_class=config.threat.target_class,
        num_classes=len(problem.class_names),
        procedure=make(config.procedure, sigma=config.sigma),
    )
    steps = pacd(given, attack, 0)
    torch.set_num_threads(1)
    next(steps)
    started = time.perf_counter()
    next(steps)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
