"""Whether victims are as good as those of the plain loop: the same recipe and first weights, certified alike.

Both sides shuffle and draw their noise by themselves, so that victims of one number differ by chance, as seeds do.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks import ours, plain
from benchmarks.measure import Table
from engine import datasets, spread
from engine.data import load
from engine.models import build
from engine.presets import PRESETS
from engine.report.sentences import with_spread
from engine.streams import stream
from engine.training import make
from engine.training.base import fit
from engine.votes import has_bfloat16

IMAGES, EPOCHS, BATCH = 1000, 10, 50
CERTIFIED, DRAWS = 300, 400  # of the test set, with ours.N0 draws more to select
Quality = tuple[float, float]  # (share of right selected classes, abstentions included; average certified radius)


def tables(victims: int) -> Iterator[Table]:
    """One for each procedure, over so many victims of each side."""
    columns = ("who", "accuracy", "ACR (L2)", "accuracy less the plain loop's (95 %)", "ACR less it (95 %)")
    for procedure in ours.PROCEDURES:
        sides = {"plain loop": partial(by_plain_loop, procedure)}
        for products in ("float32", *["bfloat16"] * has_bfloat16()):
            sides[f"engine, {products}"] = partial(by_engine, procedure, bfloat16=products == "bfloat16")
        found = {who: [quality(k, train) for k in range(victims)] for who, train in sides.items()}
        summaries = {
            who: [spread.summary(list(values)) for values in zip(*each, strict=True)] for who, each in found.items()
        }
        rows = []
        for who, both in summaries.items():
            less = [spread.difference(*pair) for pair in zip(both, summaries["plain loop"], strict=True)]
            rows.append((who, *map(with_spread, both), *(["–"] * 2 if who == "plain loop" else map(_told, less))))
        title = f"Accuracy: {procedure}, {EPOCHS} epochs of {IMAGES} images, {victims} victims, {CERTIFIED} test images"
        yield Table(title, columns, rows, [{"procedure": procedure, "accuracy and ACR": found}])


def _told(found: spread.Summary | None) -> str:
    limits = spread.interval(found)
    return f"{limits[0]:+.3f} to {limits[1]:+.3f}" if limits else "–"


def quality(k: int, train: Callable[[int, nn.Module], nn.Module]) -> Quality:
    test = load("mnist", datasets.default_root(), train=False)
    chosen = test.select(torch.randperm(len(test), generator=stream(0, "benchmark test images"))[:CERTIFIED])
    model = train(k, build("lenet", generator=stream(k, "benchmark")))
    certificates = ours.certify(model.eval(), chosen.images, n=DRAWS, seed=0)
    right = [
        radius for label, (found, radius) in zip(chosen.labels.tolist(), certificates, strict=True) if found == label
    ]
    return len(right) / CERTIFIED, sum(right) / CERTIFIED


def by_plain_loop(procedure: str, k: int, initial: nn.Module) -> nn.Module:
    model, data = ours.plainly(initial).train(), ours.problem().training
    torch.manual_seed(k)  # all that plain code knows of
    x, y = data.images[:IMAGES], data.labels[:IMAGES]
    plain.train(model, x, y, procedure=procedure, epochs=EPOCHS, batch_size=BATCH, sigma=ours.SIGMA)
    return model


def by_engine(procedure: str, k: int, initial: nn.Module, *, bfloat16: bool) -> nn.Module:
    as_plain = dict(batch_size=BATCH, learning_rate=1e-3, schedule="constant")
    config = PRESETS["quick"].config.training.model_copy(update=as_plain)
    few, draws = ours.problem().training.select(torch.arange(IMAGES)), stream(k, "benchmark training")
    how = make(ours.PROCEDURES[procedure], sigma=ours.SIGMA)
    for _ in fit(initial, few, procedure=how, config=config, epochs=EPOCHS, generator=draws, bfloat16=bfloat16):
        pass
    return initial
