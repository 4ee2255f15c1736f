"""The protocol, on one page: data → attack and controls → victims from scratch → certificates → report.

Tasks run in a few threads of one torch thread each (faster than torch's own threads, and they don't collapse beside
other work). Every random draw comes from a named stream, so nothing depends on which thread was faster.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from engine import datasets, poison_file, threat
from engine.attacks import ATTACKS
from engine.attacks.base import AttackProblem
from engine.attacks.random_noise import random_noise
from engine.attacks.shuffled_signs import shuffled_signs
from engine.config import PROTOCOL_VERSION, arms_of, lower_level
from engine.costs import work_of_attack, work_of_training, work_of_votes, workers_for
from engine.data import LabelledImages
from engine.models import build
from engine.problem import Problem, pose
from engine.recorder import Recorder
from engine.records import Cancelled, Run, write_tensors
from engine.report import certificate_rows
from engine.squeezing import squeeze
from engine.stages import StageCache
from engine.streams import stream
from engine.threat import Poison
from engine.training import make
from engine.training.base import fit
from engine.votes import count_votes, has_bfloat16

EVOLVING = 12  # poison images whose evolution is recorded
SNAPSHOTS = 24  # at most, over the attack
CURVES = ("upper_loss", "lower_loss", "relative_residual", "products", "mean_size", "share_at_epsilon")  # of each step
LANES = 8  # groups of test images, each with its own noise
LARGE = 500  # noisy images in a minibatch of the attack, from which its parts are computed side by side on a CPU
PART, WHOLE = 100, 1_000_000  # noisy images in such a part: what fits the cache; all in one
VOTES_BLOCK = {"cpu": 100, "cuda": 10_000}  # noisy copies at once: what fits the cache, what fills the card


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Experiment:
    """One run of the protocol into its run directory; `work` does it, `book` says how far it is."""

    def __init__(self, run: Run, *, runs_root: Path, data_root: Path, device: torch.device) -> None:
        self.run, self.config, self.device, self.data_root = run, run.config, device, data_root
        self.book = Recorder(run)
        self._bfloat16 = self.config.training.precision == "fast" and device.type == "cpu" and has_bfloat16()
        self._stages = StageCache(runs_root)
        self._stop = threading.Event()
        self._given: Tensor | None = None  # changes from a file
        self._clean_victims = [threading.Lock() for _ in range(self.config.victim_seeds)]

    def work(self, *, cancelled: Callable[[], bool], heartbeat: Callable[[], None]) -> None:
        """Does the whole protocol; whatever happens on the way, what was finished is on disk.

        Args:
            cancelled: asked a few times a second.
            heartbeat: called as often, from the calling thread, while other threads compute.
        Raises: Cancelled soon after cancelled() became true, and whatever a stage raises.
        """
        problem = self._with_file(pose(self.config, self.data_root, self.device))
        self.book.class_names = problem.class_names
        self._problem_key = {
            "protocol": PROTOCOL_VERSION,
            "torch": torch.__version__,
            "device": self.device.type,
            "dataset": self.config.dataset,
            "images": datasets.fingerprint(self.config.dataset, self.data_root),
            "data": self.config.data.model_dump(),
            "seed": self.config.seed,
        }
        self.book.phase = "attack and first victims"
        seeds = range(self.config.victim_seeds)
        pool, self._helpers = (
            ThreadPoolExecutor(workers_for(self.device.type), initializer=torch.set_num_threads, initargs=(1,))
            for _ in range(2)  # the attack is one task of the first and has the second compute its parts
        )
        try:
            arms = arms_of(self.config)
            attack = pool.submit(self._poison, problem) if "poisoned" in arms else None
            pending: set[Future[Any]] = {attack} if attack else set()
            pending |= {pool.submit(self._victim, problem, "clean", k, None) for k in seeds}
            if "random_noise" in arms:
                noise = self._control(problem, "random_noise")
                pending |= {pool.submit(self._victim, problem, "random_noise", k, noise) for k in seeds}
            while pending:
                finished, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                for future in finished:
                    if future is attack:
                        poison = future.result()
                        self.book.phase = "victims and certificates"
                        pending |= {pool.submit(self._victim, problem, "poisoned", k, poison) for k in seeds}
                        if "shuffled_signs" in arms:
                            shuffled = self._control(problem, "shuffled_signs", poison.delta)
                            pending |= {
                                pool.submit(self._victim, problem, "shuffled_signs", k, shuffled) for k in seeds
                            }
                    else:
                        self.book.add_certificates(*future.result())
                heartbeat()
                if cancelled():
                    raise Cancelled
        finally:
            self._stop.set()  # whoever still computes stops at its next step
            for each in (pool, self._helpers):
                each.shutdown(wait=True, cancel_futures=True)

    def _with_file(self, problem: Problem) -> Problem:
        """Of a poison file: the problem with its images as those that may change, as far as this run has them."""
        if self.config.attack.name != "from-file":
            return problem
        file, training = poison_file.kept(self.config.attack.file, self._stages.folder.parent), problem.training
        positions, part = poison_file.within_run(
            file,
            original=training.indices.cpu().numpy(),
            labels=training.labels.cpu().numpy(),
            allowed=problem.poison_indices.cpu().numpy(),
            target_class=self.config.threat.target_class,
        )
        chosen = torch.from_numpy(positions).to(self.device)
        delta, cut = poison_file.within_pixels(part, training.images[chosen].cpu().numpy())
        self._given = torch.from_numpy(delta).to(self.device)
        self.book.add_event(
            f"poison file: {len(positions)} of its {len(file.indices)} images are in this run's training set and may "
            "change" + (f"; {cut} values were cut by at most {file.rounding:.2g}, the file's rounding" if cut else "")
        )
        return replace(problem, poison_indices=chosen)

    def _poison(self, problem: Problem) -> Poison:
        """The attack, or its result from an earlier run that asked for the same."""
        config, path = self.config, self.run.directory / "poison.safetensors"
        evolution = path.with_name("evolution.safetensors")
        procedure, sigma = lower_level(config)
        depends_on = self._problem_key | {
            "threat": config.threat.model_dump(),
            "attack": config.attack.model_dump(exclude={"procedure", "sigma"}),
            "procedure": procedure.model_dump(),
            "sigma": sigma,
            "augmentation": config.training.augmentation,
        }
        keys = {evolution: self._stages.key("evolution", depends_on), path: self._stages.key("poison", depends_on)}
        started, whole = time.monotonic(), work_of_attack(config)
        if all(self._stages.fetch(key, file) for file, key in keys.items()):
            self.book.add_reused("poison", "poison", whole)
            _replay(self.book, load_file(evolution))
        else:
            self._optimise(problem, path, evolution, whole)
            self.book.add_seconds("poison", started)
        found = {name: torch.from_numpy(array).to(self.device) for name, array in load_file(path).items()}
        poison = Poison(found["delta"], problem.poison_indices, found.get("labels"))
        threat.check(
            poison,
            problem.training,
            target_class=config.threat.target_class,
            epsilon=config.threat.epsilon,
            clean_label=config.attack.name != "label-flip",
        )
        for file, key in keys.items():
            self._stages.publish(key, file)
        self._measure(problem, "poisoned", poison)
        return poison

    def _optimise(self, problem: Problem, path: Path, evolution: Path, whole: float) -> None:
        """Runs the attack; some steps' poison, and what is there when it is stopped, are on disk."""
        config, (procedure, sigma) = self.config, lower_level(self.config)
        poison = Poison(torch.zeros_like(problem.training.images[problem.poison_indices]), problem.poison_indices)
        shown: list[tuple[int, np.ndarray]] = []
        curves: dict[str, list[float]] = {name: [] for name in CURVES}

        def save() -> None:
            _write_poison(path, problem, poison)
            write_tensors(
                evolution,
                steps=np.array([step for step, _ in shown], dtype=np.int64),
                delta=np.array([part for _, part in shown], dtype=np.float32),
                indices=problem.training.indices[poison.indices[:EVOLVING]].cpu().numpy(),
                **{name: np.array(values, dtype=np.float64) for name, values in curves.items()},
            )

        training, indices = problem.attackers_training()
        images = (config.attack.clean_batch + config.attack.poison_batch) * max(1, procedure.draws)
        side_by_side = self.device.type == "cpu" and images >= LARGE
        given = AttackProblem(
            training,
            problem.validation,
            indices,
            epsilon=config.threat.epsilon,
            target_class=config.threat.target_class,
            num_classes=len(problem.class_names),
            procedure=make(procedure, sigma=sigma),
            augmentation=config.training.augmentation,
            each=self._helpers.map if side_by_side else map,
            given=self._given,
            part=PART if side_by_side else WHOLE,
        )
        try:
            for record in ATTACKS[config.attack.name](given, config.attack, config.seed):
                poison = Poison(record.delta, problem.poison_indices, record.labels)
                sizes = record.delta.abs()
                point = {
                    "upper_loss": record.upper_loss,
                    "lower_loss": record.lower_loss,
                    "relative_residual": record.relative_residual,
                    "products": record.products,
                    "mean_size": float(sizes.mean()),
                    "share_at_epsilon": float((sizes > 0.999 * config.threat.epsilon).float().mean()),
                }
                for name, value in point.items():
                    curves[name].append(value)
                self.book.add_metrics("attack", step=record.step, steps=record.steps, **point)
                self.book.products += record.products
                self.book.add_work("poison", whole / record.steps, f"attack: step {record.step} of {record.steps}")
                if record.event:
                    self.book.add_event(f"attack, {record.event}")
                if record.step % max(1, -(-record.steps // SNAPSHOTS)) == 0:
                    shown.append((record.step, record.delta[:EVOLVING].cpu().numpy()))
                    save()
                self._check_stop()
        finally:
            save()
        if len(problem.poison_indices) == 0:  # nothing may change, so there was nothing to do
            self.book.add_work("poison", whole)

    def _control(self, problem: Problem, arm: str, delta: Tensor | None = None) -> Poison:
        """random_noise, or shuffled_signs of a delta, on the very images that the attack may change."""
        x_clean, epsilon = problem.training.images[problem.poison_indices], self.config.threat.epsilon
        generator = stream(self.config.seed, arm, device=self.device)
        if delta is None:
            control = random_noise(x_clean, epsilon=epsilon, generator=generator)
        else:
            control = shuffled_signs(x_clean, delta, epsilon=epsilon, generator=generator)
        poison = Poison(control, problem.poison_indices)
        threat.check(poison, problem.training, target_class=self.config.threat.target_class, epsilon=epsilon)
        self._measure(problem, arm, poison)
        return poison

    def _victim(self, problem: Problem, arm: str, k: int, poison: Poison | None) -> tuple[str, int, pd.DataFrame]:
        """Trains the arm's k-th victim from scratch and certifies it: (arm, k, its certificate table)."""
        config, name = self.config, f"{arm}-{k}"
        model, victim_key = self._trained(problem, name, k, poison)
        settings = config.certification
        sampling = settings.model_dump(exclude={"alpha"}) | {"target_class": config.threat.target_class}
        path = self.run.directory / "votes" / f"{name}.safetensors"
        key = self._stages.key("votes", victim_key | {"certification": sampling})
        if self._stages.fetch(key, path):
            self.book.add_reused(f"votes {name}", "certify", work_of_votes(config))
        else:
            write_tensors(path, **self._vote(model, problem, name, k))
            self._stages.publish(key, path)
        return arm, k, certificate_rows(arm, k, load_file(path), config=config)

    def _trained(self, problem: Problem, name: str, k: int, poison: Poison | None) -> tuple[nn.Module, dict[str, Any]]:
        """A victim and what it depends on: trained here from scratch, or fine-tuned from a clean one, or reused."""
        config = self.config
        epochs, more = config.training.epochs, config.training.fine_tune_epochs
        depends_on = self._problem_key | {
            "procedure": config.procedure.model_dump(),
            "architecture": config.architecture,
            "sigma": config.sigma,
            "training": config.training.model_dump(exclude={"fine_tune_epochs", "precision"}),
            "bfloat16": self._bfloat16,
            "victim": k,
        }
        clean_data = replace(problem.training, images=squeeze(problem.training.images, config.training.squeezing))
        data = clean_data
        if poison is not None:
            changed = poison.apply(problem.training)
            data = replace(changed, images=squeeze(changed.images, config.training.squeezing))
        poisoned = {"poison": None if poison is None else poison.digest()}
        generator = stream(config.seed, "victim", k, device=self.device)
        shape, classes = tuple(data.images.shape[1:]), len(problem.class_names)
        model = build(config.architecture, shape=shape, num_classes=classes, generator=generator)
        if not more:
            depends_on |= poisoned
            self._train_or_load(model, data, name, depends_on, epochs=epochs, generator=generator)
            return model, depends_on
        with self._clean_victims[k]:  # the arms wait for the one that trains it
            clean = depends_on | {"poison": None}
            self._train_or_load(model, clean_data, f"before-{k}", clean, epochs=epochs, generator=generator)
        depends_on |= poisoned | {"fine_tune_epochs": more}
        generator = stream(config.seed, "fine-tuning", k, device=self.device)
        self._train_or_load(model, data, name, depends_on, epochs=more, generator=generator)
        return model, depends_on

    def _train_or_load(
        self,
        model: nn.Module,
        training: LabelledImages,
        name: str,
        depends_on: dict[str, Any],
        *,
        epochs: int,
        generator: torch.Generator,
    ) -> None:
        """Leaves the model trained from where it stands, in evaluation mode, its weights on disk."""
        weights = self.run.directory / "victims" / f"{name}.safetensors"
        key, whole = self._stages.key("victim", depends_on), work_of_training(self.config, epochs=epochs)
        if self._stages.fetch(key, weights):
            self.book.add_reused(f"victim {name}", "train", whole)
        else:
            self._train(model, training, name, epochs, whole, generator)
            write_tensors(weights, **{n: p.detach().cpu().numpy() for n, p in model.state_dict().items()})
            self._stages.publish(key, weights)
        model.load_state_dict({n: torch.from_numpy(p) for n, p in load_file(weights).items()})
        model.eval()

    def _train(
        self,
        model: nn.Module,
        training: LabelledImages,
        name: str,
        epochs: int,
        whole: float,
        generator: torch.Generator,
    ) -> None:
        config, started = self.config, time.monotonic()
        procedure = make(config.procedure, sigma=config.sigma)
        for record in fit(
            model,
            training,
            procedure=procedure,
            config=config.training,
            epochs=epochs,
            generator=generator,
            bfloat16=self._bfloat16,
        ):
            self.book.add_work("train", whole / record.steps, f"victim {name}: epoch {record.epoch} of {epochs}")
            if record.loss is not None:
                self.book.add_metrics(
                    "training", victim=name, epoch=record.epoch, loss=record.loss, accuracy=record.accuracy
                )
            self._check_stop()
        with torch.no_grad():  # the last step comes after the last loss, and a NaN would vote like any class
            if not bool(model(training.images[:100]).isfinite().all()):
                raise FloatingPointError(f"the logits of victim {name} are not finite after its training")
        self.book.add_seconds("train", started)

    def _vote(self, model: nn.Module, problem: Problem, name: str, k: int) -> dict[str, np.ndarray]:
        """Votes under noise for every image to certify. All arms' k-th victims see the same noise, to be paired.

        An image belongs to a lane by its index, and a lane's images share their draws: whatever else is certified,
        an image sees the same noise.
        """
        config, settings, started = self.config, self.config.certification, time.monotonic()
        images, lane_of = problem.test.images, problem.test.indices % LANES
        lanes = [int(lane) for lane in lane_of.unique()]
        block = VOTES_BLOCK[self.device.type]
        blocks = len(lanes) * -(-(settings.n0 + settings.n) // block)
        groups = (
            (
                (lane_of == lane).nonzero().squeeze(1),
                stream(config.seed, f"certification {k}", lane, device=self.device),
            )
            for lane in lanes
        )
        counting = count_votes(
            model,
            images,
            sigma=config.sigma,
            n0=settings.n0,
            n=settings.n,
            num_classes=len(problem.class_names),
            block=block,
            groups=groups,
            screened=self.device.type == "cpu" and has_bfloat16(),
        )
        for done, found in enumerate(counting, start=1):
            votes = found
            self.book.add_work("certify", work_of_votes(config) / blocks, f"votes {name}: {done / blocks:.0%}")
            self._check_stop()
        self.book.add_seconds("certify", started)
        return {
            "image": problem.test.indices.cpu().numpy(),
            "label": problem.test.labels.cpu().numpy(),
            "weight": problem.test_weights.numpy(),
            "selection": votes.selection.cpu().numpy(),
            "estimation": votes.estimation.cpu().numpy(),
        }

    def _measure(self, problem: Problem, arm: str, poison: Poison) -> None:
        x_clean = problem.training.images[poison.indices].cpu().numpy()
        self.book.add_perturbation(arm, x_clean, poison.delta.cpu().numpy())

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled


def _replay(book: Recorder, evolution: dict[str, np.ndarray]) -> None:
    """Writes the step records of an attack that was reused, as if it had run here."""
    curves = {name: evolution[name] for name in CURVES}
    steps = len(curves["upper_loss"])
    for step in range(steps):
        point = {name: float(values[step]) for name, values in curves.items()}
        book.add_metrics("attack", step=step + 1, steps=steps, **point)
    book.products = int(curves["products"].sum())


def _write_poison(path: Path, problem: Problem, poison: Poison) -> None:
    """The poison with positions in the original training set, from which anyone can rebuild the images."""
    labels = {} if poison.labels is None else {"labels": poison.labels.cpu().numpy()}
    write_tensors(
        path,
        delta=poison.delta.cpu().numpy(),
        indices=problem.training.indices[poison.indices].cpu().numpy(),
        **labels,
    )
