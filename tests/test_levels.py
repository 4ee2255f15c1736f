"""The two levels, retraced with given noise by a second computation in float64, and what stays fixed in a minibatch.

The second computation has loops over images and draws, dense Hessians, and TensorFlow's Adam written out.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from engine import hypergradient
from engine.attacks.base import AttackProblem
from engine.attacks.levels import Levels, updated_poison, upper_loss
from engine.config import AttackConfig, ProcedureConfig
from engine.data import LabelledImages
from engine.hypergradient import cross_term, hessian
from engine.models import flat_weights, with_weights
from engine.presets import PRESETS
from engine.solvers import Adam, adam_on_residual
from engine.streams import stream
from engine.training import Procedure, make
from engine.training.base import Batch

SIGMA, EPSILON, CLASSES = 0.3, 0.1, 4
CLEAN, POISON, HELD_OUT, UPPER_DRAWS = 12, 5, 8, 3
STEPS, DAMPING, LINEAR_RATE, POISON_RATE = 10, 1e-3, 1e-2, 0.02
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def normal(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, f"test levels {name}"), dtype=torch.float64)


def network(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6, dtype=dtype), nn.Softplus(), nn.Linear(6, CLASSES, dtype=dtype))


WEIGHTS = 0.35 * normal(6 * 16 + 6 + CLASSES * 6 + CLASSES, name="weights")
IMAGES = (0.5 + 0.4 * normal(CLEAN + POISON, 1, 4, 4, name="images")).clamp(0, 1)
X_CLEAN = IMAGES[CLEAN:]
X_POISON = (X_CLEAN + 0.04 * normal(POISON, 1, 4, 4, name="poison")).clamp(0, 1)
HELD_OUT_IMAGES = (0.5 + 0.4 * normal(HELD_OUT, 1, 4, 4, name="held out")).clamp(0, 1)


def z(v: Tensor, x: Tensor) -> Tensor:
    """Logits [K] of one noisy image [1, 4, 4]."""
    hidden = torch.log(1 + torch.exp(v[:96].view(6, 16) @ x.flatten() + v[96:102]))
    return v[102:126].view(CLASSES, 6) @ hidden + v[126:]


def shares(v: Tensor, x: Tensor, draws: Tensor, beta: float) -> Tensor:
    """Mean over draws of softmax(beta · logits)."""
    powers = [torch.exp(beta * z(v, x + draw)) for draw in draws]
    return sum(power / power.sum() for power in powers) / len(draws)


def margin(p: Tensor) -> tuple[Tensor, int]:
    """(q(p_A) − q(p_B), A)."""
    order = sorted(range(CLASSES), key=lambda k: -float(p[k].detach()))
    first, second = (math.sqrt(2) * torch.erfinv(2 * (0.998 * p[k] + 0.001) - 1) for k in order[:2])
    return first - second, order[0]


ANSWERS = [margin(shares(WEIGHTS, x, torch.zeros(1, 1, 4, 4), 1.0))[1] for x in torch.cat([IMAGES, HELD_OUT_IMAGES])]
LABELS = torch.tensor([(answer + (i % 4 == 0)) % CLASSES for i, answer in enumerate(ANSWERS)])  # most are right


def second_upper(v: Tensor, noise: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y, draws in zip(HELD_OUT_IMAGES, LABELS[CLEAN + POISON :].tolist(), noise, strict=True):
        by, top = margin(shares(v, x, draws, 16.0))
        total = total + (by if top == y else 0)
    return SIGMA / 2 * total / HELD_OUT


def second_gaussian(v: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y, draws in zip([*IMAGES[:CLEAN], *u], LABELS.tolist(), noise, strict=False):
        logits = z(v, x + draws[0])
        total = total + torch.log(torch.exp(logits).sum()) - logits[y]
    return total / (CLEAN + POISON)


def second_macer(v: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    entropy, hinge = torch.zeros(2, dtype=torch.float64)
    for x, y, draws in zip([*IMAGES[:CLEAN], *u], LABELS.tolist(), noise, strict=False):
        entropy = entropy - torch.log(shares(v, x, draws, 1.0)[y] + 1e-10)
        by, top = margin(shares(v, x, draws, 16.0))
        if top == y and abs(float(by.detach())) <= 8:
            hinge = hinge + (8 - by)
    return (entropy + 2.0 * SIGMA / 2 * hinge) / (CLEAN + POISON)


def lower_noise(draws: int, step: int) -> Tensor:
    return SIGMA * normal(CLEAN + POISON, draws, 1, 4, 4, name=f"lower {step}")


def upper_noise(step: int) -> Tensor:
    return SIGMA * normal(HELD_OUT, UPPER_DRAWS, 1, 4, 4, name=f"upper {step}")


@dataclass
class Trace:
    """One procedure in one precision, and its second computation in float64."""

    procedure: Procedure
    second: object
    dtype: torch.dtype

    def close(self, found: Tensor, expected: Tensor) -> None:
        """Agreement relative to the expected tensor's norm."""
        assert found.dtype == self.dtype
        assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCE[self.dtype]

    def lower(self, noise: Tensor):
        model = network(self.dtype)
        images, noise = IMAGES[:CLEAN].to(self.dtype), noise.to(self.dtype)

        def loss(weights: Tensor, x_poison: Tensor) -> Tensor:
            f = with_weights(model, weights)
            return self.procedure.loss(f, Batch(torch.cat([images, x_poison]), LABELS[: CLEAN + POISON], noise))

        return loss

    def upper(self, noise: Tensor):
        model = network(self.dtype)
        images, labels, noise = HELD_OUT_IMAGES.to(self.dtype), LABELS[CLEAN + POISON :], noise.to(self.dtype)
        return lambda weights, _: upper_loss(with_weights(model, weights), images, labels, noise, sigma=SIGMA)

    def lower_noise(self, step: int) -> Tensor:
        return lower_noise(self.procedure.settings.draws, step)

    @property
    def weights(self) -> Tensor:
        return WEIGHTS.to(self.dtype)

    @property
    def x_poison(self) -> Tensor:
        return X_POISON.to(self.dtype)


GAUSSIAN = make(ProcedureConfig(name="gaussian"), sigma=SIGMA)
MACER = make(ProcedureConfig.model_validate({"name": "macer-pacd", "draws": 2, "weight": 2.0}), sigma=SIGMA)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=["gaussian", "macer"])
def trace(request, dtype: torch.dtype) -> Trace:
    if request.param == "macer":
        return Trace(MACER, second_macer, dtype)
    return Trace(GAUSSIAN, second_gaussian, dtype)


def slope(loss, at: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(loss, at)


def dense_hessian(loss, noise: Tensor) -> Tensor:
    """Of a second lower loss in the weights."""
    return torch.autograd.functional.hessian(lambda v: loss(v, X_POISON, noise), WEIGHTS, vectorize=True)


def test_the_weights_are_ordered_as_the_second_computation_reads_them():
    model = network(torch.float64)
    found = with_weights(model, WEIGHTS)(IMAGES)
    expected = torch.stack([z(WEIGHTS, x) for x in IMAGES])
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert flat_weights(model).shape == WEIGHTS.shape


def test_losses_and_their_gradients_agree(trace: Trace):
    above, below = upper_noise(0), trace.lower_noise(0)
    f, f_v = hypergradient.gradient(trace.upper(above), trace.weights, trace.x_poison)
    g, g_v = hypergradient.gradient(trace.lower(below), trace.weights, trace.x_poison)
    assert f == pytest.approx(float(second_upper(WEIGHTS, above)), rel=TOLERANCE[trace.dtype])
    assert g == pytest.approx(float(trace.second(WEIGHTS, X_POISON, below)), rel=TOLERANCE[trace.dtype])
    trace.close(f_v, slope(lambda v: second_upper(v, above), WEIGHTS))
    trace.close(g_v, slope(lambda v: trace.second(v, X_POISON, below), WEIGHTS))


def test_the_second_computation_is_differentiated_as_finite_differences_do():
    noise = 2 * MACER.draw_noise(IMAGES, generator=stream(0, "noise")).double()
    along = normal(len(WEIGHTS), name="along")
    ahead, behind = (second_macer(WEIGHTS + step * along, X_POISON, noise) for step in (1e-5, -1e-5))
    expected = slope(lambda v: second_macer(v, X_POISON, noise), WEIGHTS) @ along
    assert float(ahead - behind) / 2e-5 == pytest.approx(float(expected), rel=1e-6)


def test_hessian_vector_products_agree(trace: Trace):
    noise, vector = trace.lower_noise(0), normal(len(WEIGHTS), name="vector")
    dense = dense_hessian(trace.second, noise)
    product = hessian(trace.lower(noise), trace.weights, trace.x_poison)
    trace.close(product(vector.to(trace.dtype)), dense @ vector)


@cache
def second_steps(second, draws: int) -> tuple[Tensor, float, Tensor, Tensor]:
    """(p after ten steps, its relative residual, g_uv p by central differences of fourth order, the new poison)."""
    p, m, s = torch.zeros(3, len(WEIGHTS), dtype=torch.float64)
    for step in range(STEPS):
        damped = dense_hessian(second, lower_noise(draws, step)) + DAMPING * torch.eye(len(WEIGHTS))
        f_v = slope(partial(second_upper, noise=upper_noise(step)), WEIGHTS)
        slope_of_h = 2 * damped @ (damped @ p - f_v)
        m, s = 0.9 * m + 0.1 * slope_of_h, 0.999 * s + 0.001 * slope_of_h**2
        rate = LINEAR_RATE * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        p = p - rate * m / (s.sqrt() + 1e-8)
    residual = float((damped @ p - f_v).norm() / f_v.norm())
    noise, h = lower_noise(draws, STEPS), 1e-3

    def along_p(u: Tensor) -> Tensor:
        near, far = (second(WEIGHTS + k * h * p, u, noise) - second(WEIGHTS - k * h * p, u, noise) for k in (1, 2))
        return (8 * near - far) / (12 * h)

    g_uv_p = slope(along_p, X_POISON)
    m, s = 0.1 * -g_uv_p, 0.001 * g_uv_p**2
    u = (X_POISON - POISON_RATE * math.sqrt(0.001) / 0.1 * m / (s.sqrt() + 1e-8)).clamp(0, 1)
    return p, residual, g_uv_p, X_CLEAN + (u - X_CLEAN).clamp(-EPSILON, EPSILON)


def test_ten_steps_of_the_linear_system_and_the_updated_poison_agree(trace: Trace):
    asked = iter(range(STEPS))

    def system():
        step = next(asked)
        lower, upper = trace.lower(trace.lower_noise(step)), trace.upper(upper_noise(step))
        target = hypergradient.gradient(upper, trace.weights, trace.x_poison)[1]
        return hessian(lower, trace.weights, trace.x_poison), target

    start = torch.zeros_like(trace.weights)
    adam = Adam(start, learning_rate=LINEAR_RATE)
    solved = adam_on_residual(system, start, steps=STEPS, damping=DAMPING, adam=adam)
    indirect = cross_term(trace.lower(trace.lower_noise(STEPS)), trace.weights, trace.x_poison, solved.solution)
    change = Adam(trace.x_poison, learning_rate=POISON_RATE).step(-indirect)
    poison = updated_poison(trace.x_poison, X_CLEAN.to(trace.dtype), change, epsilon=EPSILON)

    p, residual, g_uv_p, u = second_steps(trace.second, trace.procedure.settings.draws)
    assert next(asked, None) is None  # ten systems were asked for
    trace.close(solved.solution, p)
    assert solved.relative_residual == pytest.approx(residual, rel=TOLERANCE[trace.dtype])
    differences = max(TOLERANCE[trace.dtype], 1e-8)  # as exact as they are
    assert float((indirect.double() - g_uv_p).norm() / g_uv_p.norm()) < differences
    trace.close(poison, u)
    assert float((poison.double() - u).abs().max()) < TOLERANCE[trace.dtype]
    assert float((poison.double() - X_POISON).abs().mean()) > POISON_RATE / 4


# --- what a minibatch holds fixed

CONFIG: AttackConfig = PRESETS["quick"].config.attack.model_copy(
    update=dict(clean_batch=6, poison_batch=3, upper_batch=4, upper_noise=2)
)
TRAINING = LabelledImages(IMAGES.float(), torch.arange(CLEAN + POISON) // CLEAN, torch.arange(CLEAN + POISON))
PROBLEM = AttackProblem(
    TRAINING,
    TRAINING.of_class(1),
    indices=torch.arange(CLEAN, CLEAN + POISON),
    epsilon=EPSILON,
    target_class=1,
    num_classes=2,
    procedure=GAUSSIAN,
)
ROWS = torch.tensor([0, 2, 4])


def levels(procedure: str, augmentation: str = "none", **changes) -> Levels:
    problem = replace(PROBLEM, procedure=make(ProcedureConfig(name=procedure), sigma=SIGMA), augmentation=augmentation)
    return Levels(problem, CONFIG.model_copy(update=changes), seed=0, generator=stream(0, "draw"))


def lower_of(drawn: Levels, model: nn.Module, strength: float = 1.0):
    which = drawn.draw_lower(ROWS)
    shared = drawn.shared_draws(model, flat_weights(model), PROBLEM.x_clean[ROWS], which, strength=strength)
    return drawn.minibatch(which, poison=len(ROWS), strength=strength).loss(model, shared)


@pytest.fixture
def model() -> nn.Module:
    model = network(torch.float32)
    nn.utils.vector_to_parameters(WEIGHTS.float(), model.parameters())
    return model


@pytest.mark.parametrize("procedure", ["smoothadv", "smoothadv-pacd", "smoothmix"])
@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_where_there_is_an_adversary_a_minibatch_keeps_its_draws(procedure, augmentation, model):
    drawn = levels(procedure, augmentation)
    weights, x_poison = flat_weights(model), PROBLEM.x_clean[ROWS]
    values = []
    for _ in range(2):
        loss = lower_of(drawn, model)
        values += [float(loss(weights, x_poison)) for _ in range(2)]
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert values[0] != values[2]


@pytest.mark.parametrize("procedure", ["gaussian", "macer", "consistency"])
def test_without_an_adversary_noise_is_fresh_at_every_call_unless_it_is_fixed_for_ever(procedure, model):
    weights, x_poison = flat_weights(model), PROBLEM.x_clean[ROWS]
    fresh = lower_of(levels(procedure), model)
    assert float(fresh(weights, x_poison)) != float(fresh(weights, x_poison))
    fixed = lower_of(levels(procedure, fixed_lower_noise=True), model)
    assert float(fixed(weights, x_poison)) == float(fixed(weights, x_poison))


def test_noise_of_held_out_images_is_fresh_at_every_call_unless_it_is_fixed_for_ever(model):
    answers = model(PROBLEM.validation.images).argmax(dim=1)
    problem = replace(PROBLEM, validation=replace(PROBLEM.validation, labels=answers))

    def values(**changes) -> list[float]:
        config = CONFIG.model_copy(update=dict(upper_batch=POISON, inverse_temperature=1.0) | changes)
        drawn = Levels(problem, config, seed=0, generator=stream(0, "draw"))
        return [float(drawn.upper(model, drawn.draw_upper())(flat_weights(model), PROBLEM.x_clean)) for _ in range(3)]

    fixed = values(fixed_upper_noise=True)  # of all held-out images, in any order
    assert fixed == pytest.approx([fixed[0]] * 3, rel=1e-5)
    assert fixed[0] > 0
    assert len(set(values())) == 3


def test_fixed_noise_belongs_to_images_whatever_minibatch_they_are_in(monkeypatch, model):
    seen: dict[bytes, set[bytes]] = {}

    def spy(self, f, batch: Batch):
        for image, draws in zip(batch.images, batch.noise, strict=True):
            seen.setdefault(image.detach().numpy().tobytes(), set()).add(draws.numpy().tobytes())
        return f(batch.images).sum()

    monkeypatch.setattr(type(GAUSSIAN), "loss", spy)
    drawn = levels("gaussian", fixed_lower_noise=True)
    for _ in range(8):
        lower_of(drawn, model)(flat_weights(model), PROBLEM.x_clean[ROWS])
    assert len(seen) == CLEAN + len(ROWS)
    assert all(len(draws) == 1 for draws in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_the_adversary_answers_once_and_its_change_is_constant_for_both_arguments(model):
    """With g = CE at x + change + noise, dg/dx is GA's at the changed image: no gradient through the adversary."""
    drawn = levels("smoothadv", fixed_lower_noise=True)
    weights, x_poison = flat_weights(model), PROBLEM.x_clean[ROWS]
    loss = lower_of(drawn, model)
    again = levels("smoothadv", fixed_lower_noise=True)
    which = again.draw_lower(ROWS)
    batch = Batch(TRAINING.images[which], TRAINING.labels[which], again._lower_noise[which])
    procedure = make(ProcedureConfig(name="smoothadv"), sigma=SIGMA)
    (change,) = procedure.prepare(with_weights(model, weights), batch, generator=stream(0, "unused"))
    assert float(change.flatten(1).norm(dim=1).min()) > 0.5
    moved = weights + 0.1
    at = (batch.images + change).requires_grad_()
    expected = GAUSSIAN.loss(with_weights(model, moved), batch._replace(images=at))
    x = x_poison.clone().requires_grad_()
    found = loss(moved, x)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    found.backward()
    expected.backward()
    assert torch.allclose(x.grad, at.grad[-len(ROWS) :], rtol=1e-5, atol=1e-9)


def test_before_the_warm_up_there_is_no_adversary(model):
    drawn = levels("smoothadv", fixed_lower_noise=True)
    weights, x_poison = flat_weights(model), PROBLEM.x_clean[ROWS]
    none = float(lower_of(levels("smoothadv", fixed_lower_noise=True), model, strength=0.0)(weights, x_poison))
    whole = float(lower_of(drawn, model)(weights, x_poison))
    assert none < whole


def test_with_batch_normalisation_the_lower_level_uses_the_batch_and_the_upper_level_its_running_statistics():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    weights, x_poison = flat_weights(model) + 0.1, PROBLEM.x_clean[ROWS]
    drawn = levels("standard", fixed_upper_noise=True, upper_batch=5)
    seen: list[tuple[bool, Tensor]] = []
    model[1].register_forward_pre_hook(lambda layer, given: seen.append((layer.training, given[0].detach())))
    lower, upper = lower_of(drawn, model), drawn.upper(model, drawn.draw_upper())
    (_, batch), statistics = seen[0], model[1].running_mean.clone()
    assert len(batch) == CONFIG.clean_batch + len(ROWS)
    assert torch.allclose(statistics, 0.1 * batch.mean(dim=(0, 2, 3)), rtol=1e-5)
    product = hessian(lower, weights, x_poison)
    hypergradient.gradient(upper, weights, x_poison)
    assert product(weights).isfinite().all()
    assert cross_term(lower, weights, x_poison, weights).isfinite().all()
    assert [training for training, _ in seen] == [True, True, False, True]  # statistics, Hessian, upper, cross term
    assert torch.equal(model[1].running_mean, statistics)  # whatever is evaluated within the minibatch


def test_the_updated_poison_is_within_its_budget_and_range():
    x_clean = torch.tensor([0.0, 0.05, 0.5, 0.98, 1.0])
    change = torch.tensor([-0.3, -0.3, 0.04, 0.3, 0.3])
    found = updated_poison(x_clean, x_clean, change, epsilon=0.1)
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 0.54, 1.0, 1.0]))
    assert torch.allclose(updated_poison(x_clean, x_clean, -change, epsilon=0.1)[:2], torch.tensor([0.1, 0.15]))
