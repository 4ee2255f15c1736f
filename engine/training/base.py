"""What a training procedure is, and the one loop that trains every victim."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from engine.augmentation import augment
from engine.compiling import can_compile, compiled
from engine.config import ProcedureConfig, TrainingConfig
from engine.data import LabelledImages
from engine.replay import Replayed
from engine.smoothing import Classifier, gaussian_noise
from engine.training.optimiser import Optimiser

EVALUATED = 300  # training images on which an epoch's accuracy is read
TOGETHER = 25  # minibatches that a GPU is told of at a time, or as many passes where an adversary takes some
COMPILED = 50_000_000  # passes there and back for which compiling pays: they take a minute, compiling 20 s
State = Mapping[str, Tensor]  # all that a training needs to go on where it is


class Batch(NamedTuple):
    """Images, with all that a procedure's loss of them depends on besides the classifier; on one device."""

    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    noise: Tensor  # [N, draws, C, H, W], of `Procedure.draw_noise`
    constants: tuple[Tensor, ...] = ()  # what `Procedure.prepare` found, [N, …] each
    strength: float = 1.0  # of `Procedure.strength`


@dataclass(frozen=True)
class Procedure:
    """How a classifier is trained; victims and the attacker's lower level minimise the very same loss.

    A subclass gives `loss`, and `prepare` if there is something to find first that the gradient treats as constant.
    All randomness of a loss is in the batch: in its noise, and in its constants.
    """

    settings: ProcedureConfig
    sigma: float
    fixed_noise: ClassVar[bool] = False  # one noise draw per training image for all epochs

    @property
    def prepares(self) -> bool:
        """Whether `prepare` finds anything."""
        return type(self).prepare is not Procedure.prepare

    def draw_noise(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Fresh noise for a batch: [N, draws, C, H, W]."""
        shape = (images.shape[0], self.settings.draws, *images.shape[1:])
        return gaussian_noise(shape, sigma=self.sigma, generator=generator)

    def prepare(self, base_classifier: Classifier, batch: Batch, *, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The batch's constants, such as the adversary's changes: nothing, unless a procedure says so."""
        return ()

    def loss(self, base_classifier: Classifier, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        raise NotImplementedError

    def strength(self, progress: float) -> float:
        """How far the warm-up is, in [0, 1], after this share of the training (or of a surrogate's life)."""
        return min(1.0, progress / self.settings.warmup) if self.settings.warmup > 0 else 1.0


@dataclass(frozen=True)
class TrainingRecord:
    """One step of `fit`; loss and accuracy are set at the end of an epoch."""

    step: int
    steps: int
    epoch: int
    loss: float | None = None  # mean over the epoch's steps
    accuracy: float | None = None  # of f on one noisy copy of up to EVALUATED training images
    state: Callable[[], State] | None = field(default=None, compare=False)  # at the end of an epoch; copies nothing


def fit(
    model: nn.Module,
    data: LabelledImages,
    *,
    procedure: Procedure,
    config: TrainingConfig,
    epochs: int,
    generator: torch.Generator,
    bfloat16: bool = False,
    state: State | None = None,
) -> Iterator[TrainingRecord]:
    """Trains the model in place, yielding after every step; the last partial batch is dropped.

    Args:
        config: all but its numbers of epochs (see `epochs`) and its precision (see `bfloat16`).
        generator: orders the images and draws noise and augmentation; on the device of data and model.
        bfloat16: products of weights and activations are in bfloat16; weights, their updates and losses in float32.
        state: of an earlier call with the same arguments, which this one continues as if it had never ended.
    Raises: FloatingPointError at the end of an epoch whose loss is not finite.
    """
    batches = max(1, len(data) // config.batch_size)
    steps = epochs * batches
    weights = list(model.parameters())
    optimiser, device = Optimiser(weights, config), generator.device
    fixed = procedure.draw_noise(data.images, generator=generator) if procedure.fixed_noise else None
    trained = 0 if state is None else _restore(state, model, optimiser, generator)
    answers = partial(_in_bfloat16, model) if bfloat16 else model
    pays = bfloat16 and steps * config.batch_size * procedure.settings.passes >= COMPILED
    classifier = partial(compiled(_in_bfloat16), model) if pays and can_compile(device) else answers
    total, strength = torch.zeros((), device=device), 1.0

    def learn(minibatches: Tensor, rates: Tensor) -> None:
        for chosen, rate in zip(minibatches, rates, strict=True):
            images = augment(data.images[chosen], config.augmentation, generator=generator)
            noise = procedure.draw_noise(images, generator=generator) if fixed is None else fixed[chosen]
            batch = Batch(images, data.labels[chosen], noise, strength=strength)
            if procedure.prepares:
                model.eval()  # an adversary attacks the classifier as it will be used (Salman et al. 2019)
                model.requires_grad_(False)  # compiled code would find all derivatives
                batch = batch._replace(constants=procedure.prepare(classifier, batch, generator=generator))
                model.train().requires_grad_()
            loss = procedure.loss(classifier, batch)
            optimiser.step(torch.autograd.grad(loss, weights), rate)
            total.add_(loss.detach())

    replayed = Replayed(learn, generators=[generator])
    together = max(1, TOGETHER // (1 + procedure.settings.adversary_steps)) if device.type == "cuda" else 1
    rates = torch.tensor(
        [config.learning_rate * rate_at(config.schedule, step / steps) for step in range(steps)],
        dtype=torch.float64,
        device=device,
    ).split(batches)
    model.train().requires_grad_()
    for epoch in range(trained, epochs):
        order = torch.randperm(len(data), generator=generator, device=device)
        minibatches = order[: batches * config.batch_size].unflatten(0, (batches, -1))
        total.zero_()
        strength = procedure.strength(epoch / epochs)
        for batch in range(batches):
            step = epoch * batches + batch
            if batch % together == 0:
                now = slice(batch, batch + together)
                replayed(minibatches[now], rates[epoch][now], key=strength)
            if batch < batches - 1:
                yield TrainingRecord(step + 1, steps, epoch + 1)
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise FloatingPointError(f"the training loss became {mean} in epoch {epoch + 1} of {epochs}")
        model.eval()
        accuracy = _noisy_accuracy(answers, data, sigma=procedure.sigma, generator=generator)
        model.train()
        here = partial(_state, model, optimiser, generator, epoch + 1)
        yield TrainingRecord((epoch + 1) * batches, steps, epoch + 1, mean, accuracy, here)
    model.eval()


def _state(model: nn.Module, optimiser: Optimiser, generator: torch.Generator, epochs: int) -> State:
    return {
        "epochs": torch.tensor(epochs),
        "generator": generator.get_state(),
        **{f"model {name}": tensor for name, tensor in model.state_dict().items()},
        **{f"optimiser {name}": tensor for name, tensor in optimiser.tensors().items()},
    }


def _restore(state: State, model: nn.Module, optimiser: Optimiser, generator: torch.Generator) -> int:
    """Puts everything where `_state` found it; returns how many epochs are behind."""
    model.load_state_dict({name: state[f"model {name}"] for name in model.state_dict()})
    for name, tensor in optimiser.tensors().items():
        tensor.copy_(state[f"optimiser {name}"])
    generator.set_state(state["generator"].cpu())
    return int(state["epochs"])


def _in_bfloat16(model: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images).float()


def rate_at(schedule: str, progress: float) -> float:
    """The learning rate as a share of the first one, after this share of the training."""
    if schedule == "linear":
        return 1 - progress
    return 0.1 ** int(3 * progress + 1e-9) if schedule == "step" else 1.0


def _noisy_accuracy(model: Classifier, data: LabelledImages, *, sigma: float, generator: torch.Generator) -> float:
    images, labels = data.images[:EVALUATED], data.labels[:EVALUATED]
    with torch.inference_mode():
        noisy = images + gaussian_noise(tuple(images.shape), sigma=sigma, generator=generator)
        predictions = torch.cat([model(part).argmax(dim=1) for part in noisy.split(200)])
        return float((predictions == labels).float().mean())
