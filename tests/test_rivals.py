"""All attacks from outside: the threat model, seeds, costs, and surrogates that diverge."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.attacks import ATTACKS
from engine.attacks.base import AttackRecord
from engine.attacks.pacd import MOST_RESTARTS
from engine.choices import AttackName
from engine.config import ProcedureConfig
from engine.costs import work_of_attack
from engine.overrides import with_overrides
from engine.threat import Poison, check
from engine.training import PROCEDURES, make
from engine.training.base import Batch
from engine.training.gaussian import Gaussian
from tests.rivals import (
    CONFIG,
    EPSILON,
    GAUSSIAN,
    MADE,
    OPTIMISED,
    PROBLEM,
    QUICK,
    SIGMA,
    TARGET,
    TRAINING,
    attacked,
    tiny_networks,
)

__all__ = ["tiny_networks"]  # a fixture that works by being here
RIVALS = [name for name in MADE if name != "pacd"]  # tests/test_attacks.py has this one's own


@pytest.mark.parametrize("name", MADE)
@settings(deadline=None, derandomize=True, database=None, max_examples=8)
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_every_step_is_counted_and_holds_to_the_threat_model(name, epsilon, seed):
    before, labels = TRAINING.images.clone(), TRAINING.labels.clone()
    records = attacked(name, replace(PROBLEM, epsilon=epsilon), seed=seed)
    assert [record.step for record in records] == list(range(1, records[0].steps + 1))
    assert records[0].steps == (CONFIG.upper_steps if name in OPTIMISED else 1)
    for record in records:
        assert record.delta.dtype == torch.float32
        poison = Poison(record.delta, PROBLEM.indices, record.labels)
        check(poison, TRAINING, target_class=TARGET, epsilon=epsilon, clean_label=name != "label-flip")
    assert torch.equal(TRAINING.images, before)
    assert torch.equal(TRAINING.labels, labels)


@pytest.mark.parametrize("name", [name for name in MADE if name != "label-flip"])
def test_an_attack_uses_its_budget_and_without_one_changes_nothing_bit_for_bit(name):
    assert float(attacked(name)[-1].delta.abs().max()) == pytest.approx(EPSILON, rel=1e-5)
    assert all((record.delta == 0).all() for record in attacked(name, replace(PROBLEM, epsilon=0.0)))


@pytest.mark.parametrize("name", ["label-flip", "watermark"])
def test_an_attack_that_needs_images_of_other_classes_says_so_where_there_are_none(name):
    alone = PROBLEM.training.of_class(TARGET)
    problem = replace(PROBLEM, training=alone, indices=torch.arange(len(alone)))
    with pytest.raises(ValueError, match="must have images of another class than the target class"):
        attacked(name, problem)


@pytest.mark.parametrize("name", RIVALS)
def test_an_attack_follows_from_its_seed_and_leaves_the_global_generator_untouched(name):
    def digests(seed: int) -> list[str]:
        return [Poison(r.delta, PROBLEM.indices, r.labels).digest() for r in attacked(name, seed=seed)]

    before, first = torch.get_rng_state(), digests(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert digests(0) == first
    assert (digests(1)[-1] != first[-1]) == (name != "brightness")  # which draws nothing


@pytest.mark.parametrize("name", RIVALS)
def test_without_images_to_change_there_is_nothing_to_do(name):
    assert attacked(name, replace(PROBLEM, indices=PROBLEM.indices[:0])) == []


@pytest.mark.parametrize("name", OPTIMISED)
@pytest.mark.parametrize("procedure", list(PROCEDURES))
def test_an_optimised_attack_takes_every_procedure(name, procedure):
    problem = replace(PROBLEM, procedure=make(ProcedureConfig(name=procedure), sigma=SIGMA))
    records = attacked(name, problem, upper_steps=2)
    assert all("diverged" not in str(record.event) and math.isfinite(record.lower_loss) for record in records)
    assert float(records[-1].delta.abs().max()) > 0


class Broken(Gaussian):
    def loss(self, base_classifier, batch: Batch) -> Tensor:
        return super().loss(base_classifier, batch) * math.nan


@pytest.mark.parametrize("name", [name for name in RIVALS if name in OPTIMISED])
def test_surrogates_that_keep_diverging_are_reported_and_then_end_the_attack(name):
    records: list[AttackRecord] = []
    with pytest.raises(FloatingPointError, match="in a row diverged"):
        records.extend(ATTACKS[name](replace(PROBLEM, procedure=Broken(GAUSSIAN.settings, SIGMA)), CONFIG, 0))
    assert ["the surrogate diverged" in str(record.event) for record in records] == [True] * MOST_RESTARTS
    assert all((record.delta == 0).all() for record in records)


def test_an_attack_costs_what_it_differentiates():
    names = [name for name in get_args(AttackName) if name != "from-file"]
    work = {name: work_of_attack(with_overrides(QUICK, [f"attack.name={name}"])) for name in names}
    assert work["pacd"] == work["universal"] > work["gradient-matching"] > work["error-minimising"] > 0
    assert {name for name in names if work[name] > 0} == {*OPTIMISED}
    file = with_overrides(QUICK, ["attack.name=from-file", f"attack.file={'0' * 64}"])
    assert work_of_attack(file) == 0


def test_a_solver_costs_what_it_multiplies():
    def work(solver: str) -> float:
        return work_of_attack(with_overrides(QUICK, [f"attack.linear_solver={solver}", "attack.linear_steps=3"]))

    assert work("adam") > work("neumann") > work("cg") == work("minres") == work("nystrom") == work("gauss-newton-cg")
    assert work("cg") > work("unrolled") > work("one-step")
    assert work("penalty") > work("unrolled")
    assert work("one-step") == work_of_attack(with_overrides(QUICK, ["attack.name=gradient-matching"]))
