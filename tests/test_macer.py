"""MACER: its formula, what it drops, its hinge."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from engine.models import with_weights
from engine.smoothing import log_mean_softmax, soft_margin
from engine.training.base import Batch
from tests.procedures import IMAGES, LABELS, MODEL, SIGMA, WEIGHTS, K, given, procedure


def logits_of(p: list[float]) -> Tensor:
    """Logits whose softmax at inverse temperature 16 is p."""
    return torch.tensor(p, dtype=torch.float64).log() / 16


def lookup(*rows: list[float]):
    """A classifier of images that hold a row's number in their pixel, and the images."""
    table = torch.stack([logits_of(row) for row in rows])
    images = torch.arange(float(len(rows)), dtype=torch.float64).view(-1, 1, 1, 1)
    return lambda batch: table[batch.flatten().round().long()], images


@pytest.mark.parametrize("name", ["macer", "macer-pacd"])
def test_macer_is_the_formula_with_the_quantiles_of_scipy(name):
    rows = [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]
    labels = torch.tensor([0, 1, 1, 2])  # the third is wrong
    f, images = lookup(*rows)
    squeeze = 1e-3 if name == "macer-pacd" else 0.0

    def q(t: float) -> float:
        return norm.ppf((1 - 2 * squeeze) * t + squeeze)

    entropy = hinge = 0.0
    for row, label in zip(rows, labels.tolist(), strict=True):
        powers = [p ** (1 / 16) for p in row]
        entropy -= math.log(powers[label] / sum(powers) + 1e-10)
        second, first = sorted(row)[1:]
        hinge += (q(second) - q(first) + 8) if row.index(first) == label else 0
    of = procedure(name, draws=5, weight=3.0)
    found = of.loss(f, Batch(images, labels, torch.zeros(4, 5, 1, 1, 1, dtype=torch.float64)))
    assert float(found) == pytest.approx((entropy + 3.0 * SIGMA / 2 * hinge) / 4, rel=1e-12)


def test_macers_term_is_deferred_until_the_warm_up_is_over():
    of, batch = given("macer")
    f = with_weights(MODEL, WEIGHTS)
    early, late = (float(of.loss(f, batch._replace(strength=s))) for s in (0.99, 1.0))
    logits = f((IMAGES[:, None] + batch.noise).flatten(0, 1)).view(len(IMAGES), -1, K)
    entropy = -(logits.softmax(dim=2).mean(dim=1)[torch.arange(len(IMAGES)), LABELS] + 1e-10).log().mean()
    assert early == pytest.approx(float(entropy), rel=1e-12)
    assert late > early


def test_macer_drops_what_is_certain_and_keeps_the_rest_with_its_gradient():
    """P_top of 1 − 1e-30 rounds to 1, so Φ⁻¹ is infinite there; the other image's gradient must not become nan."""
    logits = torch.stack([logits_of([1 - 2e-30, 1e-30, 1e-30]), logits_of([0.6, 0.3, 0.1])])[:, None].requires_grad_()
    margin, top = soft_margin(logits, squeeze=0.0, most=8.0)
    assert margin.tolist() == pytest.approx([math.inf, norm.ppf(0.6) - norm.ppf(0.3)], rel=1e-9)
    assert top.tolist() == [0, 0]
    (slope,) = torch.autograd.grad(torch.where(margin <= 8, margin, 0.0).sum(), logits)
    assert (slope[0] == 0).all()
    assert (slope[1].abs() > 0).all()


def test_a_margin_beyond_the_hinge_is_not_rewarded():
    """q(1 − p) − q(p) is 8 at p = Φ(−4) = 3.17e-5."""

    def term(p: float) -> float:
        f, images = lookup([1 - p, p])
        batch = Batch(images, torch.tensor([0]), torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64))
        whole, none = (procedure("macer", draws=2, weight=w).loss(f, batch) for w in (1.0, 0.0))
        return float(whole - none)

    assert term(norm.cdf(-3.99)) == pytest.approx(SIGMA / 2 * 0.02, rel=1e-6)
    assert term(norm.cdf(-4.01)) == 0


def test_squeezed_margins_never_reach_the_hinge():
    f, images = lookup([1 - 1e-12, 1e-12])
    of = procedure("macer-pacd", draws=2, weight=1.0)
    batch = Batch(images, torch.tensor([0]), torch.zeros(1, 2, 1, 1, 1, dtype=torch.float64))
    term = float(of.loss(f, batch) - procedure("macer-pacd", weight=0.0).loss(f, batch))
    assert term == pytest.approx(SIGMA / 2 * (8 - 2 * norm.ppf(0.999)), rel=1e-9)


def test_of_equal_classes_the_lower_one_is_on_top():
    draws = torch.tensor([[[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], [[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]]).double()
    margin, top = soft_margin(draws, inverse_temperature=100.0)
    assert top.tolist() == [1, 0]
    assert margin.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_mean_softmax_has_a_finite_logarithm_however_small():
    logits = torch.tensor([[[0.0, 200.0], [0.0, 300.0]], [[0.0, 1.0], [1.0, 0.0]]])
    found = log_mean_softmax(logits)
    assert float(found[0, 0]) == pytest.approx(-200 - math.log(2), rel=1e-6)
    assert found[1].exp().tolist() == pytest.approx([0.5, 0.5])
