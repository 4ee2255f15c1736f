"""What each arm of an experiment trains on: images and labels as the threat, the attack and the defence say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.choices import ARMS
from engine.config import Config
from engine.records import Run

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]


@pytest.mark.parametrize(
    ("typed", "arms"),
    [
        (["attack.name=none"], ["clean"]),
        (["controls=[]"], ["clean", "poisoned"]),
        (['controls=["shuffled_signs"]'], ["clean", "poisoned", "shuffled_signs"]),
    ],
)
def test_only_the_arms_that_were_asked_for_are_trained_and_the_others_change_nothing(
    typed: list[str], arms: list[str], baseline: Run, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny("victim_seeds=2", *typed), runs_root)
    assert run.status().state == "done", run.status().error
    assert run.report is not None
    assert baseline.report is not None
    assert (run.report["complete"], list(run.report["arms"])) == (True, arms)
    assert list(run.report["relative_drop"]) == arms[1:]
    assert (run.tensors("poison") is None) == (run.report["perturbation"] is None) == (arms == ["clean"])
    for arm in arms:
        assert run.report["arms"][arm] == baseline.report["arms"][arm]


def test_label_flips_change_labels_and_no_pixel(tiny: Tiny, work_here: WorkHere, runs_root: Path) -> None:
    run = work_here(tiny("attack.name=label-flip", "controls=[]"), runs_root)
    assert run.status().state == "done", run.status().error
    poison = run.tensors("poison")
    assert poison is not None
    assert not poison["delta"].any()
    assert len(poison["labels"]) == len(poison["indices"]) > 0
    assert run.config.threat.target_class not in poison["labels"]
    clean, poisoned = ((run.directory / "victims" / f"{arm}-0.safetensors").read_bytes() for arm in ARMS[:2])
    assert clean != poisoned


def test_random_noise_as_the_attack_is_the_control(tiny: Tiny, work_here: WorkHere, runs_root: Path) -> None:
    beside = work_here(tiny('controls=["random_noise"]'), runs_root)
    alone = work_here(tiny("attack.name=random-noise", "controls=[]"), runs_root)
    assert alone.report is not None
    assert beside.report is not None
    assert alone.report["arms"]["poisoned"] == beside.report["arms"]["random_noise"]
    assert {"victim poisoned-0", "votes poisoned-0"} <= set(alone.report["reused"])


def test_an_attacker_of_a_part_of_the_data_changes_images_of_that_part_only(
    baseline: Run, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    """Which part it is does not hang on anything but the seed: the indices are among those of the whole."""
    run = work_here(tiny("threat.attacker_share=0.5", "controls=[]"), runs_root)
    assert run.status().state == "done", run.status().error
    part, whole = run.tensors("poison"), baseline.tensors("poison")
    assert part is not None
    assert whole is not None
    assert set(part["indices"]) < set(whole["indices"])
    assert len(part["indices"]) > 0


def test_fine_tuning_starts_from_the_clean_victim(tiny: Tiny, work_here: WorkHere, runs_root: Path) -> None:
    scratch = work_here(tiny("controls=[]"), runs_root)
    tuned = work_here(tiny("controls=[]", "training.fine_tune_epochs=1"), runs_root)
    assert tuned.status().state == "done", tuned.status().error
    assert tuned.report is not None
    assert {"poison", "victim before-0"} <= set(tuned.report["reused"])
    fresh = work_here(tiny("controls=[]", "training.fine_tune_epochs=1"), runs_root.with_name("nothing to reuse"))
    assert fresh.report is not None
    assert fresh.report["reused"] == []  # though the second arm takes what the first has trained
    before, clean = (
        run.directory / "victims" / name
        for run, name in ((tuned, "before-0.safetensors"), (scratch, "clean-0.safetensors"))
    )
    assert before.read_bytes() == clean.read_bytes()
    for arm in ("clean", "poisoned"):
        assert (tuned.directory / "victims" / f"{arm}-0.safetensors").read_bytes() != before.read_bytes()


def test_squeezing_changes_every_arms_training_images_and_no_test_image(
    baseline: Run, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny("training.squeezing=one-bit", "controls=[]"), runs_root)
    assert run.status().state == "done", run.status().error
    poison, before = run.tensors("poison"), baseline.tensors("poison")
    assert poison is not None
    assert before is not None
    assert np.array_equal(poison["delta"], before["delta"])  # the attacker does not know of it
    for arm in ("clean", "poisoned"):
        ours, plain = (r.directory / "victims" / f"{arm}-0.safetensors" for r in (run, baseline))
        assert ours.read_bytes() != plain.read_bytes()
    ours, plain = run.certificates(), baseline.certificates()
    assert set(ours["image"]) == set(plain["image"])
