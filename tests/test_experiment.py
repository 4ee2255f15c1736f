"""The protocol as a whole, seen from its run directory: numbers, determinism, controls, reuse, partial results."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from engine import costs, jobs, worker
from engine.choices import ARMS
from engine.config import Config
from engine.experiment import poisoning, protocol
from engine.experiment.recorder import Recorder
from engine.records import Run
from engine.report.numbers import build_report
from tests.running import content

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]


def radius(n_top: int, *, n: int, sigma: float, alpha: float) -> float:
    """The certified radius by another road than the engine's: scipy's exact binomial interval."""
    p_lower = binomtest(n_top, n).proportion_ci(1 - 2 * alpha, method="exact").low
    return sigma * float(norm.ppf(p_lower)) if p_lower > 0.5 else 0.0


def test_every_number_of_the_report_follows_from_the_recorded_votes(smoke: SimpleNamespace) -> None:
    """Rows, radii, averages and drops are recomputed here from the bare vote counts, without the engine."""
    config, report, table = smoke.run.config, smoke.report, smoke.run.certificates()
    settings, target = config.certification, config.threat.target_class
    assert len(table) == len(ARMS) * config.victim_seeds * (settings.target_images + 9 * settings.other_images)
    found: dict[tuple[str, str, str], list[float]] = {}
    for arm in ARMS:
        for victim in range(config.victim_seeds):
            rows = table[(table["arm"] == arm) & (table["victim"] == victim)]
            radii, correct, abstained = [], [], []
            for row in rows.itertuples():
                selected = int(np.argmax(row.selection_votes))
                assert sum(row.selection_votes) == settings.n0
                assert sum(row.estimation_votes) == settings.n
                expected = radius(
                    int(row.estimation_votes[selected]), n=settings.n, sigma=config.sigma, alpha=settings.alpha
                )
                assert row.radius == pytest.approx(expected, abs=1e-9)
                right = expected > 0 and selected == row.label
                radii.append(expected if right else 0.0)
                correct.append(float(right))
                abstained.append(float(expected == 0))
            weight = rows["weight"].to_numpy()
            assert weight.sum() == pytest.approx(1)
            of_target = (rows["label"] == target).to_numpy()
            for scope, w in (("target", weight * of_target), ("all", weight)):
                for name, values in (
                    ("average_certified_radius", radii),
                    ("accuracy", correct),
                    ("abstention_rate", abstained),
                ):
                    found.setdefault((arm, name, scope), []).append(float(np.array(values) @ w / w.sum()))
    for (arm, name, scope), values in found.items():
        assert_summary(report["arms"][arm][name][scope], values)
    clean = found["clean", "average_certified_radius", "target"]
    for arm in ARMS[1:]:
        other = found[arm, "average_certified_radius", "target"]
        assert_summary(report["relative_drop"][arm], [1 - b / a for a, b in zip(clean, other, strict=True)])
    assert report["complete"] is True
    assert report["radius_cap"] == pytest.approx(
        radius(settings.n, n=settings.n, sigma=config.sigma, alpha=settings.alpha)
    )


def assert_summary(summary: dict[str, Any], values: list[float]) -> None:
    assert summary["seeds"] == pytest.approx(values)
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["sd"] == pytest.approx(np.std(values, ddof=1))


def test_the_poison_and_its_perturbation_are_what_the_report_says(smoke: SimpleNamespace) -> None:
    from engine import datasets

    poison, config = smoke.run.tensors("poison"), smoke.run.config
    delta, found = poison["delta"].astype(np.float64), smoke.report["perturbation"]
    images, labels = datasets.read(config.dataset, Path("unused"), train=True)
    assert (labels[poison["indices"]] == config.threat.target_class).all()
    poisoned = images[poison["indices"]] + poison["delta"]
    assert -1e-6 <= poisoned.min() <= poisoned.max() <= 1 + 1e-6
    assert 0 < np.abs(delta).max() <= config.threat.epsilon + 1e-6
    flat = delta.reshape(len(delta), -1)
    assert found["linf_max"] == pytest.approx(np.abs(flat).max())
    assert found["l2_mean"] == pytest.approx(np.linalg.norm(flat, axis=1).mean(), rel=1e-5)
    assert found["psnr_mean"] == pytest.approx((-10 * np.log10((flat**2).mean(axis=1))).mean(), rel=1e-5)
    assert found["changed_share"] == pytest.approx((flat != 0).mean())
    assert 0 < found["ssim_mean"] < 1


def test_live_charts_find_every_step_and_epoch(smoke: SimpleNamespace) -> None:
    config = smoke.run.config
    steps = [record["step"] for record in smoke.run.metrics("attack")]
    assert steps == list(range(1, config.attack.upper_steps + 1))
    products = [record["products"] for record in smoke.run.metrics("attack")]
    assert smoke.report["products"] == sum(products) > 0
    epochs = {(record["victim"], record["epoch"]) for record in smoke.run.metrics("training")}
    assert len(epochs) == len(ARMS) * config.victim_seeds * config.training.epochs
    evolution, poison = smoke.run.tensors("evolution"), smoke.run.tensors("poison")
    shown = evolution["delta"].shape[1]
    np.testing.assert_array_equal(evolution["delta"][-1], poison["delta"][:shown])
    np.testing.assert_array_equal(evolution["indices"], poison["indices"][:shown])


def test_all_victims_of_one_seed_meet_the_same_images(smoke: SimpleNamespace) -> None:
    table = smoke.run.certificates()
    images = {tuple(rows["image"]) for _, rows in table.groupby(["arm", "victim"])}
    assert len(images) == 1


@pytest.mark.usefixtures("busy")
def test_the_same_configuration_gives_the_same_bytes_again_even_beside_other_work(
    baseline: Run, work_here: WorkHere, runs_root: Path
) -> None:
    assert content(work_here(baseline.config, runs_root)) == content(baseline)


def test_the_command_line_gives_the_same_bytes_in_another_process(
    baseline: Run, runs_root: Path, command_line: Callable[..., Any], tiny_arguments: list[str]
) -> None:
    done = command_line("run", *tiny_arguments, "--set", "victim_seeds=2", "--json", "--runs-root", runs_root)
    assert done.returncode == 0, done.stderr
    assert content(Run(runs_root / json.loads(done.stdout)["run_id"])) == content(baseline)


def test_another_seed_gives_other_results(baseline: Run, tiny: Tiny, work_here: WorkHere, runs_root: Path) -> None:
    other = content(work_here(tiny("victim_seeds=2", "seed=1"), runs_root))
    for name, value in content(baseline).items():
        assert other[name] != value


@pytest.mark.parametrize("nothing", ["threat.epsilon=0", "threat.poison_fraction=0"])
def test_an_attack_that_may_change_nothing_gives_the_clean_arm_bit_for_bit(
    nothing: str, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny(nothing), runs_root)
    assert run.status().state == "done", run.status().error
    for arm in ARMS[1:]:
        for kind in ("victims", "votes"):
            mine, clean = (run.directory / kind / f"{name}-0.safetensors" for name in (arm, "clean"))
            assert mine.read_bytes() == clean.read_bytes()
    report, poison = run.report, run.tensors("poison")
    assert report is not None
    assert poison is not None
    assert not poison["delta"].any()
    assert report["perturbation"]["linf_max"] == 0
    assert all(drop["mean"] in (0.0, None) for drop in report["relative_drop"].values())


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        (
            "threat.epsilon=0.05",
            {"victim clean-0", "victim clean-1", "votes clean-0", "votes clean-1"},
        ),
        ("certification.n=30", {"poison", *(f"victim {arm}-{k}" for arm in ARMS for k in range(2))}),
        (
            "certification.alpha=0.01",
            {"poison", *(f"{kind} {arm}-{k}" for kind in ("victim", "votes") for arm in ARMS for k in range(2))},
        ),
        (
            "victim_seeds=1",
            {"poison", *(f"{kind} {arm}-0" for kind in ("victim", "votes") for arm in ARMS)},
        ),
    ],
)
def test_a_what_if_computes_only_what_it_changes(
    change: str, reused: set[str], baseline: Run, tiny: Tiny, work_here: WorkHere
) -> None:
    run = work_here(tiny("victim_seeds=2", change), baseline.directory.parent)
    try:
        assert run.status().state == "done", run.status().error
        assert run.report is not None
        assert set(run.report["reused"]) == reused
    finally:
        jobs.delete(run)


def test_what_is_reused_counts_as_done_and_not_for_the_pace(baseline: Run) -> None:
    recorder, whole = Recorder(baseline), costs.work_of(baseline.config).total
    recorder.add_reused("poison", 0.6 * whole)
    assert (recorder.fraction, recorder.fraction_of_rest) == (pytest.approx(0.6), 0.0)
    recorder.add_work(0.1 * whole)
    assert (recorder.fraction, recorder.fraction_of_rest) == (pytest.approx(0.7), pytest.approx(0.25))


@pytest.mark.parametrize("what", ["code", "device_name"])
def test_nothing_is_reused_of_other_code_or_another_processor(
    what: str, baseline: Run, tiny: Tiny, work_here: WorkHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last bits may differ, and the run's env.json would name what did not compute them."""
    monkeypatch.setattr(protocol, what, lambda *_: "another")
    run = work_here(tiny("victim_seeds=1"), baseline.directory.parent)
    try:
        assert run.need_report()["reused"] == []
    finally:
        jobs.delete(run)


def test_what_is_reused_is_what_would_have_been_computed(
    baseline: Run, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    config = tiny("victim_seeds=2", "certification.alpha=0.01")
    shared = work_here(config, baseline.directory.parent)
    try:
        assert content(shared) == content(work_here(config, runs_root))
    finally:
        jobs.delete(shared)


def test_deleting_a_run_keeps_what_others_share_and_removes_the_rest(
    tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    first, second = work_here(tiny(), runs_root), work_here(tiny("threat.epsilon=0.05"), runs_root)
    before = content(second)
    stages = len(list((runs_root / "stages").iterdir()))
    assert (
        stages == 2 * 10 - 2
    )  # a poison, its evolution, four victims and their votes each, of which the clean arm is shared
    jobs.delete(first)
    assert not first.directory.exists()
    assert content(second) == before
    assert len(list((runs_root / "stages").iterdir())) == 10
    jobs.delete(second)
    jobs.delete(second)
    assert list((runs_root / "stages").iterdir()) == []


def test_a_report_calls_classes_by_name(baseline: Run) -> None:
    assert baseline.report is not None
    assert baseline.report["target_name"] == "digit 8"
    assert baseline.report["class_names"] == [str(k) for k in range(10)]


def test_an_attack_whose_surrogates_all_diverge_fails_with_a_plain_reason_and_its_events(
    tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny("attack.upper_steps=100", "attack.weights_learning_rate=1e30"), runs_root)
    status = run.status()
    assert status.state == "failed"
    assert "4 surrogates in a row diverged" in str(status.error)
    assert len(status.events) == 3
    assert all("it starts again" in event for event in status.events)


def test_an_attack_that_fails_in_its_first_step_leaves_no_poison(
    tiny: Tiny, work_here: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Iterator[Any]:
        raise FloatingPointError("nothing was made")
        yield

    monkeypatch.setitem(poisoning.ATTACKS, "pacd", failing)
    run = work_here(tiny(), runs_root)
    assert "nothing was made" in str(run.status().error)
    assert run.tensors("poison") is run.tensors("evolution") is None


@pytest.mark.parametrize(
    ("batch_size", "reason"),
    [
        (40, "training loss became nan in epoch 1 of 1"),
        pytest.param(200, "are not finite after its training", id="one step, before which the loss is still fine"),
    ],
)
def test_a_training_that_diverges_fails_with_a_plain_reason(
    batch_size: int, reason: str, tiny: Tiny, work_here: WorkHere, runs_root: Path
) -> None:
    run = work_here(tiny("training.learning_rate=1e30", f"training.batch_size={batch_size}"), runs_root)
    assert run.status().state == "failed"
    assert reason in str(run.status().error)
    assert run.report is None


@settings(max_examples=25)
@given(present=st.sets(st.tuples(st.sampled_from(ARMS), st.integers(0, 1)), min_size=1))
def test_a_report_of_some_arms_only_is_built_without_error(
    present: set[tuple[str, int]], smoke: SimpleNamespace
) -> None:
    table = smoke.run.certificates()
    part = table[[key in present for key in zip(table["arm"], table["victim"], strict=True)]]
    report = build_report(part, smoke.run.config, complete=False)
    json.dumps(report, allow_nan=False)
    assert report["complete"] is False
    assert list(report["arms"]) == [arm for arm in ARMS if any(arm == a for a, _ in present)]
    for arm, values in report["arms"].items():
        acr = values["average_certified_radius"]["target"]
        assert len(acr["seeds"]) == sum(arm == a for a, _ in present)
        assert math.isfinite(acr["mean"])
    for arm, drop in report["relative_drop"].items():
        pairs = [k for k in range(2) if {("clean", k), (arm, k)} <= present]
        assert len(drop["seeds"]) == len(pairs)


def test_a_cancelled_run_keeps_its_partial_poison_and_certificates(
    tiny: Tiny, prepare: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled as soon as the first victim is certified, long before the attack ends."""
    run = prepare(tiny("attack.upper_steps=5000", "attack.restart_every=5000", "victim_seeds=2"), runs_root)
    exists = Path.exists

    def asked(path: Path) -> bool:
        if path.name == "cancel":
            return (run.directory / "certificates.parquet").exists()
        return exists(path)

    monkeypatch.setattr(Path, "exists", asked)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert worker.work(run.directory) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.status().state == "cancelled"
    report, poison, certificates = run.need_report(), run.tensors("poison"), run.need_certificates()
    assert poison is not None
    assert report["complete"] is False
    assert set(certificates["arm"]) <= {"clean", "random_noise"}
    assert np.abs(poison["delta"]).max() <= 0.1 + 1e-6
    assert len(list((runs_root / "stages").iterdir())) >= 2  # the finished victim and its votes, for whoever asks next
