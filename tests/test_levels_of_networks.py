"""An upper step through whole networks, with given noise, retraced with textbook ones in float64: LeNet, and PACD's
ResNet-20 behind one crop for a whole batch.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import hypergradient
from engine.attacks.levels import updated_poison, upper_loss
from engine.attacks.retrace import Given, upper_step
from engine.augmentation import crop_and_flip, draw_crops
from engine.config import ProcedureConfig
from engine.hypergradient import cross_term, hessian
from engine.models import build, flat_weights, with_weights
from engine.solvers import Adam, adam_on_residual
from engine.streams import stream
from engine.training import make
from engine.training.base import Batch
from tests import textbook

SIGMA, EPSILON = 0.25, 0.1
CLEAN, POISON, HELD_OUT, UPPER_DRAWS = 6, 3, 4, 2
STEPS, DAMPING, LINEAR_RATE, POISON_RATE = 10, 1e-3, 1e-2, 0.02


def random(*shape: int, name: str) -> Tensor:
    return torch.rand(shape, generator=stream(0, f"test networks {name}"), dtype=torch.float64)


def noise(*shape: int, name: str) -> Tensor:
    return SIGMA * torch.randn(shape, generator=stream(0, f"test networks noise {name}"), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    return float((found - expected).norm() / expected.norm()) < tolerance


def by_margin(p: Tensor, y: int) -> tuple[Tensor, bool]:
    """(q(p_A) − q(p_B), A = y)."""
    top = p.topk(2)
    first, second = (math.sqrt(2) * torch.erfinv(2 * (0.998 * value + 0.001) - 1) for value in top.values)
    return first - second, int(top.indices[0]) == y


def cropped(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Image by image, out of zeros."""
    height, width = images.shape[2:]
    found = []
    for image, (top, left), flip in zip(images, offsets.tolist(), flips.tolist(), strict=True):
        part = F.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
        found.append(part.flip(2) if flip else part)
    return torch.stack(found)


class Game:
    """The two levels around one network and procedure: the engine's, and a second computation of both."""

    def __init__(self, architecture: str, procedure: str) -> None:
        shape = (1, 28, 28) if architecture == "lenet" else (3, 8, 8)
        self.model = build(architecture, generator=stream(0, "test networks"), shape=shape).double().eval()
        self.second = textbook.lenet if architecture == "lenet" else pacds_resnet
        self.weights = flat_weights(self.model)
        self.clean, self.x_clean = random(CLEAN, *shape, name="clean"), random(POISON, *shape, name="target")
        self.x_poison = (self.x_clean + EPSILON / 2 * (2 * random(POISON, *shape, name="poison") - 1)).clamp(0, 1)
        self.held_out = random(HELD_OUT, *shape, name="held out")
        asked = {"gaussian": {}, "macer-pacd": {"draws": 2, "weight": 2.0}}[procedure]
        self.procedure = make(ProcedureConfig.model_validate({"name": procedure, **asked}), sigma=SIGMA)
        self.crops = None
        if architecture != "lenet":
            self.crops = draw_crops([CLEAN, POISON], "crop-flip-batch", generator=stream(1, "test networks crops"))
        with torch.no_grad():
            answers = [self.model(x).argmax(1) for x in (torch.cat([self.clean, self.x_poison]), self.held_out)]
        self.labels, self.held_out_labels = ((a + (torch.arange(len(a)) % 4 == 0)) % 10 for a in answers)

    def lower_noise(self, step: int) -> Tensor:
        images = len(self.labels), self.procedure.settings.draws
        return noise(*images, *self.clean.shape[1:], name=f"lower {step}")

    def upper_noise(self, step: int) -> Tensor:
        return noise(HELD_OUT, UPPER_DRAWS, *self.clean.shape[1:], name=f"upper {step}")

    def lower(self, draws: Tensor) -> hypergradient.Loss:
        def loss(weights: Tensor, x_poison: Tensor) -> Tensor:
            images = torch.cat([self.clean, x_poison])
            images = images if self.crops is None else crop_and_flip(images, *self.crops)
            return self.procedure.loss(with_weights(self.model, weights), Batch(images, self.labels, draws))

        return loss

    def upper(self, draws: Tensor) -> hypergradient.Loss:
        f, labels = self.model, self.held_out_labels
        return lambda weights, _: upper_loss(with_weights(f, weights), self.held_out, labels, draws, sigma=SIGMA)

    # --- the second computation

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        pieces = weights.split([p.numel() for p in self.model.parameters()])
        return {name: v.view(p.shape) for v, (name, p) in zip(pieces, self.model.named_parameters(), strict=True)}

    def second_lower(self, weights: Tensor, x_poison: Tensor, draws: Tensor) -> Tensor:
        w, total = self.named(weights), 0.0
        images = torch.cat([self.clean, x_poison])
        images = images if self.crops is None else cropped(images, *self.crops)
        for x, y, drawn in zip(images, self.labels.tolist(), draws, strict=True):
            logits = self.second(w, x + drawn)
            if self.procedure.settings.name == "gaussian":
                total = total - logits.log_softmax(1)[0, y]
                continue
            total = total - torch.log(logits.softmax(1).mean(0)[y] + 1e-10)
            by, right = by_margin((16 * logits).softmax(1).mean(0), y)
            if right and abs(float(by.detach())) <= 8:
                total = total + 2.0 * SIGMA / 2 * (8 - by)
        return total / len(images)

    def second_upper(self, weights: Tensor, draws: Tensor) -> Tensor:
        w, total = self.named(weights), 0.0
        for x, y, drawn in zip(self.held_out, self.held_out_labels.tolist(), draws, strict=True):
            by, right = by_margin((16 * self.second(w, x + drawn)).softmax(1).mean(0), y)
            total = total + right * by
        return SIGMA / 2 * total / HELD_OUT

    def second_slope(self, weights: Tensor, x_poison: Tensor, draws: Tensor) -> Tensor:
        loss = self.second_lower(weights, x_poison, draws)
        return torch.autograd.grad(loss, weights, create_graph=True)[0]

    def second_product(self, draws: Tensor, vector: Tensor) -> Tensor:
        weights = self.weights.clone().requires_grad_()
        return torch.autograd.grad(self.second_slope(weights, self.x_poison, draws), weights, vector)[0]

    def second_cross_term(self, draws: Tensor, p: Tensor) -> Tensor:
        weights, x_poison = self.weights.clone().requires_grad_(), self.x_poison.clone().requires_grad_()
        return torch.autograd.grad(self.second_slope(weights, x_poison, draws), x_poison, p)[0]


def pacds_resnet(w: textbook.Weights, x: Tensor) -> Tensor:
    return textbook.resnet(w, x, n=3, pad=textbook.padded_at_the_end)


def slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


@pytest.fixture(
    params=[(network, procedure) for network in ("lenet", "resnet20-pacd") for procedure in ("gaussian", "macer-pacd")],
    ids="-".join,
)
def game(request) -> Game:
    return Game(*request.param)


def test_losses_gradients_and_products_agree(game: Game) -> None:
    above, below = game.upper_noise(0), game.lower_noise(0)
    f, f_v = hypergradient.gradient(game.upper(above), game.weights, game.x_poison)
    g, g_v = hypergradient.gradient(game.lower(below), game.weights, game.x_poison)
    assert f == pytest.approx(float(game.second_upper(game.weights, above)), rel=1e-10)
    assert g == pytest.approx(float(game.second_lower(game.weights, game.x_poison, below)), rel=1e-10)
    assert close(f_v, slope(lambda w: game.second_upper(w, above), game.weights))
    assert close(g_v, slope(lambda w: game.second_lower(w, game.x_poison, below), game.weights))
    vector = noise(len(game.weights), name="vector")
    product = hessian(game.lower(below), game.weights, game.x_poison)(vector)
    assert close(product, game.second_product(below, vector))


def test_ten_steps_of_the_linear_system_and_the_updated_poison_agree(game: Game) -> None:
    asked = iter(range(STEPS))

    def system():
        step = next(asked)
        target = hypergradient.gradient(game.upper(game.upper_noise(step)), game.weights, game.x_poison)[1]
        return hessian(game.lower(game.lower_noise(step)), game.weights, game.x_poison), target

    start = torch.zeros_like(game.weights)
    adam = Adam(start, learning_rate=LINEAR_RATE)
    solved = adam_on_residual(system, start, steps=STEPS, damping=DAMPING, adam=adam)
    last = game.lower_noise(STEPS)
    indirect = cross_term(game.lower(last), game.weights, game.x_poison, solved.solution)
    change = Adam(game.x_poison, learning_rate=POISON_RATE).step(-indirect)
    poison = updated_poison(game.x_poison, game.x_clean, change, epsilon=EPSILON)
    agrees(game, solved.solution, indirect, poison)


@pytest.mark.parametrize("procedure", ["gaussian", "macer-pacd"])
def test_the_upper_step_for_traces_agrees(procedure: str) -> None:
    game = Game("lenet", procedure)
    target = int(game.model(game.held_out).argmax(1).mode().values)
    game.labels[CLEAN:], game.held_out_labels[:] = target, target
    given = Given(
        game.model,
        game.weights,
        torch.zeros_like(game.weights),
        game.procedure,
        game.clean,
        game.labels[:CLEAN],
        game.x_poison,
        game.x_clean,
        game.held_out,
        target,
        torch.stack([game.lower_noise(step) for step in range(STEPS + 1)]),
        torch.stack([game.upper_noise(step) for step in range(STEPS)]),
    )
    found = upper_step(given, epsilon=EPSILON, **adams(game))
    agrees(game, found.p, -found.hypergradient, found.x_poison)
    above, below = game.upper_noise(0), game.lower_noise(0)
    f_v = slope(lambda w: game.second_upper(w, above), game.weights)
    assert float(found.upper_loss) == pytest.approx(float(game.second_upper(game.weights, above)), rel=1e-10)
    g = game.second_lower(game.weights, game.x_poison, below)
    assert float(found.lower_loss) == pytest.approx(float(g), rel=1e-10)
    assert close(found.upper_gradient, f_v)
    assert close(found.lower_gradient, slope(lambda w: game.second_lower(w, game.x_poison, below), game.weights))
    assert close(found.product, game.second_product(below, f_v))


def test_a_procedure_with_an_adversary_has_no_such_step() -> None:
    game = Game("lenet", "gaussian")
    smoothadv = make(ProcedureConfig(name="smoothadv-pacd"), sigma=SIGMA)
    nothing = torch.zeros(0)
    given = Given(game.model, game.weights, game.weights, smoothadv, *[nothing] * 5, 8, nothing, nothing)
    with pytest.raises(ValueError, match="smoothadv-pacd has an adversary"):
        upper_step(given, epsilon=EPSILON, **adams(game))


def adams(game: Game) -> dict[str, Adam]:
    """Adam's states after a re-initialisation."""
    return {
        "adam_of_p": Adam(game.weights, learning_rate=LINEAR_RATE),
        "adam_of_poison": Adam(game.x_poison, learning_rate=POISON_RATE),
    }


def agrees(game: Game, solution: Tensor, indirect: Tensor, poison: Tensor) -> None:
    """With the second computation of ten linear steps, the cross term and one step of the poison."""
    last = game.lower_noise(STEPS)
    p, m, s = torch.zeros(3, len(game.weights), dtype=torch.float64)
    for step in range(STEPS):
        target = slope(lambda w, step=step: game.second_upper(w, game.upper_noise(step)), game.weights)
        draws = game.lower_noise(step)
        off = game.second_product(draws, p) + DAMPING * p - target
        slope_of_h = 2 * (game.second_product(draws, off) + DAMPING * off)
        m, s = 0.9 * m + 0.1 * slope_of_h, 0.999 * s + 0.001 * slope_of_h**2
        rate = LINEAR_RATE * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        p = p - rate * m / (s.sqrt() + 1e-8)
    g_uv_p = game.second_cross_term(last, p)
    m, s = 0.1 * -g_uv_p, 0.001 * g_uv_p**2
    u = (game.x_poison - POISON_RATE * math.sqrt(0.001) / 0.1 * m / (s.sqrt() + 1e-8)).clamp(0, 1)
    u = game.x_clean + (u - game.x_clean).clamp(-EPSILON, EPSILON)
    assert close(solution, p, 1e-7)
    assert close(indirect, g_uv_p, 1e-7)
    assert float((poison - u).abs().max()) < 1e-6
    assert float((poison - game.x_poison).abs().mean()) > POISON_RATE / 4
