"""Finished victims, asked again: their answers and votes on any image, outside of a run."""

from functools import partial
from hashlib import sha256

import numpy as np
import torch
from torch import nn

from engine.choices import DATASETS
from engine.models import Network, build
from engine.records import Run
from engine.smoothing import Classifier
from engine.streams import stream
from engine.votes import BLOCK, Votes, count_votes


class VictimUnavailable(ValueError):
    """The run has no weights of this victim: not trained yet, or a copy in the gallery that left them out."""


def load(run: Run, arm: str, k: int, *, shape: tuple[int, ...]) -> nn.Module:
    """The arm's k-th victim in evaluation mode, float32, on the CPU; shape: of an image, (C, H, W).

    Raises: VictimUnavailable.
    """
    weights = run.tensors(f"victims/{arm}-{k}")
    if weights is None:
        kept = ", ".join(f"{arm} {k}" for arm, k in run.victims()) or "none"
        raise VictimUnavailable(f"run {run.id} keeps no weights of victim {k} of arm {arm}; it keeps: {kept}")
    config = run.config
    known = DATASETS.get(config.dataset)
    names = (run.report or {}).get("class_names") or (known.class_names if known else ())
    if not names:
        raise VictimUnavailable(f"run {run.id} has no report yet, which says how many classes {config.dataset} has")
    model = build(config.architecture, shape=shape, num_classes=len(names), generator=torch.Generator())
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model.eval()


def votes(model: nn.Module, images: np.ndarray, *, sigma: float, n0: int, n: int, seed: int) -> Votes:
    """Votes of a victim on images [N, C, H, W] in [0, 1] under fresh noise; image by image, each with its own draws.

    An image's draws depend on its pixels and the seed: it gets the same votes whatever else is asked. N at least 1.
    Raises: ValueError, where the model does not take such images, or its answers are not finite logits [N, K].
    """
    points = torch.tensor(images)
    try:
        with torch.no_grad():
            num_classes = _finite_logits(model, points[:1]).shape[1]
    except RuntimeError as error:  # of torch: other channels, sizes or types
        shape = ", ".join(map(str, points.shape[1:]))
        raise ValueError(f"the model must take float32 images [N, {shape}] on the CPU: {error}") from error
    alone = (
        (torch.tensor([k]), stream(seed, f"votes on {sha256(point.numpy()).hexdigest()}"))
        for k, point in enumerate(points)
    )
    *_, found = count_votes(
        model if isinstance(model, Network) else partial(_finite_logits, model),
        points,
        sigma=sigma,
        n0=n0,
        n=n,
        num_classes=num_classes,
        block=BLOCK["cpu"],
        groups=alone,
    )
    return found


def _finite_logits(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Its answers; NaN would be counted as votes for class 0."""
    logits = model(images)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must answer {len(images)} images by logits [{len(images)}, K]")
    if not logits.isfinite().all():
        raise ValueError("the model answers logits that are not finite, so it has no class to vote for")
    return logits
