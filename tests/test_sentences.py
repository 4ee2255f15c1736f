"""What sentences say of a report, and what they must not."""

from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine import metrics, spread
from engine.config import Config
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run
from engine.report import numbers, sentences
from pages import _lesson_effect

NO_EFFECT = "With 3 victims the drop cannot be told from 0 (95 %: −27 to 57 %)."
NO_MORE = "With 3 victims the drop cannot be told from random noise's (95 %: −10 to 10 points more)."
SO_FEW = "That is too few victims to tell whether the poison takes anything beyond that."
NOISE, UNSURE = "Random noise of the same ε", ", which cannot be told from 0."
ONE = "One pair of victims cannot say how sure that is."


def three(mean: float, sd: float | None) -> list[float]:
    """Values of this mean and standard deviation; one where there is none."""
    return [mean] if sd is None else [mean - sd, mean, mean + sd]


def report(poisoned: tuple[float, float | None], noise: tuple[float, float | None] | None) -> dict[str, Any]:
    drops = {"poisoned": poisoned, "random_noise": noise}
    acr = {"average_certified_radius": {"target": {"mean": 0.5, "sd": 0.1, "seeds": [0.4, 0.5, 0.6]}}}
    return {
        "config": PRESETS["quick"].config.model_dump(mode="json") | {"victim_seeds": len(three(*poisoned))},
        "arms": {"clean": acr, "poisoned": acr},
        "target_name": "digit 8",
        "relative_drop": {
            arm: {"mean": found[0], "sd": found[1], "seeds": three(*found)} for arm, found in drops.items() if found
        },
    }


def test_classes_without_a_report_have_the_names_of_the_folder_that_the_run_was_given(
    folder: Path, prepare: Callable[..., Run], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny("dataset=folder:fruit", "threat.target_class=2")
    run = prepare(config, tmp_path / "runs")
    assert sentences.target_of(run) == "class 2"  # whose folder is gone
    run.write_json("request.json", {"data_root": str(folder.parent)})
    assert sentences.target_of(run) == "plum"


@pytest.mark.parametrize(
    ("poisoned", "noise", "said", "more"),
    [
        ((0.46, 0.07), (0.10, 0.02), "**46 ± 7 % less**. Random noise of the same ε takes 10 ± 2 %.", ""),
        ((0.15, 0.17), None, "**15 ± 17 % less**.", NO_EFFECT),
        ((0.15, 0.17), (0.02, 0.17), f"**15 ± 17 % less**. {NOISE} takes 2 ± 17 %{UNSURE}", ""),  # paired
        ((0.47, 0.01), (0.47, 0.05), "**47 ± 1 % less**. Random noise of the same ε takes 47 ± 5 %.", NO_MORE),
        ((0.30, 0.60), (0.10, 0.02), "Random noise of the same ε takes 10 ± 2 %.", SO_FEW),
        ((0.30, None), (0.10, None), "**30 % less**. Random noise of the same ε takes 10 %.", ONE),
        ((0.30, 0.02), None, "**30 ± 2 % less**.", ""),
        ((-0.05, 0.02), (-0.01, 0.02), f"**5 ± 2 % more**. {NOISE} adds 1 ± 2 %{UNSURE}", ""),
        ((0.30, 0.02), (-0.001, 0.01), f"**30 ± 2 % less**. {NOISE} takes 0 ± 1 %{UNSURE}", ""),
        ((0.30, None), (-0.004, None), f"**30 % less**. {NOISE} takes 0 %.", ONE),
        ((-0.05, 0.02), (-0.03, 0.02), f"**5 ± 2 % more**. {NOISE} adds 3 ± 2 %{UNSURE}", ""),
    ],
)
def test_a_headline_says_how_sure_it_is(
    poisoned: tuple[float, float | None], noise: tuple[float, float | None] | None, said: str, more: str
) -> None:
    text = sentences.headline(report(poisoned, noise))
    assert said in text
    assert text.endswith(more or said)


def test_what_noise_takes_is_told_from_0_by_its_interval_over_victims_not_by_their_spread() -> None:
    found = report((0.30, 0.02), None)
    found["relative_drop"]["random_noise"] = spread.summary([0.0, 0.1] * 5)  # 5 ± 5 %: 1 to 9
    assert f"{NOISE} takes 5 ± 5 % (10 of" not in (text := sentences.headline(found))
    assert f"{NOISE} takes 5 ± 5 %" in text
    assert UNSURE not in text


def told(clean: list[float], poisoned: list[float]) -> str:
    """The headline of victims of these ACR."""
    found = report((0.0, 0.0), None)
    found["config"]["victim_seeds"] = len(clean)
    for arm, values in (("clean", clean), ("poisoned", poisoned)):
        found["arms"][arm] = {"average_certified_radius": {"target": spread.summary(values)}}
    drops = pd.Series(metrics.relative_drop(np.array(clean), np.array(poisoned)))
    found["relative_drop"] = {"poisoned": numbers.summary(drops)}
    return sentences.headline(found)


def test_a_pair_that_has_nothing_to_lose_is_in_none_of_the_headlines_numbers() -> None:
    """Else it said "0.073 instead of 0.067: 9 % less"."""
    said = told([0.0, 0.134], [0.024, 0.122])
    assert "(ACR) of **0.122** instead of **0.134**: **9 % less** (1 of 2 pairs)." in said


def test_a_mean_of_ratios_that_contradicts_the_means_says_what_it_is() -> None:
    said = told([0.1, 1.0], [0.05, 1.2])
    instead = "**0.625 ± 0.813** instead of **0.550 ± 0.636**"
    assert f"{instead}: averaged over pairs of victims of the same seed, however, **15 ± 49 % less**." in said


@pytest.mark.parametrize("seeds", [[0.01, 0.21], [-0.3, 0.11, 0.52]])
def test_an_interval_that_says_nothing_is_not_told(seeds: list[float]) -> None:
    """Two victims, or 100 points: such a limit may round to 100 without exceeding it."""
    found = report((0.11, 0.12), (0.01, 0.0))
    found["relative_drop"]["poisoned"]["seeds"] = seeds
    found["config"]["victim_seeds"] = len(seeds)
    found["relative_drop"]["random_noise"]["seeds"] = [0.01] * len(seeds)
    found["relative_drop"]["poisoned"]["sd"] = stdev(seeds)
    assert sentences.headline(found).endswith(SO_FEW)
    assert "poisoned" not in sentences.victims_line(found)


@pytest.mark.parametrize(
    ("override", "is_it"),
    [
        ("threat.target_class=3", True),
        ("seed=7", True),
        ("threat.epsilon=0.3", False),
        ("threat.poison_fraction=0.1", False),
        ("training.epochs=3", False),
        ("sigma=0.25", True),
        ("sigma=1.0", False),
    ],
)
def test_another_threat_model_is_not_the_papers_setting(override: str, is_it: bool) -> None:
    assert sentences.is_the_papers(with_overrides(PRESETS["paper-ga-mnist"].config, [override])) == is_it


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "This one controls the images of a whole class and knows how victims train."),
        (["threat.poison_fraction=0.5"], "This one controls 50 % of the training images of a class and knows how"),
        (["attack.sigma=1"], "knows how victims train, except for their noise level."),
        (["attack.name=brightness"], "This one controls the images of a whole class."),
    ],
)
def test_the_lesson_names_the_limits_of_this_runs_attacker(overrides: list[str], said: str) -> None:
    assert said in _lesson_effect._attacker(with_overrides(PRESETS["smoke"].config, overrides))
