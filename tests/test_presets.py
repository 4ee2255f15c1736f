"""Presets: the authors' settings against the tables of their released code, and sizes that fit what is said of them."""

from pathlib import Path

import pytest

from engine import paper, presets, records
from engine.config import Config, ConfigError, lower_level
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.report import sentences

# procedure, data set → σ, lr_p, lower steps, upper steps, minibatch (clean, poison, upper), noise, squeeze, lower noise
# fixed, upper noise fixed, victims' epochs, batch, augmentation
AUTHORS = {
    ("ga", "mnist"): (0.5, 1e-2, 10, 49 * 55, (900, 100, 100), 20, 1e-3, False, False, 101, 200, "none"),
    ("macer", "mnist"): (0.5, 1e-4, 10, 49 * 55, (900, 100, 100), 20, 1e-3, True, True, 101, 200, "none"),
    ("smoothadv", "mnist"): (0.75, 1e-3, 1, 99 * 55, (900, 100, 100), 20, 1e-4, True, False, 101, 100, "none"),
    ("ga", "cifar10"): (0.5, 1e-3, 10, 49 * 225, (180, 20, 20), 5, 1e-3, False, False, 201, 200, "crop-flip-batch"),
    ("macer", "cifar10"): (0.25, 1e-4, 10, 49 * 225, (180, 20, 20), 5, 1e-3, True, True, 101, 100, "crop-flip-batch"),
    ("smoothadv", "cifar10"): (0.25, 1e-3, 1, 99 * 225, (180, 20, 20), 5, 1e-3, True, False, 101, 100, "none"),
}


def test_an_impossible_noise_level_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^sigma: input should be greater than 0, got -1$"):
        paper.paper("ga", "mnist", -1)


@pytest.mark.parametrize(("procedure", "dataset"), AUTHORS)
def test_the_papers_presets_have_the_authors_numbers(procedure: str, dataset: str) -> None:
    config = PRESETS[f"paper-{procedure}-{dataset}"].config
    attack, training, certification = config.attack, config.training, config.certification
    assert AUTHORS[procedure, dataset] == (
        *(config.sigma, attack.linear_learning_rate, attack.lower_steps, attack.upper_steps),
        *((attack.clean_batch, attack.poison_batch, attack.upper_batch), attack.upper_noise, attack.squeeze),
        *(attack.fixed_lower_noise, attack.fixed_upper_noise),
        *(training.epochs, training.batch_size, training.augmentation),
    )
    assert (attack.restart_every * 5, attack.warmup_steps) == (attack.upper_steps, 0)
    assert attack.poison_moments == "position"
    assert (attack.linear_steps, attack.linear_solver, attack.damping, attack.inverse_temperature) == (
        10,
        "adam",
        1e-3,
        16,
    )
    assert (attack.poison_learning_rate, attack.weights_learning_rate, training.learning_rate) == (0.1, 1e-3, 1e-3)
    assert (training.optimiser, training.schedule, training.weight_decay) == ("adam", "constant", 0)
    assert (config.threat.target_class, config.threat.poison_fraction) == (8, 1)
    mnist = dataset == "mnist"
    assert config.threat.epsilon == (0.1 if mnist else 0.03)
    assert config.architecture == attack.surrogate == ("lenet" if mnist else "resnet20-pacd")
    assert (config.data.train_size, config.data.validation_size) == (55_000 if mnist else 45_000, 5000)
    assert (certification.target_images, certification.n0, certification.n, certification.alpha) == (
        *(500, 10_000, 100_000, 0.001),
    )
    assert lower_level(config)[1] == config.sigma


@pytest.mark.parametrize(
    ("dataset", "sigma", "victims", "attacker"),
    [
        *(("mnist", sigma, (16, 16.0), (1, 1.0)) for sigma in (0.25, 0.5, 0.75)),
        ("cifar10", 0.25, (16, 12.0), (2, 2.0)),
        ("cifar10", 0.5, (16, 4.0), (2, 2.0)),
    ],
)
def test_macers_weight_follows_sigma_and_the_attackers_is_its_own(
    dataset: str, sigma: float, victims: tuple[int, float], attacker: tuple[int, float]
) -> None:
    config = paper.paper("macer", dataset, sigma)
    assert (config.procedure.draws, config.procedure.weight) == victims
    assert (lower_level(config)[0].draws, lower_level(config)[0].weight) == attacker


def test_smoothadv_is_as_the_authors_ran_it() -> None:
    config = paper.paper("smoothadv", "mnist", 0.25)
    victims, attacker = config.procedure, lower_level(config)[0]
    for procedure in (victims, attacker):
        assert (procedure.draws, procedure.adversary_steps, procedure.adversary_size) == (1, 2, 1.0)
    assert round(victims.warmup * 101) == 10
    assert attacker.warmup * 20 == 5


@pytest.mark.parametrize(("procedure", "dataset"), [("gaussian", "mnist"), ("ga", "digits"), ("ga", "imagenet")])
def test_what_the_paper_did_not_do_is_refused(procedure: str, dataset: str) -> None:
    with pytest.raises(ConfigError, match="of the paper is one of"):
        paper.paper(procedure, dataset, 0.5)


@pytest.mark.parametrize("procedure", paper.PROCEDURES)
@pytest.mark.parametrize("dataset", ["mnist", "cifar10", "digits"])
def test_the_small_scale_is_sound_and_keeps_the_papers_budget(procedure: str, dataset: str) -> None:
    config = presets.small(procedure, dataset, 0.25)
    assert Config.model_validate(config.model_dump()) == config
    assert config.threat.epsilon == (0.03 if dataset == "cifar10" else 0.1)
    assert (config.dataset, config.sigma) == (dataset, 0.25)


def test_every_preset_says_how_it_departs() -> None:
    assert all(preset.departs for preset in PRESETS.values())


def test_small_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="a data set is one of"):
        presets.small("ga", "imagenet", 0.5)
    with pytest.raises(ConfigError, match="a procedure of the paper"):
        presets.small("standard", "mnist", 0.5)


@pytest.mark.parametrize("preset", ["quick", "paper-ga-mnist"])
def test_a_run_says_where_it_is_not_the_authors_setting(preset: str) -> None:
    """The one at the authors' scale is older than attack.poison_moments; tests/test_sentences.py has what is theirs."""
    runs = [run for run in records.all_runs(records.GALLERY) if run.request.get("preset") == preset]
    assert runs
    assert all("Not the paper's setting" in sentences.limits_line(run) for run in runs)


def test_a_run_of_the_authors_setting_does_not_say_so(tmp_path: Path) -> None:
    run = records.Run(tmp_path / ("0" * 16))
    run.directory.mkdir()
    (run.directory / "config.json").write_text(PRESETS["paper-ga-mnist"].config.canonical())
    assert "Not the paper's setting" not in sentences.limits_line(run)


def test_what_the_authors_change_with_sigma_is_said_where_it_is_kept() -> None:
    def said(preset: str, *overrides: str) -> str | None:
        return presets.kept_at_another_sigma(preset, with_overrides(PRESETS[preset].config, overrides))

    assert "at sigma=0.5 the authors have procedure.weight=4.0" in (said("paper-macer-cifar10", "sigma=0.5") or "")
    assert said("paper-macer-cifar10") is None
    assert said("paper-macer-cifar10", "sigma=0.5", "procedure.weight=4") is None
    assert said("paper-ga-cifar10", "sigma=0.25") is None
    assert said("quick-macer", "sigma=0.25") is None
