"""Steps replayed on a GPU do what they do without, and what is computed there repeats; on a CPU nothing is replayed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.attacks.base import AttackProblem
from engine.attacks.levels import upper_loss
from engine.attacks.pacd import pacd
from engine.config import AttackConfig, ProcedureConfig, TrainingConfig
from engine.data import LabelledImages
from engine.experiment.pool import pool_of_threads
from engine.experiment.protocol import choose_device
from engine.hypergradient import cross_term, gradient, hessian
from engine.models import build, flat_weights, with_weights
from engine.replay import ORDINARY, Replayed, use_own_stream
from engine.streams import stream
from engine.training import PROCEDURES, make
from engine.training.base import State, fit
from engine.votes import count_votes

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = choose_device()
CALLS = 4 * ORDINARY


class Walk:
    """Moves a place by noise and by what it is given, as training moves weights."""

    def __init__(self, *, able: bool = True) -> None:
        draws = stream(0, "walk", device=DEVICE)
        self.place, self.scale, self.runs = torch.zeros(5, device=DEVICE), 1.0, 0

        def step(given: Tensor) -> Tensor:
            self.runs += 1
            self.place += self.scale * given + torch.randn(5, generator=draws, device=DEVICE)
            return self.place.norm()

        self.step = Replayed(step, generators=[draws], able=able)


def walked(walk: Walk, keys: list[float]) -> list[float]:
    found = []
    for call, walk.scale in enumerate(keys):
        found.append(float(walk.step(torch.full((5,), 0.1 * call, device=DEVICE), key=walk.scale)))
    return found


def on_a_stream(work: Callable[[], object]):
    with ThreadPoolExecutor(1, initializer=use_own_stream, initargs=(DEVICE,)) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize(
    "keys",
    [
        [1.0] * CALLS,
        pytest.param([1.0] * CALLS + [2.0] * CALLS + [1.0] * CALLS, marks=GPU),
        pytest.param([1.0, 2.0] * CALLS, marks=GPU),
    ],
)
def test_a_replayed_step_goes_where_the_step_goes(keys):
    found = on_a_stream(lambda: walked(Walk(), keys))
    assert found == on_a_stream(lambda: walked(Walk(able=False), keys))
    assert len(set(found)) == len(keys)


@GPU
def test_on_a_gpu_python_runs_a_step_a_few_times_and_not_at_all_on_the_default_stream():
    def runs() -> int:
        walk = Walk()
        walked(walk, [1.0] * CALLS)
        return walk.runs

    assert on_a_stream(runs) == ORDINARY + 1
    assert runs() == CALLS


def images(count: int = 60) -> LabelledImages:
    draws = stream(0, "images", device=DEVICE)
    labels = torch.arange(count, device=DEVICE) % 10
    pixels = 0.2 * torch.rand(count, 1, 28, 28, generator=draws, device=DEVICE)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 2 * label : 2 * label + 6] += 0.8
    return LabelledImages(pixels, labels, torch.arange(count, device=DEVICE))


def victim(
    procedure: str, optimiser: str = "adam", *, bfloat16: bool = False, state: State | None = None, keep: int = 0
) -> tuple[Tensor, State]:
    """Its weights; and all that the rest of its training depends on after this epoch."""
    kept: State = {}
    config = TrainingConfig(epochs=3, batch_size=10, learning_rate=0.01, schedule="linear", optimiser=optimiser)
    draws = stream(0, "victim", device=DEVICE)
    model = build("lenet-narrow", generator=draws)
    how = make(ProcedureConfig(name=procedure), sigma=0.25)
    for record in fit(
        model, images(), procedure=how, config=config, epochs=3, generator=draws, bfloat16=bfloat16, state=state
    ):
        if record.epoch == keep and record.state is not None:
            kept = {name: tensor.clone().cpu() for name, tensor in record.state().items()}
    return flat_weights(model).cpu(), kept


@GPU
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("procedure", sorted(PROCEDURES))
def test_a_victim_trained_by_replay_is_the_victim(procedure, optimiser, bfloat16, monkeypatch):
    replayed, _ = on_a_stream(lambda: victim(procedure, optimiser, bfloat16=bfloat16))
    assert torch.equal(replayed, on_a_stream(lambda: victim(procedure, optimiser, bfloat16=bfloat16))[0])
    monkeypatch.setattr("engine.replay.has_own_stream", lambda device: False)
    ordinary, _ = on_a_stream(lambda: victim(procedure, optimiser, bfloat16=bfloat16))
    assert torch.allclose(replayed, ordinary, rtol=1e-4, atol=1e-6)


@GPU
@pytest.mark.parametrize("procedure", ["smoothadv", "macer"])
def test_victims_trained_by_compiled_code_are_alike_and_close_to_the_victim(procedure, monkeypatch):
    narrow, _ = on_a_stream(lambda: victim(procedure, bfloat16=True))
    monkeypatch.setattr("engine.training.base.COMPILED", 0)
    with pool_of_threads(DEVICE, 4) as pool:
        found = list(pool.map(lambda _: victim(procedure, bfloat16=True)[0], range(4)))
    assert all(torch.equal(found[0], each) for each in found)
    wide, _ = on_a_stream(lambda: victim(procedure))
    assert (found[0] - wide).norm() < 2 * (narrow - wide).norm()


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_victim_goes_on_after_an_epoch_here_as_well(optimiser):
    whole, state = on_a_stream(lambda: victim("smoothadv", optimiser, keep=2))
    rest, _ = on_a_stream(lambda: victim("smoothadv", optimiser, state=state))
    assert torch.allclose(rest, whole, rtol=1e-4, atol=1e-6)
    assert DEVICE.type == "cuda" or torch.equal(rest, whole)  # a first step that is not replayed may round otherwise


def small_attack(procedure: str, solver: str, *, kept: list[State] | None = None, state: State | None = None):
    """Its poison after each step [S, P, C, H, W]; kept gets what the rest of it depends on after each."""
    data = images(200)
    problem = AttackProblem(
        data,
        data.of_class(8),
        (data.labels == 8).nonzero().squeeze(1),
        epsilon=0.1,
        target_class=8,
        num_classes=10,
        procedure=make(ProcedureConfig(name=procedure, draws=1), sigma=0.25),
        state=state,
    )
    config = AttackConfig(
        surrogate="lenet-narrow", upper_steps=20, restart_every=10, warmup_steps=20, lower_steps=2, linear_steps=2,
        linear_solver=solver, damping=1e-3, clean_batch=30, poison_batch=10, upper_batch=10, upper_noise=4,
        weights_learning_rate=2e-3, linear_learning_rate=1e-2, poison_learning_rate=0.02, inverse_temperature=1.0,
    )  # fmt: skip
    found = []
    for record in pacd(problem, config, 0):
        found.append(record.delta.cpu())
        if kept is not None and record.state is not None:
            kept.append({name: tensor.clone().cpu() for name, tensor in record.state().items()})
    return found


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[Tensor], list[State]]:
    """An attack's poison after each step, and what the rest of it depends on."""
    kept: list[State] = []
    return on_a_stream(partial(small_attack, "smoothadv", "adam", kept=kept)), kept


@pytest.mark.parametrize("step", [5, 10, 15])
def test_an_attack_goes_on_behind_a_step_here_as_well(step, uninterrupted):
    whole, kept = uninterrupted
    rest = on_a_stream(partial(small_attack, "smoothadv", "adam", state=kept[step - 1]))
    assert len(rest) == 20 - step
    assert torch.allclose(rest[2], whole[step + 2], atol=1e-3)
    assert DEVICE.type == "cuda" or all(map(torch.equal, rest, whole[step:]))


ATTACKED = pytest.mark.parametrize("procedure", ["gaussian", "macer-pacd", "smoothadv"])
SOLVED = pytest.mark.parametrize("solver", ["adam", "adam-shared", "one-step", "unrolled", "minres"])


@GPU
@ATTACKED
@SOLVED
def test_the_first_steps_of_an_attack_by_replay_are_those_of_the_attack(procedure, solver, monkeypatch):
    replayed = on_a_stream(partial(small_attack, procedure, solver))
    monkeypatch.setattr("engine.replay.has_own_stream", lambda device: False)
    ordinary = on_a_stream(partial(small_attack, procedure, solver))
    assert replayed[-1].abs().max() > 0.05
    assert torch.allclose(replayed[2], ordinary[2], atol=1e-3)


@GPU
@ATTACKED
@SOLVED
def test_an_attack_repeats_to_the_byte(procedure, solver):
    first, second = (on_a_stream(partial(small_attack, procedure, solver)) for _ in range(2))
    assert [torch.equal(*each) for each in zip(first, second, strict=True)] == [True] * len(first)


@GPU
@pytest.mark.parametrize("count", [40, 1000])
@pytest.mark.parametrize("architecture", ["lenet", "lenet-narrow"])
def test_derivatives_repeat_to_the_byte(architecture, count):
    data = images(count)
    model = build(architecture, generator=stream(0, "net", device=DEVICE))
    weights, draws = flat_weights(model), stream(0, "noise", device=DEVICE)
    noise = torch.randn(count, 1, *data.images.shape[1:], generator=draws, device=DEVICE)
    vector = torch.randn(len(weights), generator=draws, device=DEVICE)

    def lower(weights: Tensor, x: Tensor) -> Tensor:
        return cross_entropy(with_weights(model, weights)(x + noise[:, 0]), data.labels)

    def upper(weights: Tensor, x: Tensor) -> Tensor:
        answers = with_weights(model, weights)(x).argmax(dim=1)
        return upper_loss(with_weights(model, weights), x, answers, noise, sigma=0.5, inverse_temperature=1.0)

    for find in (
        lambda: gradient(lower, weights, data.images)[1],
        lambda: gradient(upper, weights, data.images)[1],
        lambda: hessian(lower, weights, data.images)(vector),
        lambda: cross_term(lower, weights, data.images, vector),
    ):
        assert all(torch.equal(find(), find()) for _ in range(5))
        assert find().norm() > 0


@GPU
def test_victims_trained_side_by_side_are_those_trained_alone():
    config = TrainingConfig(epochs=3, batch_size=10, learning_rate=0.01, schedule="linear")
    data = images()

    def victim(seed: int) -> Tensor:
        draws = stream(seed, "victim", device=DEVICE)
        model = build("lenet", generator=draws)
        how = make(ProcedureConfig(name="gaussian"), sigma=0.25)
        for _ in fit(model, data, procedure=how, config=config, epochs=3, generator=draws):
            pass
        return flat_weights(model).cpu()

    with pool_of_threads(DEVICE, 6) as pool:
        together = list(pool.map(victim, range(12)))
    alone = [on_a_stream(partial(victim, seed)) for seed in range(12)]
    assert all(torch.equal(*each) for each in zip(together, alone, strict=True))


@GPU
def test_screened_votes_on_a_gpu_are_those_of_float32():
    model = build("lenet", generator=stream(0, "net", device=DEVICE)).eval()
    some = images(10).images

    def votes(screened: bool) -> Tensor:
        *_, found = count_votes(
            model, some, sigma=0.5, n0=100, n=160_000, num_classes=10, block=10_000, screened=screened,
            groups=[(torch.arange(10, device=DEVICE), stream(0, "noise", device=DEVICE))],
        )  # fmt: skip
        return found.estimation.cpu()

    assert torch.equal(votes(True), votes(False))
