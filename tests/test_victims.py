"""Finished victims answer again as they did in their run, and a gallery copy's small weights vote nearly alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import datasets
from engine.choices import ARMS
from engine.exhibit import small_copy
from engine.experiment import victims
from engine.experiment.victims import VictimUnavailable


def images(count: int) -> np.ndarray:
    return datasets.read("digits", Path("nowhere"), train=False)[0][:count]


def test_a_run_keeps_all_its_victims(smoke: SimpleNamespace) -> None:
    assert smoke.run.victims() == [(arm, k) for k in range(2) for arm in ARMS]


def test_every_image_sees_noise_of_its_own() -> None:
    """Else the sampling errors of all images would come together, and a mean over them have no known error."""
    seen = []

    def classifier(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros(len(x), 10)

    given = images(3)
    victims.votes(classifier, given, sigma=0.25, n0=5, n=5, seed=0)
    first, second, third = (noisy - torch.tensor(image) for noisy, image in zip(seen[-3:], given, strict=True))
    for one, other in ((first, second), (first, third), (second, third)):
        assert abs(float((one * other).mean())) < 5 * 0.25**2 / (10 * 64) ** 0.5  # five standard errors


def test_votes_do_not_depend_on_what_else_is_asked(smoke: SimpleNamespace) -> None:
    given = images(20)
    model = victims.load(smoke.run, "clean", 0, shape=given.shape[1:])
    settings = dict(sigma=0.25, n0=10, n=60, seed=3)
    together, alone = (victims.votes(model, part, **settings) for part in (given, given[3:4]))
    assert torch.equal(together.estimation[3], alone.estimation[0])
    assert together.selection.sum(dim=1).tolist() == [10] * 20
    assert together.estimation.sum(dim=1).tolist() == [60] * 20
    other = victims.votes(model, given, **settings | dict(seed=4))
    assert not torch.equal(together.estimation, other.estimation)


def test_weights_of_a_copy_for_the_gallery_are_small_and_vote_alike(smoke: SimpleNamespace, tmp_path: Path) -> None:
    copy = small_copy(smoke.run, tmp_path, weights=True)
    assert copy.victims() == [("clean", 0), ("poisoned", 0)]
    given = images(20)
    for arm, k in copy.victims():
        ours, theirs = (victims.load(run, arm, k, shape=given.shape[1:]) for run in (copy, smoke.run))
        size = (copy.directory / "victims" / f"{arm}-{k}.safetensors").stat().st_size
        assert size < 0.55 * (smoke.run.directory / "victims" / f"{arm}-{k}.safetensors").stat().st_size
        with torch.no_grad():
            torch.testing.assert_close(*(m(torch.tensor(given)) for m in (ours, theirs)), atol=0.02, rtol=0.02)
    with pytest.raises(VictimUnavailable, match="victim 1 of arm clean"):
        victims.load(copy, "clean", 1, shape=given.shape[1:])
    (copy.directory / "report.json").unlink()  # as of a run that was stopped early
    copy.write_json("config.json", (copy.read_json("config.json") or {}) | {"dataset": "folder:own"})
    with pytest.raises(VictimUnavailable, match="no report yet, which says how many classes folder:own has"):
        victims.load(copy, "clean", 0, shape=given.shape[1:])
