"""The protocol as a whole, seen from its run directory: numbers, determinism, controls, reuse, partial results."""

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from engine import costs, hypergradient, jobs, votes, worker
from engine.choices import ARMS
from engine.config import Config
from engine.experiment import checkpoint, poisoning, pool, protocol
from engine.experiment.recorder import Recorder
from engine.records import Run
from engine.report.numbers import build_report

Tiny = Callable[..., Config]
WorkHere = Callable[[Config, Path], Run]
CIRCUMSTANCES = ("seconds", "reused")


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


def content(run: Run) -> dict[str, Any]:
    """All that a run found, without its circumstances."""
    certificates, report = run.need_certificates(), run.need_report()
    return {
        "certificates": certificates.to_json(double_precision=15),
        "poison": (run.directory / "poison.safetensors").read_bytes(),
        "victims": {path.name: path.read_bytes() for path in (run.directory / "victims").iterdir()},
        "report": {key: value for key, value in report.items() if key not in CIRCUMSTANCES},
    }


@pytest.mark.usefixtures("busy")
def test_the_same_configuration_gives_the_same_bytes_again_even_beside_other_work(
    baseline: Run, work_here: WorkHere, runs_root: Path
) -> None:
    assert content(work_here(baseline.config, runs_root)) == content(baseline)


@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_bytes_do_not_depend_on_how_many_workers_share_the_attack_and_the_victims(
    count: int, forked: bool, baseline: Run, work_here: WorkHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker never has time to help the attack or a victim that votes, of four some always have."""
    seen, numbers = tmp_path / "seen", dict[votes.Answers, int]()  # which also keeps them, so that none is another
    seen.mkdir()

    def note(what: str) -> None:
        (seen / f"{what}, process {os.getpid()}, thread {threading.get_ident()}").touch()
        time.sleep(0.002)  # lest a helper be done before there is another

    def grad(*arguments: Any, **named: Any) -> Any:
        note("attack")
        return torch.autograd.grad(*arguments, **named)

    def answer(self: votes.Answers, *given: Any) -> Any:
        note(f"answers {numbers.setdefault(self, len(numbers))}")
        return one_images_answers(self, *given)

    def threads(of: str) -> dict[str, int]:
        """How many computed each, in whichever process."""
        return Counter(path.name.partition(", thread")[0] for path in seen.glob(f"{of}*"))

    one_images_answers = votes.Answers._answer
    monkeypatch.setattr(hypergradient, "grad", grad)
    monkeypatch.setattr(votes.Answers, "_answer", answer)
    monkeypatch.setattr(pool, "workers_for", lambda device: count)
    monkeypatch.setattr(pool, "can_fork", lambda device: forked)
    assert content(work_here(baseline.config, tmp_path / "runs")) == content(baseline)
    assert [many > 1 for many in threads("attack").values()] == [count > 1]
    assert any(many > 1 for many in threads("answers").values()) == (count > 1)
    assert any(f"process {os.getpid()}," in path.name for path in seen.iterdir()) != forked


def test_a_run_whose_worker_is_killed_says_so_and_goes_on_when_it_is_asked_for_again(
    tiny: Tiny, work_here: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pool.can_fork(torch.device("cpu")):
        pytest.skip("workers are threads here")

    def die(teller: pool.Teller, kind: str, **values: Any) -> None:
        teller.__getattr__("add_metrics")(kind, **values)
        if values.get("step") == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    config = tiny("attack.upper_steps=6", "attack.restart_every=6", "victim_seeds=2")
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "EVERY", 0.0)
        patched.setattr(checkpoint, "SHARE", float("inf"))
        patched.setattr(pool.Teller, "add_metrics", die, raising=False)
        run = work_here(config, runs_root)
    assert run.status().state == "failed"
    assert "ended from outside" in str(run.status().error)
    assert [record["step"] for record in run.metrics("attack")] == [1, 2, 3, 4]
    assert not multiprocessing.active_children()
    assert work_here(config, runs_root).status().state == "done"
    assert "poison until step 3" in run.need_report()["reused"]


@pytest.mark.parametrize("forked", [True, False])
def test_a_worker_that_cannot_start_leaves_no_other_behind(
    forked: bool, tiny: Tiny, work_here: WorkHere, runs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = multiprocessing.get_context("fork").Process if forked else threading.Thread
    start, before, calls = started.start, threading.active_count(), Counter[str]()

    def second_fails(worker: Any) -> None:
        if getattr(worker, "_target", None).__class__.__name__ == "method":
            calls["start"] += 1
            if calls["start"] == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
        start(worker)

    monkeypatch.setattr(pool, "workers_for", lambda device: 2)
    monkeypatch.setattr(pool, "can_fork", lambda device: forked)
    monkeypatch.setattr(started, "start", second_fails)
    run = work_here(tiny(), runs_root)
    assert run.status().state == "failed"
    assert "temporarily unavailable" in str(run.status().error)
    assert not multiprocessing.active_children()
    assert threading.active_count() <= before


def test_what_workers_said_last_is_recorded_too() -> None:
    """As they stop, when nobody asks any more what they have finished."""
    recorder = SimpleNamespace(said=[])
    recorder.add_event = recorder.said.append
    workers = pool.Pool(torch.device("cpu"))

    def speak(number: int) -> None:
        workers.recorder.add_event(number)

    with workers.at_work({"speak": speak}, cast(Recorder, recorder)):
        for number in range(20):
            workers.start("speak", number)
        while len(workers.unfinished) > 10:
            list(workers.finished(cast(Recorder, recorder), timeout=0.1))
    heard = len(recorder.said)
    assert heard == 20 - len(workers.unfinished) >= 10


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
