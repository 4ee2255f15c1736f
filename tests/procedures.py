"""What tests of training procedures share: a small smooth network, its images, and a classifier that is linear."""

import torch
from torch import Tensor, nn

from engine.config import ProcedureConfig
from engine.models import with_weights
from engine.streams import stream
from engine.training import Procedure, make
from engine.training.base import Batch

SIGMA, K = 0.3, 3
ADVERSARIAL = ["smoothadv", "smoothadv-pacd", "smoothmix"]


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, f"test procedures {name}"), dtype=torch.float64)


def procedure(name: str, **settings) -> Procedure:
    return make(ProcedureConfig.model_validate({"name": name} | settings), sigma=SIGMA)


def prepared(of: Procedure, classifier, batch: Batch) -> Batch:
    """With its constants."""
    return batch._replace(constants=of.prepare(classifier, batch, generator=stream(0, "prepare")))


def network() -> nn.Module:
    """16-5-3 with softplus, in float64."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5, dtype=torch.float64), nn.Softplus(), nn.Linear(5, K, dtype=torch.float64)
    )


MODEL = network()
WEIGHTS = 0.5 * normal(103, name="weights")
IMAGES = (0.5 + 0.3 * normal(6, 1, 4, 4, name="images")).clamp(0.05, 0.95)
LABELS = with_weights(MODEL, WEIGHTS)(IMAGES).argmax(dim=1)
LABELS[-1] = (LABELS[-1] + 1) % K  # one wrong image among them


def given(name: str, draws: int = 3) -> tuple[Procedure, Batch]:
    """The procedure, and a batch of IMAGES with its constants at WEIGHTS."""
    of = procedure(name, **({} if name == "standard" else {"draws": draws}))
    noise = SIGMA * normal(len(IMAGES), of.settings.draws, 1, 4, 4, name="noise")
    return of, prepared(of, with_weights(MODEL, WEIGHTS), Batch(IMAGES, LABELS, noise))


# where all is linear: logits (−w.x, w.x) / 2, whose steepest ascent for label 1 is −w / |w|
W = torch.tensor([3.0, 0, 0, -4.0] + [0.0] * 12, dtype=torch.float64).view(1, 4, 4)


def linear(images: Tensor) -> Tensor:
    side = 0.5 * (images * W).flatten(1).sum(dim=1) - 0.1
    return torch.stack([-side, side], dim=1)


GREY = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
ONE, ZERO = torch.tensor([1, 0]), torch.zeros(2, 4, 1, 4, 4, dtype=torch.float64)
