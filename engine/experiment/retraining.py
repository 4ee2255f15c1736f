"""Victims of one experiment: trained on what an arm sees, and certified; or taken from an earlier run."""

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

from engine.costs import work_of_training, work_of_votes
from engine.data import LabelledImages
from engine.experiment.checkpoint import Checkpoint
from engine.experiment.context import Context
from engine.experiment.poisoning import poison_of
from engine.models import build
from engine.records import write_tensors
from engine.report.numbers import certificate_rows
from engine.squeezing import squeeze_features
from engine.streams import stream
from engine.threat import Poison
from engine.training import make
from engine.training.base import State, fit
from engine.votes import BLOCK, GROUPS, count_votes, has_bfloat16

Curve = list[list[float | None]]  # [loss, accuracy] of each epoch
CURVE = "curve"  # its name in the metadata of a victim's file, as JSON


class Retraining:
    """Trains and certifies the victims of all arms; several at once may be asked for, from different workers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._bfloat16 = context.config.training.precision == "fast" and has_bfloat16(context.device)
        # for each seed, who trains the clean victim that is fine-tuned, and whether its training has been recorded
        self._clean_victims = [multiprocessing.Value("b") for _ in range(context.config.victim_seeds)]

    def victim(self, arm: str, k: int) -> None:
        """Trains the arm's k-th victim and certifies it; `certificates` are there then."""
        config, name = self._context.config, f"{arm}-{k}"
        model, victim_key = self._trained(name, k, poison_of(self._context, arm))
        settings = config.certification
        sampling = settings.model_dump(exclude={"alpha"}) | {"target_class": config.threat.target_class}
        path = self._votes(arm, k)
        key = self._context.cache.key("votes", victim_key | {"certification": sampling})
        if self._context.cache.fetch(key, path):
            self._context.recorder.add_reused(f"votes {name}", self._work_of_votes())
        else:
            write_tensors(path, **self._vote(model, name, k))
            self._context.cache.share(key, path)

    def certificates(self, arm: str, k: int) -> pd.DataFrame:
        """The certificate table of the arm's k-th victim."""
        return certificate_rows(arm, k, load_file(self._votes(arm, k)), config=self._context.config)

    def _votes(self, arm: str, k: int) -> Path:
        return self._context.run.directory / "votes" / f"{arm}-{k}.safetensors"

    def _trained(self, name: str, k: int, poison: Poison | None) -> tuple[nn.Module, dict[str, Any]]:
        """A victim and what it depends on: trained here from scratch, or fine-tuned from a clean one, or reused."""
        config, problem = self._context.config, self._context.problem
        epochs, more = config.training.epochs, config.training.fine_tune_epochs
        depends_on = self._context.depends_on | {
            "procedure": config.procedure.model_dump(),
            "architecture": config.architecture,
            "sigma": config.sigma,
            "training": config.training.model_dump(exclude={"fine_tune_epochs", "precision"}),
            "bfloat16": self._bfloat16,
            "victim": k,
        }
        data = self._squeezed(problem.training if poison is None else poison.apply(problem.training))
        poisoned = {"poison": None if poison is None else poison.digest()}
        generator = stream(config.seed, "victim", k, device=self._context.device)
        shape, classes = tuple(data.images.shape[1:]), len(problem.class_names)
        model = build(config.architecture, shape=shape, num_classes=classes, generator=generator)
        if not more:
            depends_on |= poisoned
            self._train_or_load(model, data, name, depends_on, epochs=epochs, generator=generator)
            return model, depends_on
        recorded = self._clean_victims[k]
        with recorded.get_lock():  # the arms wait for the one that trains it
            clean = depends_on | {"poison": None}
            before = self._squeezed(problem.training)
            how: dict[str, Any] = dict(epochs=epochs, generator=generator, recorded=bool(recorded.value))
            self._train_or_load(model, before, f"before-{k}", clean, **how)
            recorded.value = 1
        depends_on |= poisoned | {"fine_tune_epochs": more}
        generator = stream(config.seed, "fine-tuning", k, device=self._context.device)
        self._train_or_load(model, data, name, depends_on, epochs=more, generator=generator)
        return model, depends_on

    def _squeezed(self, data: LabelledImages) -> LabelledImages:
        """What victims see of it, after their defence if they have one."""
        return replace(data, images=squeeze_features(data.images, self._context.config.training.squeezing))

    def _train_or_load(
        self,
        model: nn.Module,
        training: LabelledImages,
        name: str,
        depends_on: dict[str, Any],
        *,
        epochs: int,
        generator: torch.Generator,
        recorded: bool = False,
    ) -> None:
        """Leaves the model trained from where it stands, in evaluation mode, its weights on disk.

        recorded: whether this run has recorded the very same training before.
        """
        weights = self._context.run.directory / "victims" / f"{name}.safetensors"
        key = self._context.cache.key("victim", depends_on)
        whole = work_of_training(self._context.config, epochs=epochs)
        if self._context.cache.fetch(key, weights):
            self._context.recorder.add_reused(None if recorded else f"victim {name}", whole)
            if not recorded:
                self._add_curve(name, _curve_in(weights))
        else:
            checkpoint = Checkpoint(self._context.run.directory, key)
            curve = self._train(model, training, name, epochs, whole, generator, checkpoint)
            tensors = {n: p.detach().cpu().numpy() for n, p in model.state_dict().items()}
            write_tensors(weights, {CURVE: json.dumps(curve)}, **tensors)
            self._context.cache.share(key, weights)
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
        checkpoint: Checkpoint,
    ) -> Curve:
        """Trains it to the end, from where an earlier attempt at this run was stopped if there was one."""
        config, started = self._context.config, time.monotonic()
        procedure = make(config.procedure, sigma=config.sigma)
        state = checkpoint.load()
        curve: Curve = state.pop("curve").tolist() if state else []
        if curve:
            self._context.recorder.add_reused(f"victim {name} until epoch {len(curve)}", whole * len(curve) / epochs)
            self._add_curve(name, curve)
        for record in fit(
            model,
            training,
            procedure=procedure,
            config=config.training,
            epochs=epochs,
            generator=generator,
            bfloat16=self._bfloat16,
            state=state or None,
        ):
            self._context.recorder.add_work(whole / record.steps, f"victim {name}: epoch {record.epoch} of {epochs}")
            if record.state is not None:
                curve.append([record.loss, record.accuracy])
                self._add_curve(name, curve, until=record.epoch - 1)
                checkpoint.keep(partial(_with_curve, record.state, curve))
            self._context.check_stop()
        with torch.no_grad():  # the last step comes after the last loss, and a NaN would vote like any class
            if not bool(model(training.images[:100]).isfinite().all()):
                raise FloatingPointError(f"the logits of victim {name} are not finite after its training")
        self._context.recorder.add_seconds("train", time.monotonic() - started)
        return curve

    def _add_curve(self, name: str, curve: Curve, *, until: int = 0) -> None:
        """Records the epochs that come after `until`."""
        for epoch, (loss, accuracy) in enumerate(curve[until:], start=until + 1):
            self._context.recorder.add_metrics("training", victim=name, epoch=epoch, loss=loss, accuracy=accuracy)

    def _work_of_votes(self) -> float:
        return work_of_votes(self._context.config, classes=len(self._context.problem.class_names))

    def _vote(self, model: nn.Module, name: str, k: int) -> dict[str, np.ndarray]:
        """Votes under noise for every image to certify. All arms' k-th victims see the same noise, to be paired.

        An image belongs to a group by its index, and a group's images share their draws: whatever else is certified,
        an image sees the same noise.
        """
        config, problem = self._context.config, self._context.problem
        settings, started = config.certification, time.monotonic()
        images, group_of = problem.test.images, problem.test.indices % GROUPS
        numbers = [int(number) for number in group_of.unique()]
        block = BLOCK[self._context.device.type]
        blocks = len(numbers) * -(-(settings.n0 + settings.n) // block)
        groups = (
            (
                (group_of == number).nonzero().squeeze(1),
                stream(config.seed, f"certification {k}", number, device=self._context.device),
            )
            for number in numbers
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
            screened=True,
            each=self._context.each,
        )
        for done, found in enumerate(counting, start=1):
            votes = found
            self._context.recorder.add_work(self._work_of_votes() / blocks, f"votes {name}: {done / blocks:.0%}")
            self._context.check_stop()
        self._context.recorder.add_seconds("certify", time.monotonic() - started)
        return {
            "image": problem.test.indices.cpu().numpy(),
            "label": problem.test.labels.cpu().numpy(),
            "weight": problem.test_weights.numpy(),
            "selection": votes.selection.cpu().numpy(),
            "estimation": votes.estimation.cpu().numpy(),
        }


def _with_curve(state: Callable[[], State], curve: Curve) -> State:
    return {**state(), "curve": torch.tensor(curve, dtype=torch.float64)}


def _curve_in(weights: Path) -> Curve:
    """How the victim in this file trained; empty where the file is of a time before that was kept."""
    with safe_open(weights, "numpy") as file:
        found: Curve = json.loads((file.metadata() or {}).get(CURVE, "[]"))
    return found
