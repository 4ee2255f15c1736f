"""Poison and controls of one experiment: made here, or taken from an earlier run that asked for the same."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from engine import poison_file, threat
from engine.attacks import ATTACKS
from engine.attacks.base import AttackProblem, AttackRecord
from engine.attacks.random_noise import random_noise
from engine.attacks.shuffled_signs import shuffled_signs
from engine.config import Config, attackers_augmentation, lower_level, poison_depends_on
from engine.costs import work_of_attack
from engine.experiment.checkpoint import Checkpoint
from engine.experiment.context import Context
from engine.experiment.pool import Teller
from engine.experiment.problem import Problem
from engine.experiment.recorder import Recorder
from engine.records import write_tensors
from engine.replay import ParallelMap
from engine.streams import stream
from engine.threat import Poison
from engine.training import make
from engine.training.base import State

EVOLVING = 12  # poison images whose evolution is recorded
SNAPSHOTS = 24  # at most, over the attack
CURVES = ("upper_loss", "lower_loss", "relative_residual", "products", "mean_size", "share_at_epsilon")  # of each step
LARGE = 500  # noisy images in a minibatch of the attack, from which a CPU takes it in parts
PART = 100  # noisy images in such a part: what fits the cache


def with_file(
    problem: Problem, config: Config, *, runs_root: Path, recorder: Recorder
) -> tuple[Problem, Tensor | None]:
    """(The problem, changes [P, C, H, W] of the images that may change) where the attack has a poison file.

    Where the file is the poison, those of its images that this run has are the ones that may change. Where the attack
    starts from it, its changes are scaled so that the file's largest is epsilon; images that it has not start clean.
    Without a file, the problem as it is and None. Raises: PoisonFileRefused, as within_run and within_pixels.
    """
    if not config.attack.file:
        return problem, None
    file, training = poison_file.kept(config.attack.file, runs_root), problem.training
    positions, changes = poison_file.within_run(
        file,
        original=training.indices.cpu().numpy(),
        labels=training.labels.cpu().numpy(),
        allowed=problem.poison_indices.cpu().numpy(),
        target_class=config.threat.target_class,
    )
    chosen = torch.from_numpy(positions).to(training.images.device)
    x_clean = training.images[chosen].cpu().numpy()
    delta, cut = poison_file.within_pixels(changes, x_clean, rounding=file.rounding)
    given = torch.from_numpy(delta).to(training.images.device)
    scale = config.threat.epsilon / (file.largest_change or 1.0)
    starts = config.attack.name != "from-file"
    recorder.add_event(
        f"poison file: {len(positions)} of its {len(file.indices)} images are in this run's training set and may "
        "change"
        + (f"; {cut} values were cut by at most {file.rounding:.2g}, the file's rounding" if cut else "")
        + (f"; the attack starts from their changes times {scale:.3g}" if starts else "")
    )
    if not starts:
        return replace(problem, poison_indices=chosen), given
    start = torch.zeros_like(training.images[problem.poison_indices])
    place = {position: row for row, position in enumerate(problem.poison_indices.tolist())}
    start[[place[position] for position in positions.tolist()]] = given * scale
    return problem, start


def pose_attack(
    problem: Problem,
    config: Config,
    *,
    each: ParallelMap = map,
    given: Tensor | None = None,
    state: State | None = None,
) -> AttackProblem:
    """What the attacker is given of an experiment's problem. each, given, state: as in AttackProblem."""
    training, indices = problem.attackers_training()
    procedure, sigma = lower_level(config)
    on_cpu = training.images.device.type == "cpu"
    images = (config.attack.clean_batch + config.attack.poison_batch) * max(1, procedure.draws)
    return AttackProblem(
        training,
        problem.validation,
        indices,
        epsilon=config.threat.epsilon,
        target_class=config.threat.target_class,
        num_classes=len(problem.class_names),
        procedure=make(procedure, sigma=sigma),
        augmentation=attackers_augmentation(config),
        each=each,
        given=given,
        part=PART if on_cpu and images >= LARGE else None,
        state=state,
    )


class Evolution:
    """How an attack went: numbers of each step, a few images [E] after some of them, and what went wrong."""

    def __init__(self, indices: np.ndarray) -> None:
        self._indices = indices  # [E], of these images in the original training set
        self._curves: dict[str, list[float]] = {name: [] for name in CURVES}
        self.shown: list[tuple[int, np.ndarray]] = []  # (step, their delta [E, C, H, W])
        self.events: list[str] = []

    @property
    def steps(self) -> int:
        return len(self._curves["upper_loss"])

    def add(self, record: AttackRecord, *, epsilon: float) -> dict[str, float]:
        """Adds a step; returns its point on each curve."""
        sizes = record.delta.abs()
        point = {
            "upper_loss": record.upper_loss,
            "lower_loss": record.lower_loss,
            "relative_residual": record.relative_residual,
            "products": record.products,
            "mean_size": float(sizes.mean()),
            "share_at_epsilon": float((sizes > 0.999 * epsilon).float().mean()),
        }
        for name, value in point.items():
            self._curves[name].append(value)
        if record.event:
            self.events.append(f"attack, {record.event}")
        if record.step % max(1, -(-record.steps // SNAPSHOTS)) == 0:
            self.shown.append((record.step, record.delta[:EVOLVING].cpu().numpy()))
        return point

    def arrays(self) -> dict[str, np.ndarray]:
        """As evolution.safetensors has it (engine/records.py)."""
        said = {"events": np.frombuffer("\n".join(self.events).encode(), np.uint8)} if self.events else {}
        return said | {
            "steps": np.array([step for step, _ in self.shown], dtype=np.int64),
            "delta": np.array([part for _, part in self.shown], dtype=np.float32),
            "indices": self._indices,
            **{name: np.array(values, dtype=np.float64) for name, values in self._curves.items()},
        }

    def tensors(self) -> State:
        """The same, for a checkpoint; `take_up` reads it."""
        return {name: torch.tensor(array) for name, array in self.arrays().items()}

    def take_up(self, kept: State) -> None:
        self.shown = list(zip(kept["steps"].tolist(), kept["delta"].numpy(), strict=True))
        self._curves = {name: kept[name].tolist() for name in CURVES}
        self.events = _events(kept)


def make_poison(context: Context, *, given: Tensor | None) -> None:
    """Writes the attack's result, or that of an earlier run that asked for the same. given: as in AttackProblem."""
    config, recorder = context.config, context.recorder
    path, evolution_path = _files(context)
    depends_on = context.depends_on | poison_depends_on(config)
    keys = {
        evolution_path: context.cache.key("evolution", depends_on),
        path: context.cache.key("poison", depends_on),
    }
    started, whole = time.monotonic(), work_of_attack(config)
    checkpoint = Checkpoint(context.run.directory, keys[path])
    if all(context.cache.fetch(key, file) for file, key in keys.items()):
        recorder.add_reused("poison", whole)
        evolution = load_file(evolution_path)
        _record_again(recorder, evolution, steps=len(evolution["upper_loss"]))
    else:
        _optimise(context, checkpoint, given=given)
        recorder.add_seconds("poison", time.monotonic() - started)
    poison_of(context, "poisoned")  # raises what is wrong with it
    for file, key in keys.items():
        context.cache.share(key, file)


def poison_of(context: Context, arm: str) -> Poison | None:
    """What an arm's victims see of the attacker: the attack's result, once it is there, or a control; None if clean."""
    if arm == "clean":
        return None
    config, problem, indices = context.config, context.problem, context.problem.poison_indices
    x_clean, epsilon = problem.training.images[indices], config.threat.epsilon
    generator = stream(config.seed, arm, device=context.device)
    if arm == "random_noise":
        poison = Poison(random_noise(x_clean, epsilon=epsilon, generator=generator), indices)
    else:
        kept, _ = _files(context)
        found = {name: torch.from_numpy(array).to(context.device) for name, array in load_file(kept).items()}
        poison = Poison(found["delta"], indices, found.get("labels"))
    if arm == "shuffled_signs":
        poison = Poison(shuffled_signs(x_clean, poison.delta, epsilon=epsilon, generator=generator), indices)
    threat.check(
        poison,
        problem.training,
        target_class=config.threat.target_class,
        epsilon=epsilon,
        clean_label=arm != "poisoned" or not config.attack.traits.changes_labels,
    )
    return poison


def measure(context: Context, arm: str, recorder: Recorder) -> None:
    """Records how visible an arm's changes are."""
    poison = poison_of(context, arm)
    if poison is not None:
        x_clean = context.problem.training.images[poison.indices].cpu().numpy()
        recorder.add_perturbation(arm, x_clean, poison.delta.cpu().numpy())


def _files(context: Context) -> tuple[Path, Path]:
    """Where the run keeps its poison, and how that came about."""
    return context.run.directory / "poison.safetensors", context.run.directory / "evolution.safetensors"


def _optimise(context: Context, checkpoint: Checkpoint, *, given: Tensor | None) -> None:
    """Runs the attack to the end, from where an earlier attempt at this run was stopped if there was one.

    The poison of some steps, and the one at which it ends or is stopped if it made any, are written to disk.
    """
    config, problem, recorder = context.config, context.problem, context.recorder
    (path, evolution_path), whole = _files(context), work_of_attack(config)
    poison = Poison(torch.zeros_like(problem.training.images[problem.poison_indices]), problem.poison_indices)
    evolution = Evolution(problem.training.indices[poison.indices[:EVOLVING]].cpu().numpy())
    kept = checkpoint.load()
    if kept:
        poison = replace(poison, delta=kept["poison"].to(context.device))
        evolution.take_up(kept)
        behind, steps = evolution.steps, config.attack.upper_steps
        _record_again(recorder, evolution.arrays(), steps=steps)
        recorder.add_reused(f"poison until step {behind}", whole * behind / steps)

    def save() -> None:
        _write_poison(path, problem, poison)
        write_tensors(evolution_path, **evolution.arrays())

    posed = pose_attack(problem, config, each=context.each, given=given, state=kept or None)
    try:
        for record in ATTACKS[config.attack.name](posed, config.attack, config.seed):
            poison = Poison(record.delta, problem.poison_indices, record.labels)
            point = evolution.add(record, epsilon=config.threat.epsilon)
            recorder.add_metrics("attack", step=record.step, steps=record.steps, **point)
            recorder.add_products(record.products)
            recorder.add_work(whole / record.steps, f"attack: step {record.step} of {record.steps}")
            if record.event:
                recorder.add_event(evolution.events[-1])
            if evolution.shown and evolution.shown[-1][0] == record.step:
                save()
            if record.state is not None:
                checkpoint.keep(partial(_standing, record.state, evolution, poison))
            context.check_stop()
    finally:
        if evolution.steps:
            save()
    if len(problem.poison_indices) == 0:  # nothing may change, so there was nothing to do
        save()
        recorder.add_work(whole)


def _standing(state: Callable[[], State], evolution: Evolution, poison: Poison) -> State:
    return {**state(), **evolution.tensors(), "poison": poison.delta}


def _record_again(recorder: Teller, evolution: dict[str, np.ndarray], *, steps: int) -> None:
    """Writes the step records and events that are there of an attack of so many steps, as if it had run here."""
    curves = {name: evolution[name] for name in CURVES}
    for step in range(len(curves["upper_loss"])):
        point = {name: float(values[step]) for name, values in curves.items()}
        recorder.add_metrics("attack", step=step + 1, steps=steps, **point)
    recorder.add_products(int(curves["products"].sum()))
    for event in _events(evolution):
        recorder.add_event(event)


def _events(evolution: Mapping[str, np.ndarray | Tensor]) -> list[str]:
    """What went wrong on the way, in words; kept only where something did."""
    return bytes(evolution["events"].tolist()).decode().splitlines() if "events" in evolution else []


def _write_poison(path: Path, problem: Problem, poison: Poison) -> None:
    """The poison with positions in the original training set, from which anyone can rebuild the images."""
    labels = {} if poison.labels is None else {"labels": poison.labels.cpu().numpy()}
    write_tensors(
        path,
        delta=poison.delta.cpu().numpy(),
        indices=problem.training.indices[poison.indices].cpu().numpy(),
        **labels,
    )
