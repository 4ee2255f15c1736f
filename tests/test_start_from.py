"""PACD that starts from an earlier poison, scaled to its own budget: the attack, whole runs, command line and page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import poison_file, records
from engine.config import Config
from engine.data import load
from engine.poison_format import PoisonFileRefused
from engine.records import GALLERY, Run
from tests.app import EXAMPLE, button, opened, own_copy, words
from tests.commanding import main

Tiny = Callable[..., Config]
STILL = ("attack.poison_learning_rate=1e-9", "attack.upper_steps=1")  # the poison stays where it starts
SMALL, LARGE = 0.1, 0.15  # budgets


@pytest.fixture
def made(tiny: Tiny, work_here: Callable[..., Run], runs_root: Path) -> Run:
    return work_here(tiny("controls=[]", f"threat.epsilon={SMALL}"), runs_root)


def poison_in(run: Run) -> dict[int, np.ndarray]:
    """Changes [C, H, W] by the number of their image."""
    assert run.status().state == "done", run.status().error
    found = run.tensors("poison")
    assert found is not None
    return dict(zip(found["indices"].tolist(), found["delta"], strict=True))


@pytest.mark.parametrize(
    ("epsilon", "typed"),
    [
        (LARGE, "seed=0"),
        (SMALL / 2, "seed=0"),
        (LARGE, "threat.poison_fraction=0.4"),
        (LARGE, "threat.attacker_share=0.5"),
    ],
)
def test_the_attack_starts_at_the_earlier_changes_scaled_to_the_budget_and_cut_at_the_pixel_range(
    epsilon: float, typed: str, made: Run, tiny: Tiny, work_here: Callable[..., Run], runs_root: Path, tmp_path: Path
) -> None:
    start = poison_file.starting_from(made, runs_root)
    run = work_here(tiny("controls=[]", f"threat.epsilon={epsilon}", typed, *start, *STILL), runs_root)
    images = load("digits", tmp_path, train=True).images.numpy()
    largest = poison_file.of_run(made).largest_change
    earlier, found = poison_in(made), poison_in(run)
    assert len(found) > 5
    for number, delta in found.items():
        expected = (images[number] + earlier[number] * (epsilon / largest)).clip(0, 1) - images[number]
        np.testing.assert_allclose(delta, expected, atol=1e-6)
    assert run.report is not None
    assert f"starts from their changes times {epsilon / largest:.3g}" in run.report["events"][0]


def test_images_that_the_earlier_poison_has_not_start_clean(
    made: Run, tiny: Tiny, work_here: Callable[..., Run], runs_root: Path
) -> None:
    """Another seed draws other training images, so it knows only some of the poison's."""
    start = poison_file.starting_from(made, runs_root)
    earlier, found = poison_in(made), poison_in(work_here(tiny("controls=[]", "seed=1", *start, *STILL), runs_root))
    changed = {number for number, delta in found.items() if np.abs(delta).max() > 1e-6}
    assert changed == earlier.keys() & found.keys()
    assert 0 < len(changed) < len(found)


def test_a_start_is_part_of_what_a_poison_depends_on(
    made: Run, tiny: Tiny, work_here: Callable[..., Run], runs_root: Path
) -> None:
    """The same steps from the clean images are another poison, and another run."""
    steps = "attack.upper_steps=1"
    start = poison_file.starting_from(made, runs_root)
    started, clean = (work_here(tiny("controls=[]", *each, steps), runs_root) for each in (start, []))
    assert started.id != clean.id
    one, other = poison_in(started), poison_in(clean)
    assert any(not np.array_equal(one[number], other[number]) for number in one)


def test_the_command_line_takes_the_settings_of_a_run_and_starts_from_its_poison(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    example = Run(GALLERY / EXAMPLE)
    asked = ("run", "--start-from", EXAMPLE[:6], "--runs-root", tmp_path, "--data-root", tmp_path, "--dry-run")
    code, output, error = main(capsys, *asked, "--set", "threat.epsilon=0.2")
    assert code == 0, error
    expected = example.config.attack.restart_every // 2
    assert f'"file": "{poison_file.of_run(example).sha256}"' in output
    assert f'"upper_steps": {expected}' in output
    assert '"epsilon": 0.2' in output
    assert f'"target_class": {example.config.threat.target_class}' in output
    code, _, error = main(capsys, *asked[:2], "0" * 16, *asked[3:])
    assert (code, len(error.splitlines())) == (2, 1)


def test_a_run_without_poison_or_of_another_attack_or_unfinished_cannot_be_started_from(
    made: Run, capsys: pytest.CaptureFixture[str], runs_root: Path
) -> None:
    config, status = (made.read_json(name) for name in ("config.json", "status.json"))
    assert config
    assert status
    for name, content in (
        ("status.json", status | {"state": "cancelled"}),
        ("config.json", config | {"attack": config["attack"] | {"name": "universal"}}),
    ):
        made.write_json(name, content)
        with pytest.raises(PoisonFileRefused, match="of a finished run of PACD"):
            poison_file.starting_from(Run(made.directory), runs_root)
        made.write_json("status.json", status)
    made.write_json("config.json", config)
    (made.directory / "poison.safetensors").unlink()
    code, _, error = main(capsys, "run", "--start-from", made.id, "--runs-root", runs_root, "--dry-run")
    assert (code, error) == (2, f"error: run {made.id} has no poison\n")


def test_a_fork_starts_from_its_parents_poison_in_one_click(place: Path, submitted: list[Any]) -> None:
    parent = own_copy(place)
    test = opened("pages/poison.py", run=parent.id)
    button(test, "Copy its settings into the form").click().run()
    test.number_input(key="field threat.epsilon").set_value(0.05).run()
    test.selectbox(key="field attack.name").set_value("watermark").run()  # then back to PACD, which alone starts so
    button(test, "Start from its poison").click().run()
    digest = poison_file.of_run(parent).sha256
    assert f"--set attack.file={digest}" in words(test)
    assert "starting from an earlier poison" in words(test)
    button(test, "Start poisoning").click().run()
    (config,) = submitted
    assert (config.attack.file, config.threat.epsilon) == (digest, 0.05)
    assert config.attack.upper_steps == parent.config.attack.restart_every // 2
    assert Run(place / records.run_id(config)).request["forked_from"] == parent.id
    assert not test.exception


def test_a_fork_whose_parent_lost_its_poison_says_so(place: Path) -> None:
    parent = own_copy(place)
    test = opened("pages/poison.py", run=parent.id)
    button(test, "Copy its settings into the form").click().run()
    (parent.directory / "poison.safetensors").unlink()
    button(test, "Start from its poison").click().run()
    assert any(f"run {parent.id} has no poison" in error.value for error in test.error)
    assert not test.exception
