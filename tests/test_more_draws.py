"""Certifying a finished run's victims again: the same answers as CERTIFY's, with fewer draws where that is enough."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import __main__, follow
from engine.certification import ABSTAIN, certified_radius, radius_cap
from engine.experiment import more_draws
from engine.experiment.more_draws import certify_again
from engine.experiment.victims import VictimUnavailable
from engine.records import Run

SIGMA, ALPHA = 0.25, 0.001


def again(run: Run, **changed: Any) -> Any:
    import pandas as pd

    settings = dict(data_root=Path("nowhere"), n0=20, n=600, alpha=ALPHA)
    return pd.concat(certify_again(run, "clean", 0, **settings | changed), ignore_index=True)


@pytest.fixture(scope="module")
def whole(smoke: SimpleNamespace) -> Any:
    """The table of all draws."""
    return again(smoke.run)


def test_all_draws_are_certify_and_fewer_end_near_it(smoke: SimpleNamespace, whole: Any) -> None:
    nearly = again(smoke.run, precision=0.2)
    assert (whole["draws"] == 600).all()
    assert whole["radius"].max() <= radius_cap(n=600, sigma=SIGMA, alpha=ALPHA)
    assert nearly["draws"].mean() < 600
    assert whole["image"].tolist() == nearly["image"].tolist()
    assert whole["image"].is_unique
    both = (whole["prediction"] != ABSTAIN) & (nearly["prediction"] != ABSTAIN)
    assert (whole["prediction"] == nearly["prediction"])[both].all()
    assert both.mean() > 0.7


def test_a_question_of_one_radius_is_answered_with_few_draws(smoke: SimpleNamespace, whole: Any) -> None:
    asked = again(smoke.run, radius=0.1)
    agree = (whole["radius"] >= 0.1) == (asked["radius"] >= 0.1)
    assert agree.mean() >= 0.85  # of 20; they differ where the truth is near the radius
    assert asked["draws"].mean() < 450


def test_an_image_gets_the_same_radius_alone_as_among_others(smoke: SimpleNamespace, whole: Any) -> None:
    radii = whole.set_index("image")["radius"]
    for image in radii.index[::4]:
        (alone,) = again(smoke.run, images=[image]).itertuples()
        assert alone.radius == radii[image]


def test_of_all_classes_the_command_prints_the_average_that_the_report_has(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The certified images of other classes are few, and stand for many."""
    typed = ["certify", smoke.run.id, "--runs-root", str(smoke.root), "--n", "100", "--all-classes"]
    assert __main__.main([*typed, "--arm", "clean"]) == 0
    printed = float(capsys.readouterr().err.partition("ACR ")[2].split()[0])
    table = again(smoke.run, n=100, n0=100, all_classes=True)
    right = table["prediction"] == table["label"]
    assert printed == pytest.approx(np.average(table["radius"] * right, weights=table["weight"]), abs=6e-4)
    assert printed != pytest.approx((table["radius"] * right).mean(), abs=6e-4)


def test_one_image_alone_is_asked_and_one_that_the_run_has_not_is_named(smoke: SimpleNamespace, whole: Any) -> None:
    first, second = whole["image"][:2]
    assert again(smoke.run, images=[second])["image"].tolist() == [second]
    with pytest.raises(ValueError, match=f"{smoke.run.id} certified no test image 123456"):
        again(smoke.run, images=[first, 123456])


def test_what_is_done_grows_to_all_of_it_and_is_told(
    smoke: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(more_draws, "workers_for", lambda device: 1)
    again(smoke.run, precision=0.2, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] == pytest.approx(1)
    monkeypatch.setattr(follow, "PROGRESS_EVERY", 0)
    typed = ["certify", smoke.run.id, "--runs-root", str(smoke.root), "--n", "100"]
    assert __main__.main(typed) == 0
    assert "100% certified, about 0 s left\n" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_and_another_another(smoke: SimpleNamespace, whole: Any) -> None:
    assert again(smoke.run).equals(whole)
    assert not np.array_equal(again(smoke.run, seed=1)["radius"], whole["radius"])


def test_the_recorded_radii_are_those_of_the_same_victim(smoke: SimpleNamespace) -> None:
    """At n as recorded, under other noise: means differ by sampling only."""
    table = smoke.run.certificates()
    recorded = table[(table["arm"] == "clean") & (table["victim"] == 0)].set_index("image")["radius"]
    found = again(smoke.run, n=100, all_classes=True).set_index("image")["radius"]
    assert set(found.index) == set(recorded.index)
    assert abs((found - recorded.loc[found.index]).mean()) < 0.05


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(n=5), "n must be at least 10"),
        (dict(n=10**12), "n must be at most 1000000"),
        (dict(n0=10**12), "n0 must be at most 1000000"),
        (dict(n0=0), "n0 must be at least 1"),
        (dict(alpha=0.7), "alpha must be in"),
        (dict(precision=1.0), "precision must be in"),
        (dict(radius=0.0), "at most the cap"),
        (dict(radius=9.0), "at most the cap of 600 draws"),
        (dict(radius=0.1, precision=0.1), "not both"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(
    smoke: SimpleNamespace, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        again(smoke.run, **changed)


def test_a_victim_that_is_not_kept_is_named(smoke: SimpleNamespace) -> None:
    with pytest.raises(VictimUnavailable, match="victim 7 of arm poisoned"):
        certify_again(smoke.run, "poisoned", 7, data_root=Path("nowhere"))


def test_the_command_prints_a_row_for_each_image(smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["certify", smoke.run.id, "--runs-root", str(smoke.root), "--n", "400", "--precision", "0.3"]
    assert __main__.main(typed) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert len(rows) == 20
    assert {"label", "weight", "selected_class", "n_top", "draws", "prediction", "radius"} < rows[0].keys()
    settings = {"run": smoke.run.id, "arm": "poisoned", "victim": "0", "sigma": "0.25", "n0": "100", "n": "400"}
    assert all(row.items() >= (settings | {"alpha": "0.001", "precision": "0.3", "seed": "0"}).items() for row in rows)
    assert "20 images, poisoned victim 0: ACR" in printed.err
    assert __main__.main([*typed, "--radius", "0.1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_fewer_draws_the_counts_printed_give_every_radius_again(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["certify", smoke.run.id, "--runs-root", str(smoke.root), "--n", "400"]) == 0
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        n_top, n, sigma, alpha = int(row["n_top"]), int(row["n"]), float(row["sigma"]), float(row["alpha"])
        assert certified_radius(n_top, n=n, sigma=sigma, alpha=alpha) == pytest.approx(float(row["radius"]), rel=1e-12)


def test_whoever_asks_for_one_radius_is_told_of_no_other(
    smoke: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few draws that settle a no would pass for an abstention, and those of a yes for a small radius."""
    typed = ["certify", smoke.run.id, "--runs-root", str(smoke.root), "--n", "400", "--radius", "0.1"]
    assert __main__.main(typed) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert {"prediction", "radius"}.isdisjoint(rows[0])
    assert {row["certified_at"] for row in rows} == {"0.1"}
    right = [row["certified"] == "True" and row["selected_class"] == row["label"] for row in rows]
    assert f"{sum(right) / len(rows):.1%} correct and certified at 0.1" in printed.err
    assert 0 < sum(right) < len(rows)
