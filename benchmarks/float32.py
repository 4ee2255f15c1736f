"""`python -m benchmarks.float32`: how closely an upper step in float32 can agree with the same in float64.

A LeNet that has learned a little of MNIST, ninety clean and ten poison images, ten held out with twenty draws each, ten
linear steps from zero: the numbers that docs/traces.md quotes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.measure import Table
from engine.attacks.retrace import Given, UpperStep, upper_step
from engine.config import ProcedureConfig
from engine.data import LabelledImages
from engine.models import flat_weights
from engine.smoothing import gaussian_noise
from engine.solvers import Adam
from engine.streams import stream
from engine.training import make

SIGMA, TARGET, EPSILON, STEPS = 0.5, 8, 0.1, 10
CLEAN, POISON, HELD_OUT, UPPER_DRAWS = 90, 10, 10, 20
COMPARED = ("upper_loss", "lower_loss", "upper_gradient", "lower_gradient", "product", "p", "hypergradient")


class Case(NamedTuple):
    name: str
    procedure: ProcedureConfig
    linear_learning_rate: float  # the authors'


CASES = (
    Case("Gaussian augmentation", ProcedureConfig(name="gaussian"), 1e-2),
    Case("MACER", ProcedureConfig(name="macer-pacd", draws=1, weight=1.0), 1e-4),
)


def main() -> None:
    training = ours.problem().training
    print(table([(case, *both(case, training)) for case in CASES]).markdown())


def both(case: Case, training: LabelledImages) -> tuple[UpperStep, UpperStep]:
    """The step in float64, and in float32."""
    first, second = (step(case, training, dtype) for dtype in (torch.float64, torch.float32))
    return first, second


def step(case: Case, training: LabelledImages, dtype: torch.dtype) -> UpperStep:
    procedure = make(case.procedure, sigma=SIGMA)
    model = ours.train(0, len(training), procedure="gaussian", epochs=1, batch_size=50, precision="float32").to(dtype)
    weights = flat_weights(model)
    others = training.select(training.labels != TARGET)
    clean, of_class = others.select(torch.arange(CLEAN)), training.of_class(TARGET).images.to(dtype)
    x_clean, held_out = of_class[:POISON], of_class[POISON : POISON + HELD_OUT]
    p = torch.zeros_like(weights)
    return upper_step(
        Given(
            model,
            weights,
            p,
            procedure,
            clean.images.to(dtype),
            clean.labels,
            x_clean,
            x_clean,
            held_out,
            TARGET,
            noise((STEPS + 1, CLEAN + POISON, procedure.settings.draws), "lower", dtype),
            noise((STEPS, HELD_OUT, UPPER_DRAWS), "upper", dtype),
        ),
        epsilon=EPSILON,
        adam_of_p=Adam(p, learning_rate=case.linear_learning_rate),
        adam_of_poison=Adam(x_clean, learning_rate=0.1),
    )


def noise(axes: tuple[int, ...], name: str, dtype: torch.dtype) -> Tensor:
    return gaussian_noise((*axes, 1, 28, 28), sigma=SIGMA, generator=stream(0, f"float32 {name}")).to(dtype)


def table(found: list[tuple[Case, UpperStep, UpperStep]]) -> Table:
    """Relative differences by the L2 norm; of the poison, how many of its pixels differ by how much."""
    head = ("procedure", "f", "g", "f_v", "g_v", "H f_v", "p", "−g_uv p", "poison: largest", "pixels off by over 1e-4")
    rows, raw = [], []
    for case, exact, rounded in found:
        relative = {name: off(getattr(exact, name), getattr(rounded, name)) for name in COMPARED}
        pixels = (exact.x_poison - rounded.x_poison.double()).abs()
        largest, share = float(pixels.max()), float((pixels > 1e-4).double().mean())
        rows.append((case.name, *(f"{each:.1e}" for each in relative.values()), f"{largest:.1e}", f"{share:.2%}"))
        raw.append({"procedure": case.name, **relative, "largest": largest, "share": share})
    return Table("An upper step in float32 beside float64", head, rows, raw)


def off(exact: Tensor, rounded: Tensor) -> float:
    return float((exact - rounded.double()).norm() / exact.norm())


if __name__ == "__main__":
    main()
