"""Consistency and SmoothMix: their formulas, written out."""

import math

import pytest
from torch.nn.functional import cross_entropy

from engine.models import with_weights
from engine.training.base import Batch
from tests.procedures import IMAGES, LABELS, MODEL, SIGMA, WEIGHTS, K, given, normal, prepared, procedure


def test_where_all_copies_agree_consistency_is_cross_entropy_and_half_the_entropy():
    of, batch = given("consistency", draws=2)
    f, noise = with_weights(MODEL, WEIGHTS), batch.noise
    same = noise[:, :1].expand(-1, 2, -1, -1, -1)
    p = f(IMAGES + noise[:, 0]).softmax(dim=1)
    expected = cross_entropy(f(IMAGES + noise[:, 0]), LABELS) - 0.5 * (p * p.log()).sum(dim=1).mean()
    assert float(of.loss(f, batch._replace(noise=same))) == pytest.approx(float(expected), rel=1e-12)


def test_consistency_is_its_formula_where_copies_differ():
    of, batch = given("consistency", draws=3)
    f = with_weights(MODEL, WEIGHTS)
    total = 0.0
    for image, label, draws in zip(IMAGES, LABELS.tolist(), batch.noise, strict=True):
        p = f(image + draws).softmax(dim=1).tolist()
        mean = [sum(column) / 3 for column in zip(*p, strict=True)]
        total += sum(-math.log(each[label]) for each in p) / 3
        total += 5 / 3 * sum(m * math.log(m / each[k]) for each in p for k, m in enumerate(mean))
        total -= 0.5 * sum(m * math.log(m) for m in mean)
    assert float(of.loss(f, batch)) == pytest.approx(total / len(IMAGES), rel=1e-12)


def test_smoothmix_is_its_formula_with_a_target_that_fades_to_no_opinion():
    of = procedure("smoothmix", draws=2, weight=3.0, adversary_steps=2, adversary_size=0.5)
    noise = SIGMA * normal(len(IMAGES), 2, 1, 4, 4, name="noise")
    f = with_weights(MODEL, WEIGHTS)
    batch = prepared(of, f, Batch(IMAGES, LABELS, noise, strength=0.5))
    change, far = batch.constants
    assert ((far > 0) & (far <= 0.5)).all()
    total = 0.0
    for image, label, draws, move, share in zip(IMAGES, LABELS.tolist(), noise, change, far.tolist(), strict=True):
        p = f(image + draws).softmax(dim=1)
        mean = p.mean(dim=0)
        target = (1 - share) * mean + share / K
        mixed = f((1 - share) * image + share * (image + move) + draws).softmax(dim=1)
        total -= float(p[:, label].log().mean())
        if int(mean.argmax()) == label:
            total += 3.0 * 0.5 * float((target * (target / mixed).log()).sum(dim=1).mean())
    found = of.loss(f, batch)
    assert float(found) == pytest.approx(total / len(IMAGES), rel=1e-12)
