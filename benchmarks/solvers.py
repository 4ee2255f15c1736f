"""`python -m benchmarks.solvers`: what each way to the hypergradient costs in `quick`, and what its poison takes."""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
import torch

from engine import datasets
from engine.attacks import ATTACKS
from engine.config import Config
from engine.experiment.environment import environment
from engine.experiment.poisoning import pose_attack
from engine.experiment.pool import pool_of_threads
from engine.experiment.problem import Problem, pose
from engine.metrics import average_certified_radius, relative_drop
from engine.models import build
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import write_atomically
from engine.report.numbers import certificate_rows
from engine.report.tables import table
from engine.streams import stream
from engine.threat import Poison
from engine.training import make
from engine.training.base import fit
from engine.votes import count_votes

# What `quick` had when this chose its solver.
BEFORE = ("attack.linear_steps=3", "training.epochs=8", "training.precision=float32")
_LARGE, _SMALL = ("clean_batch=200", "poison_batch=100"), ("clean_batch=60", "poison_batch=60")
# What a row of the table sets in that attack.
ROWS: dict[str, tuple[str, ...]] = {
    "cg, 300 images": (*_LARGE, "linear_solver=cg"),
    "minres, 300 images": (*_LARGE, "linear_solver=minres"),
    "one-step, 300 images": (*_LARGE, "linear_solver=one-step"),
    "gradient matching, 300 images": (*_LARGE, "name=gradient-matching"),
    "cg": (*_SMALL, "linear_solver=cg"),
    "minres": (*_SMALL, "linear_solver=minres"),
    "minres, 2 steps": (*_SMALL, "linear_solver=minres", "linear_steps=2"),
    "gauss-newton-cg": (*_SMALL, "linear_solver=gauss-newton-cg"),
    "neumann": (*_SMALL, "linear_solver=neumann"),
    "nystrom": (*_SMALL, "linear_solver=nystrom", "linear_steps=5", "damping=0.1"),
    "adam": (*_SMALL, "linear_solver=adam"),
    "adam, 10 steps": (*_SMALL, "linear_solver=adam", "linear_steps=10"),
    "adam-shared, 10 steps": (*_SMALL, "linear_solver=adam-shared", "linear_steps=10"),
    "one-step": (*_SMALL, "linear_solver=one-step", "upper_steps=240", "restart_every=80"),
    "one-step, short lives": (*_SMALL, "linear_solver=one-step", "restart_every=15"),
    "unrolled": (*_SMALL, "linear_solver=unrolled", "linear_learning_rate=0.02"),
    "penalty": (*_SMALL, "linear_solver=penalty", "linear_steps=2", "damping=1", "linear_learning_rate=1e-3"),
}


@dataclass(frozen=True)
class Trial:
    """One attack, and what it took from victims."""

    name: str
    target_class: int
    seed: int
    core_seconds: float  # of the thread that attacked, as the operating system counts them
    products: int
    relative_residual: float | None  # median over upper steps
    drops: list[float]  # of the class's ACR, relative, a value for each pair of victims


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="default: all")
    parser.add_argument("--digits", nargs="+", type=int, default=[8, 3], help="target classes (default: 8 3)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the whole protocol (default: 0 1)")
    parser.add_argument("--victims", type=int, default=2, help="for each arm (default: 2)")
    parser.add_argument(
        "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
    )
    parser.add_argument("--output", type=Path, default=None, help="also write everything as JSON, and keep what it has")
    options = parser.parse_args()
    here = environment("cpu")
    facts = {name: here[name] for name in ("commit", "device_name", "torch")} | {"victims": options.victims}
    held = json.loads(options.output.read_text()) if options.output and options.output.exists() else {"trials": []}
    trials = [Trial(**trial) for trial in held.pop("trials")]
    if trials and held != facts:
        parser.error(
            f"--output {options.output} has trials of {held}, and these would be of {facts}: name another file"
        )
    torch.set_num_threads(1)
    for digit in options.digits:
        for seed in options.seeds:
            known = {trial.name for trial in trials if (trial.target_class, trial.seed) == (digit, seed)}
            rows = [name for name in options.rows if name not in known]
            base = with_overrides(PRESETS["quick"].config, [*BEFORE, f"threat.target_class={digit}", f"seed={seed}"])
            problem = pose(base, options.data_root or datasets.default_root(), torch.device("cpu"))
            for trial in measured(base, problem, rows, victims=options.victims):
                trials.append(trial)
                if options.output:
                    write_atomically(options.output, json.dumps(facts | {"trials": [asdict(each) for each in trials]}))
    print(markdown(trials) + "\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))


def measured(base: Config, problem: Problem, rows: list[str], *, victims: int) -> Iterator[Trial]:
    """Trials as they end, a worker each with one torch thread; all rows share the clean victims."""
    with pool_of_threads(torch.device("cpu")) as pool:
        clean = [pool.submit(certified, base, problem, k, None) for k in range(victims if rows else 0)]
        radii = np.array([future.result() for future in clean])
        for done in as_completed([pool.submit(attacked, base, problem, row, radii) for row in rows]):
            yield done.result()


def attacked(base: Config, problem: Problem, row: str, clean: np.ndarray) -> Trial:
    """The row's attack, and victims of it beside clean ones of these ACR, seed by seed."""
    config = with_overrides(base, [f"attack.{change}" for change in ROWS[row]])
    given = pose_attack(problem, config)
    started, products, residuals = time.thread_time(), 0, []
    for record in ATTACKS[config.attack.name](given, config.attack, config.seed):
        products += record.products
        residuals += [record.relative_residual] * (record.relative_residual == record.relative_residual)
    seconds, poison = time.thread_time() - started, Poison(record.delta, problem.poison_indices)
    poisoned = np.array([certified(config, problem, k, poison) for k in range(len(clean))])
    drops = relative_drop(clean, poisoned).tolist()
    residual = median(residuals) if residuals else None
    return Trial(row, config.threat.target_class, config.seed, seconds, products, residual, drops)


def certified(config: Config, problem: Problem, k: int, poison: Poison | None) -> float:
    """ACR of the target class for the k-th victim, as an experiment trains and certifies it."""
    data = problem.training if poison is None else poison.apply(problem.training)
    generator, settings = stream(config.seed, "victim", k), config.certification
    model = build(config.architecture, shape=tuple(data.images.shape[1:]), generator=generator)
    procedure = make(config.procedure, sigma=config.sigma)
    epochs = config.training.epochs
    list(fit(model, data, procedure=procedure, config=config.training, epochs=epochs, generator=generator))
    chosen = problem.test.labels == config.threat.target_class
    test = problem.test.select(chosen)
    *_, votes = count_votes(
        model,
        test.images,
        sigma=config.sigma,
        n0=settings.n0,
        n=settings.n,
        num_classes=len(problem.class_names),
        block=100,
        groups=[(torch.arange(len(test)), stream(config.seed, f"certification {k}"))],
    )
    counted = {
        "image": test.indices.numpy(),
        "label": test.labels.numpy(),
        "weight": problem.test_weights[chosen].numpy(),
        "selection": votes.selection.numpy(),
        "estimation": votes.estimation.numpy(),
    }
    return average_certified_radius(certificate_rows("clean", k, counted, config=config))


def markdown(trials: list[Trial]) -> str:
    """A line per row: its settings, cost, and for each problem the drop, mean ± standard deviation over victims."""
    problems = sorted(
        {(trial.target_class, trial.seed) for trial in trials}, key=lambda problem: (-problem[0], problem[1])
    )
    head = ["solver", "attack settings beside those of quick, three linear steps", "HVPs", "core s", "residual"]
    lines = [[*head, *(f"drop, digit {digit}, seed {seed}" for digit, seed in problems)]]
    for name, changes in ROWS.items():
        mine = {(trial.target_class, trial.seed): trial for trial in trials if trial.name == name}
        if not mine:
            continue
        products, cost = next(iter(mine.values())).products, fmean(trial.core_seconds for trial in mine.values())
        residuals = [trial.relative_residual for trial in mine.values() if trial.relative_residual is not None]
        residual = f"{fmean(residuals):.2f}" if residuals else "–"
        drops = [in_words(mine[problem].drops) if problem in mine else "–" for problem in problems]
        lines.append([name, ", ".join(changes), str(products), f"{cost:.0f}", residual, *drops])
    return table(lines)


def in_words(drops: list[float]) -> str:
    spread = f" ± {100 * stdev(drops):.0f}" if len(drops) > 1 else ""
    return f"{100 * fmean(drops):.0f}{spread} %"


if __name__ == "__main__":
    main()
