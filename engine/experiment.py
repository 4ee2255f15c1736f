"""The protocol, on one page: data → attack and controls → victims from scratch → certificates → report.

Tasks run in a few threads of one torch thread each (faster than torch's own threads, and they don't collapse beside
other work). Every random draw comes from a named stream, so nothing depends on which thread was faster.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from engine import perception, threat
from engine.attacks.pacd import pacd
from engine.attacks.random_noise import random_noise
from engine.attacks.shuffled_signs import shuffled_signs
from engine.certification import count_votes
from engine.config import PROTOCOL_VERSION, Config
from engine.costs import Work, work_of, work_of_attack, work_of_training, work_of_votes, workers_for
from engine.data import LabelledImages, load, split
from engine.datasets import DATASETS, NUM_CLASSES
from engine.models import build
from engine.records import ARMS, CONTROLS, Cancelled, Run, write_atomically, write_tensors
from engine.report import build_report, certificate_rows
from engine.stages import StageCache
from engine.streams import stream
from engine.threat import Poison
from engine.training import PROCEDURES
from engine.training.base import fit

EVOLVING = 12  # poison images whose evolution is recorded
SNAPSHOTS = 24  # at most, over the attack
CERTIFICATION_BATCH = {"cpu": 100, "cuda": 10_000}  # noisy copies at once: what fits the cache, what fills the card


@dataclass(frozen=True)
class Data:
    """What one experiment sees, on its device. All index tensors are positions within `training` or `test`."""

    training: LabelledImages
    validation: LabelledImages  # of the target class, the attacker's
    test: LabelledImages  # the images to certify
    test_weights: Tensor  # [N] so that the stratified sample stands for the whole test set
    poison_indices: Tensor


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_data(config: Config, data_root: Path, device: torch.device) -> Data:
    original, test = (load(config.dataset, data_root, train=train) for train in (True, False))
    training, validation = split(
        original,
        train_size=config.data.train_size,
        validation_size=config.data.validation_size,
        seed=config.seed,
    )
    target = config.threat.target_class
    indices = threat.choose_poison_indices(
        training.labels,
        target_class=target,
        poison_fraction=config.threat.poison_fraction,
        seed=config.seed,
    )
    chosen, weights = [], []
    for label in range(NUM_CLASSES):
        of_class = (test.labels == label).nonzero().squeeze(1)
        order = torch.randperm(len(of_class), generator=stream(config.seed, "test images", label))
        wanted = config.certification.target_images if label == target else config.certification.other_images
        part = of_class[order[:wanted]].sort().values
        chosen.append(part)
        weights.append(torch.full((len(part),), len(of_class) / len(part) / len(test), dtype=torch.float64))
    return Data(
        training.to(device),
        validation.of_class(target).to(device),
        test.select(torch.cat(chosen)).to(device),
        torch.cat(weights),
        indices.to(device),
    )


class Experiment:
    """One run of the protocol into its run directory; `work` does it, the attributes say how far it is."""

    def __init__(self, run: Run, *, runs_root: Path, data_root: Path, device: torch.device) -> None:
        self.run, self.config, self.device, self.data_root = run, run.config, device, data_root
        self.phase = "reading data"
        self.detail = ""
        self.events: list[str] = []
        self.seconds = {"poison": 0.0, "train": 0.0, "certify": 0.0}  # of computing, summed over workers
        self.reused: list[str] = []
        self._stages = StageCache(runs_root)
        self._whole, self._done = work_of(self.config), Work()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._tables: list[pd.DataFrame] = []
        self._perturbations: dict[str, dict[str, float | None]] = {}

    @property
    def fraction(self) -> float:
        """Share of the run's work that is done, in [0, 1]; work that a reused stage saves is no work."""
        whole = self._whole.total
        return min(1.0, self._done.total / whole) if whole > 0 else 1.0

    def work(self, *, cancelled: Callable[[], bool], heartbeat: Callable[[], None]) -> None:
        """Does the whole protocol; whatever happens on the way, what was finished is on disk.

        Args:
            cancelled: asked a few times a second.
            heartbeat: called as often, from the calling thread, while other threads compute.
        Raises: Cancelled soon after cancelled() became true, and whatever a stage raises.
        """
        started = time.monotonic()
        data = load_data(self.config, self.data_root, self.device)
        self._data_key = {
            "protocol": PROTOCOL_VERSION,
            "torch": torch.__version__,
            "device": self.device.type,
            "dataset": self.config.dataset,
            "data": self.config.data.model_dump(),
            "seed": self.config.seed,
        }
        self.phase = "attack and first victims"
        seeds = range(self.config.victim_seeds)
        pool = ThreadPoolExecutor(workers_for(self.device.type), initializer=torch.set_num_threads, initargs=(1,))
        try:
            attack: Future[Poison] = pool.submit(self._poison, data)
            noise = self._control(data, "random_noise")
            pending: set[Future[Any]] = {attack}
            pending |= {pool.submit(self._victim, data, "clean", k, None) for k in seeds}
            pending |= {pool.submit(self._victim, data, "random_noise", k, noise) for k in seeds}
            while pending:
                finished, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                for future in finished:
                    if future is attack:
                        poison = attack.result()
                        shuffled = self._control(data, "shuffled_signs", poison.delta)
                        self.phase = "victims and certificates"
                        pending |= {pool.submit(self._victim, data, "poisoned", k, poison) for k in seeds}
                        pending |= {pool.submit(self._victim, data, "shuffled_signs", k, shuffled) for k in seeds}
                    else:
                        self._keep(future.result(), started)
                heartbeat()
                if cancelled():
                    raise Cancelled
        finally:
            self._stop.set()  # whoever still computes stops at its next step
            pool.shutdown(wait=True, cancel_futures=True)

    def _poison(self, data: Data) -> Poison:
        """The attack, or its result from an earlier run that asked for the same."""
        config, path = self.config, self.run.directory / "poison.safetensors"
        key = self._stages.key(
            "poison",
            self._data_key
            | {
                "threat": config.threat.model_dump(),
                "attack": config.attack.model_dump(),
                "procedure": config.procedure,
                "sigma": config.sigma,
            },
        )
        started, whole = time.monotonic(), work_of_attack(config.attack)
        reused = self._stages.fetch(key, path)
        if not reused:
            delta = self._optimise(data, path, whole)
            _write_poison(path, data, Poison(delta, data.poison_indices))
            self._done.poison = whole
        tensors = load_file(path)
        poison = Poison(torch.from_numpy(tensors["delta"]).to(self.device), data.poison_indices)
        threat.check(poison, data.training, target_class=config.threat.target_class, epsilon=config.threat.epsilon)
        if reused:
            self._note_reused("poison", "poison", whole)
        else:
            self._stages.publish(key, path)
            self.seconds["poison"] = time.monotonic() - started
        self._measure(data, "poisoned", poison)
        return poison

    def _optimise(self, data: Data, path: Path, whole: float) -> Tensor:
        """Runs the attack, recording every step's losses and some steps' poison; keeps what it has if it is stopped."""
        config, delta = self.config, torch.zeros_like(data.training.images[data.poison_indices])
        steps, shown = config.attack.upper_steps, []
        every = max(1, -(-steps // SNAPSHOTS))
        try:
            for record in pacd(
                data.training,
                data.validation,
                indices=data.poison_indices,
                epsilon=config.threat.epsilon,
                procedure=PROCEDURES[config.procedure],
                architecture=config.attack.surrogate,
                sigma=config.sigma,
                config=config.attack,
                seed=config.seed,
            ):
                delta = record.delta
                self._done.poison = whole * record.step / steps
                self.detail = f"attack: upper step {record.step} of {steps}"
                if record.event:
                    self._note_event(f"attack, {record.event}")
                self._metric(
                    "attack",
                    step=record.step,
                    steps=steps,
                    upper_loss=_finite(record.upper_loss),
                    lower_loss=_finite(record.lower_loss),
                    relative_residual=_finite(record.relative_residual),
                    mean_size=float(delta.abs().mean()),
                    share_at_epsilon=float((delta.abs() > 0.999 * config.threat.epsilon).float().mean()),
                )
                if record.step % every == 0 or record.step == steps:
                    shown.append((record.step, delta[:EVOLVING].cpu().numpy().copy()))
                    write_tensors(
                        self.run.directory / "evolution.safetensors",
                        steps=np.array([step for step, _ in shown]),
                        delta=np.stack([part for _, part in shown]),
                        indices=data.training.indices[data.poison_indices[:EVOLVING]].cpu().numpy(),
                    )
                self._check_stop()
        except Cancelled:
            _write_poison(path, data, Poison(delta, data.poison_indices))
            raise
        return delta

    def _control(self, data: Data, arm: str, delta: Tensor | None = None) -> Poison:
        """random_noise, or shuffled_signs of a delta, on the very images that the attack may change."""
        x_clean, epsilon = data.training.images[data.poison_indices], self.config.threat.epsilon
        generator = stream(self.config.seed, arm, device=self.device)
        if delta is None:
            control = random_noise(x_clean, epsilon=epsilon, generator=generator)
        else:
            control = shuffled_signs(x_clean, delta, epsilon=epsilon, generator=generator)
        poison = Poison(control, data.poison_indices)
        threat.check(poison, data.training, target_class=self.config.threat.target_class, epsilon=epsilon)
        self._measure(data, arm, poison)
        return poison

    def _victim(self, data: Data, arm: str, k: int, poison: Poison | None) -> pd.DataFrame:
        """Trains the arm's k-th victim from scratch and certifies it: its certificate table."""
        config, name = self.config, f"{arm}-{k}"
        victim_key = self._data_key | {
            "procedure": config.procedure,
            "architecture": config.architecture,
            "sigma": config.sigma,
            "training": config.training.model_dump(),
            "victim": k,
            "poison": None if poison is None else poison.digest(),
        }
        generator = stream(config.seed, "victim", k, device=self.device)
        model = build(config.architecture, channels=data.training.images.shape[1], generator=generator)
        weights = self.run.directory / "victims" / f"{name}.safetensors"
        key = self._stages.key("victim", victim_key)
        if self._stages.fetch(key, weights):
            self._note_reused(f"victim {name}", "train", work_of_training(config))
        else:
            self._train(model, data.training if poison is None else poison.apply(data.training), name, generator)
            write_tensors(weights, **{n: p.detach().cpu().numpy() for n, p in model.state_dict().items()})
            self._stages.publish(key, weights)
        model.load_state_dict({n: torch.from_numpy(p) for n, p in load_file(weights).items()})

        settings = config.certification
        sampling = settings.model_dump(exclude={"alpha"}) | {"target_class": config.threat.target_class}
        path = self.run.directory / "votes" / f"{name}.safetensors"
        key = self._stages.key("votes", victim_key | {"certification": sampling})
        if self._stages.fetch(key, path):
            self._note_reused(f"votes {name}", "certify", work_of_votes(config))
        else:
            write_tensors(path, **self._vote(model, data, name, k))
            self._stages.publish(key, path)
        return certificate_rows(arm, k, load_file(path), config=config)

    def _train(self, model: nn.Module, training: LabelledImages, name: str, generator: torch.Generator) -> None:
        config, started = self.config, time.monotonic()
        whole = work_of_training(config)
        for record in fit(
            model,
            training,
            procedure=PROCEDURES[config.procedure],
            sigma=config.sigma,
            **config.training.model_dump(),
            generator=generator,
        ):
            self._add_work("train", whole / record.steps)
            if record.loss is not None:
                self.detail = f"victim {name}: epoch {record.epoch} of {config.training.epochs}"
                self._metric("training", victim=name, epoch=record.epoch, loss=record.loss, accuracy=record.accuracy)
            self._check_stop()
        with torch.no_grad():  # the last step comes after the last loss, and a NaN would vote like any class
            if not bool(model(training.images[:100]).isfinite().all()):
                raise FloatingPointError(f"the logits of victim {name} are not finite after its training")
        self._add_seconds("train", started)

    def _vote(self, model: nn.Module, data: Data, name: str, k: int) -> dict[str, np.ndarray]:
        """Votes under noise for every image to certify. All arms' k-th victims see the same noise, to be paired."""
        config, settings, started = self.config, self.config.certification, time.monotonic()
        whole = work_of_votes(config)
        images = data.test.images
        generators = (
            stream(config.seed, f"certification {k}", int(image), device=self.device) for image in data.test.indices
        )
        votes = []
        for found in count_votes(
            model,
            images,
            sigma=config.sigma,
            n0=settings.n0,
            n=settings.n,
            num_classes=NUM_CLASSES,
            batch_size=CERTIFICATION_BATCH[self.device.type],
            generators=generators,
        ):
            votes.append(found)
            self._add_work("certify", whole / len(images))
            self.detail = f"votes {name}: image {len(votes)} of {len(images)}"
            self._check_stop()
        self._add_seconds("certify", started)
        return {
            "image": data.test.indices.cpu().numpy(),
            "label": data.test.labels.cpu().numpy(),
            "weight": data.test_weights.numpy(),
            "selection": torch.stack([found.selection for found in votes]).numpy(),
            "estimation": torch.stack([found.estimation for found in votes]).numpy(),
        }

    def _keep(self, table: pd.DataFrame, started: float) -> None:
        """Adds a victim's certificates to the record and brings the report up to date."""
        self._tables.append(table)
        order = {arm: position for position, arm in enumerate(ARMS)}
        self._tables.sort(key=lambda part: (order[part["arm"].iloc[0]], part["victim"].iloc[0]))
        whole = pd.concat(self._tables, ignore_index=True)
        write_atomically(self.run.directory / "certificates.parquet", whole.to_parquet())
        request = self.run.request
        self.run.write_json(
            "report.json",
            build_report(
                whole,
                self.config,
                run_id=self.run.id,
                directory=str(self.run.directory.resolve()),
                preset=request.get("preset"),
                dataset=self.config.dataset,
                dataset_note=DATASETS[self.config.dataset],
                device=self.run.environment.get("device", self.device.type),
                complete=len(self._tables) == len(ARMS) * self.config.victim_seeds,
                seconds={k: round(v, 2) for k, v in self.seconds.items()}
                | {"total": round(time.monotonic() - started, 2)},
                reused=sorted(self.reused),
                events=self.events,
                perturbation=self._perturbations.get("poisoned"),
                perturbation_controls={arm: self._perturbations.get(arm) for arm in CONTROLS},
            ),
        )

    def _measure(self, data: Data, arm: str, poison: Poison) -> None:
        x_clean = data.training.images[poison.indices].cpu().numpy()
        found = perception.summarise(perception.measure(x_clean, poison.delta.cpu().numpy()))
        self._perturbations[arm] = found

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _add_work(self, kind: str, units: float) -> None:
        with self._lock:
            setattr(self._done, kind, getattr(self._done, kind) + units)

    def _add_seconds(self, kind: str, started: float) -> None:
        with self._lock:
            self.seconds[kind] += time.monotonic() - started

    def _metric(self, kind: str, **values: Any) -> None:
        with self._lock:
            self.run.append_metrics({"kind": kind, **values})

    def _note_event(self, event: str) -> None:
        with self._lock:
            self.events.append(event)

    def _note_reused(self, stage: str, kind: str, saved: float) -> None:
        with self._lock:
            self.reused.append(stage)
            setattr(self._whole, kind, getattr(self._whole, kind) - saved)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _write_poison(path: Path, data: Data, poison: Poison) -> None:
    """The poison with positions in the original training set, from which anyone can rebuild the images."""
    write_tensors(
        path,
        delta=poison.delta.cpu().numpy(),
        indices=data.training.indices[poison.indices].cpu().numpy(),
    )
