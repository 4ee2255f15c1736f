"""What a run is predicted to need, beside what was counted and measured."""

import json
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from engine import costs
from engine.costs import KEPT, estimate, memory_of
from engine.models import BUILDERS, build
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.streams import stream
from engine.votes import has_bfloat16

# Bytes at the peak of shortened runs with two workers: MNIST's are what the benchmark measured; CIFAR-10's are older,
# of random images, and the last was cut off early.
MEMORY = json.loads((PROJECT / "benchmarks/results/epyc-avx2/memory.json").read_text())["tables"]["Memory"]
MEASURED = {row["preset"]: row["measured"] for row in MEMORY} | {
    "paper-ga-cifar10": 6.77e9,
    "paper-smoothadv-cifar10": 7.51e9,
    "paper-macer-cifar10": 13.63e9,
}


def kept(model: torch.nn.Module, images: int) -> int:
    """Bytes that are kept for the backward pass of so many images, weights aside."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.zeros(images, 1, 28, 28))
        result = torch.nn.functional.cross_entropy(logits, torch.zeros(images, dtype=torch.int64))
    assert result.requires_grad  # until here, what was kept lives
    return sum(storages.values())


@pytest.mark.parametrize("architecture", BUILDERS)
def test_what_a_backward_pass_keeps_is_counted(architecture):
    model = build(architecture, generator=stream(0, "test"))
    assert (kept(model, 6) - kept(model, 4)) / 2 == pytest.approx(KEPT[architecture], rel=0.1)


@pytest.mark.parametrize("preset", MEASURED)
def test_predicted_memory_is_within_30_percent_of_what_was_measured(preset):
    assert memory_of(PRESETS[preset].config, workers=2) == pytest.approx(MEASURED[preset], rel=0.3)


@pytest.mark.parametrize(
    "change",
    [
        *("attack.clean_batch=2000", "attack.upper_noise=80", "attack.fixed_lower_noise=true"),
        *("attack.surrogate=lenet", "data.train_size=30000", "procedure=macer", "procedure=smoothadv-pacd"),
    ],
)
def test_more_of_what_is_kept_takes_more(change):
    config = PRESETS["quick"].config
    assert memory_of(with_overrides(config, [change]), workers=2) > memory_of(config, workers=2)


def test_larger_photographs_take_more_of_both_and_other_data_sets_keep_their_own():
    def of(dataset: str, side: int) -> costs.Estimate:
        config = with_overrides(PRESETS["smoke"].config, [f"dataset={dataset}", "architecture=lenet"])
        return estimate(config, device="cpu", shape=(3, side, side))

    small, large = of("folder:own", 28), of("folder:own", 56)
    assert large.seconds - costs.STARTUP_SECONDS == pytest.approx(4 * (small.seconds - costs.STARTUP_SECONDS))
    weights = 4 * costs.WEIGHTS_HELD * costs.DENSE["lenet"] * 3 * 28**2
    assert large.memory_bytes - costs.BASE_MEMORY > 4 * (small.memory_bytes - costs.BASE_MEMORY) + 0.9 * weights
    assert of("digits", 56) == of("digits", 28)


def test_certification_takes_the_images_of_the_classes_that_there_are():
    config = with_overrides(PRESETS["baseline-ga-mnist"].config, ["dataset=folder:own"])
    settings = config.certification
    two, ten, hundred = (costs.work_of_votes(config, classes=k) for k in (2, 10, 100))
    assert ten == costs.work_of_votes(config)
    assert hundred / two == pytest.approx(
        (settings.target_images + 99 * settings.other_images) / (settings.target_images + settings.other_images)
    )
    assert estimate(config, device="cpu", classes=100).seconds > estimate(config, device="cpu").seconds


def test_an_attack_without_derivatives_takes_no_more_than_victims_do():
    config = PRESETS["baseline-ga-mnist"].config
    assert memory_of(with_overrides(config, ["attack.clean_batch=59000"]), workers=2) == memory_of(config, workers=2)


def test_a_training_is_one_workers_task_and_votes_are_shared(monkeypatch):
    """Of two workers one trains one victim, or three two after another, while both count votes."""
    monkeypatch.setattr(costs, "workers_for", lambda device: 2)
    config = PRESETS["baseline-ga-mnist"].config
    train, certify = (work(config) / costs._of_a_cpu() for work in (costs.work_of_training, costs.work_of_votes))
    for victims, trained in ((1, 1), (2, 1), (3, 2), (4, 2)):
        expected = estimate(with_overrides(config, [f"victim_seeds={victims}"]), device="cpu").seconds
        assert expected == pytest.approx(costs.STARTUP_SECONDS + trained * train + victims * certify / 2)


def test_a_cpu_is_taken_to_multiply_in_bfloat16_if_torch_says_so():
    costs._of_a_cpu.cache_clear()
    believed = has_bfloat16() or not Path("/proc/cpuinfo").exists()
    assert costs._of_a_cpu() == (costs.UNITS_PER_SECOND if believed else costs.UNITS_PER_SECOND_IN_FLOAT32)


@pytest.mark.parametrize(("quota", "workers"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 7), ("", 7)])
def test_a_containers_quota_counts(quota: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(costs, "CGROUP", tmp_path / "cpu.max")
    monkeypatch.setattr(costs.os, "sched_getaffinity", lambda _: set(range(7)))
    assert costs.workers_for("cpu") == workers
