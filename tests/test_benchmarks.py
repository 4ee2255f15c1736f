"""Plain code does the engine's mathematics, the count of operations is right, and the command says what it measured."""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import __main__ as command
from benchmarks import (
    ceilings,
    earlier,
    gpu,
    measure,
    ours,
    parts,
    plain,
    published_recipe,
    stages,
    startup,
    vectorised,
)
from benchmarks.measure import Comparison, Side
from engine import records
from engine.attacks.levels import upper_loss
from engine.config import ConfigError
from engine.hypergradient import ApproxGrad
from engine.models import build, flat_weights, with_weights
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.smoothing import gaussian_noise
from engine.streams import stream
from engine.training import make
from engine.training.base import Batch
from tests.attacking import CONFIG, attacked, tiny_networks
from tests.commanding import main

__all__ = ["tiny_networks"]  # a fixture that works by being here

ENGINE = Side("engine", "startup.command", dict(arguments=["-c", "pass"]), "engine")
OTHER = Side("plain", "startup.command", dict(arguments=["-c", "import json"]))
PEER = Side("peer", "tasks.peer_training", {})


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build("lenet", generator=stream(0, "test"))


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 28, 28, generator=stream(1, "test"))


def test_the_plain_network_is_the_same_function(model):
    x = images(7)
    torch.testing.assert_close(ours.plainly(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("procedure", plain.LOSSES)
def test_plain_losses_and_their_gradients_are_the_engines_on_the_same_noise(model, procedure):
    x, y = images(6), torch.arange(6)
    how = make(ours.PROCEDURES[procedure], sigma=0.5)
    theirs, (loss, draws) = ours.plainly(model), plain.LOSSES[procedure]
    noise = gaussian_noise((6, draws, 1, 28, 28), sigma=0.5, generator=stream(2, "test"))
    y = model(x).argmax(dim=1) if procedure == "macer" else y  # so that its hinge counts
    found = loss(theirs, x, y, noise)
    batch = Batch(x, y, noise)
    own = how.loss(model, batch._replace(constants=how.prepare(model, batch, generator=stream(3, "test"))))
    assert found.item() == pytest.approx(own.item(), rel=1e-4)
    (bias,) = torch.autograd.grad(own, model.fc2.bias)
    torch.testing.assert_close(torch.autograd.grad(found, theirs[-1].bias)[0], bias, rtol=1e-3, atol=1e-5)


def test_plain_votes_are_the_engines_but_for_the_draws(model):
    """Two binomials of n = 2000: a difference beyond 4.5 of its standard deviations has probability 7e-6."""
    image, n = images(1), 2000
    torch.manual_seed(0)  # plain code knows no other
    theirs = plain.votes(ours.plainly(model), image[0], n=n, sigma=0.5)
    selected, _ = ours.certify(model, image, n=n, seed=0)[0]
    own = ours.votes(model, image, n=n, seed=0).estimation[0].numpy()
    assert theirs.argmax() == selected
    p = (theirs + own)[selected] / (2 * n)
    assert abs(theirs[selected] - own[selected]) < 4.5 * (2 * n * p * (1 - p)) ** 0.5 + 1


def test_plain_certificates_abstain_and_reach_the_cap():
    """With nothing but biases every vote is alike, and none with two classes drawn by a coin."""
    sure = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.nn.init.zeros_(sure[1].weight)
    found, radius = plain.certify(sure, images(1)[0], n0=10, n=100, sigma=0.5, alpha=0.001)
    assert found == sure[1].bias.argmax()
    assert radius == pytest.approx(0.5 * 1.5004750)
    torch.manual_seed(0)
    coin = lambda x: torch.stack([x.flatten(1)[:, 0], -x.flatten(1)[:, 0]], dim=1)  # noqa: E731
    assert plain.certify(coin, torch.zeros(1, 28, 28), n0=10, n=100, sigma=0.5, alpha=0.001) == (-1, 0.0)


def test_the_plain_upper_step_has_the_engines_hypergradient(model, monkeypatch):
    """Without noise both do the same, but for Adam's epsilon, which moves weights of tiny slopes a little."""
    monkeypatch.setattr(plain.torch, "randn_like", torch.zeros_like)
    theirs = ours.plainly(model)
    x, y = images(12), torch.arange(12) % 3
    clean, poison = (x[:5], y[:5]), (x[5:8], y[5:8])
    weights, zeros = flat_weights(theirs), torch.zeros(4, 2, 1, 28, 28)
    engine = ApproxGrad(
        weights, linear_solver="adam", linear_steps=3, damping=1e-3, weights_learning_rate=1e-3,
        linear_learning_rate=1e-2, generator=stream(0, "test"),
    )  # fmt: skip
    network = copy.deepcopy(theirs)

    def lower(weights, x_poison):
        images = torch.cat([clean[0], x_poison])
        return cross_entropy(with_weights(network, weights)(images), torch.cat([clean[1], poison[1]]))

    def upper(weights, _):
        return upper_loss(with_weights(network, weights), *held_out, zeros, sigma=0.5)

    engine.descend(lower, poison[0], steps=2)
    held_out = (
        x[8:],
        with_weights(network, engine.weights)(x[8:]).argmax(dim=1),
    )  # right ones, so that their radii count
    own = engine.hypergradient(lower, upper, poison[0]).gradient
    found = plain.upper_step(theirs, clean, poison, held_out, sigma=0.5, draws=2, lower_steps=2, linear_steps=3)
    assert torch.nn.functional.cosine_similarity(found.flatten(), own.flatten(), dim=0) > 0.999
    assert found.norm() == pytest.approx(own.norm().item(), rel=0.02)


@pytest.mark.parametrize("preset", ["quick", "paper-ga-mnist"])
def test_parts_of_an_upper_step_are_counted_as_the_engine_counts_products(preset):
    config = PRESETS[preset].config.attack
    steps = config.model_dump(include={"lower_steps", "linear_steps", "linear_solver"})
    records = attacked(CONFIG.model_copy(update=steps | dict(upper_steps=1)))
    assert [record.products for record in records] == [parts.counts(config)["product"]]


def test_a_lenet_takes_2_293_000_multiply_adds():
    assert ceilings.lenet_flops()["forward"] == 2 * 2_293_000


def test_ceilings_are_told_without_a_type_that_the_processor_does_not_multiply_in(monkeypatch):
    monkeypatch.setattr(ceilings, "has_bfloat16", lambda: False)
    monkeypatch.setattr(ceilings, "children", lambda sides: nullcontext([SimpleNamespace(seconds=lambda: 1.0)]))
    found = ceilings.rates(*ceilings.KINDS)
    assert "bfloat16" not in " ".join(found)
    assert "| GEMM float32 |" in ceilings.measured(found).markdown()
    assert "bfloat16" not in ceilings.measured(found).markdown()
    (forward,) = (row for row in ceilings.counted(found).rows if row[0] == "forward")
    assert forward[-1] == "–"


def test_rounds_alternate_and_a_ratio_is_of_one_round():
    found = measure.compare(Comparison("start", ENGINE, (OTHER,), counted=False), rounds=2)
    own, other = (side["seconds"] for side in found["sides"])
    assert len(own) == len(other) == 2
    row = measure.ratios("Start", found, {}).rows[1]
    each = sorted(b / a for a, b in zip(own, other, strict=True))
    assert row[3] == f"**{sum(each) / 2:.2f} ({each[0]:.2f}–{each[1]:.2f})**"


def test_a_peer_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr(measure, "PEER", ("no_such_module",))
    found = measure.compare(Comparison("start", ENGINE, (PEER,), counted=False), rounds=1)
    assert found["sides"][1]["seconds"] is None
    assert measure.INSTALL in measure.ratios("Start", found, {}).rows[1][2]


def test_the_environment_of_a_side_is_its_own(monkeypatch):
    code = "import os; assert os.environ.get('OMP_NUM_THREADS') == {}; assert os.environ['MALLOC_TOP_PAD_']"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for environment, threads in (("engine", "'1'"), ("malloc", None)):
        side = Side("a", "startup.command", dict(arguments=["-c", code.format(threads)]), environment)
        with measure.children([side]):
            pass


def test_a_child_that_fails_is_named():
    side = Side("a task", "startup.command", dict(arguments=["-c", "raise SystemExit(3)"]))
    with pytest.raises(RuntimeError, match="a task"), measure.children([side]):
        pass


@pytest.mark.parametrize("arguments", startup.COMMANDS.values(), ids=startup.COMMANDS)
def test_every_start_that_is_timed_succeeds(arguments, capsys):
    """Here, where all is imported already."""
    kind, what, *rest = arguments
    if kind == "-c":
        exec(what)
    elif "--help" not in rest:
        assert (what, main(capsys, *rest)[0]) == ("engine", 0)


def test_the_command_prints_tables_and_writes_json(tmp_path, capsys, monkeypatch):
    output = tmp_path / "b.json"
    quick = {what: startup.COMMANDS[what] for what in ("Python alone", "the command line: --help")}
    monkeypatch.setattr(startup, "COMMANDS", quick)
    command.main(["startup", "--rounds", "1", "--output", str(output)])
    assert "| Python alone |" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["rounds"] == 1
    assert written["device_name"]
    assert all(row["seconds"][0] > 0 for row in written["tables"]["Start"])


@pytest.mark.parametrize("main", [command.main, gpu.main])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["nothing"], "a group is one of"), (["--rounds", "0"], "--rounds must be at least 1, got 0")],
)
def test_bad_input_is_refused_before_anything_is_measured(main, arguments, told, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    output, error = capsys.readouterr()
    assert told in error
    assert output == ""


def test_victims_as_one_program_are_those_trained_and_asked_one_by_one():
    x, y = images(20), torch.arange(20) % 10
    how = dict(epochs=3, batch_size=20, sigma=0.0)  # whole batches without noise: nothing is left to chance
    torch.manual_seed(0)  # plain code knows no other generator
    apart = [plain.lenet() for _ in range(2)]
    torch.manual_seed(0)
    together = vectorised.train(2, x, y, **how)
    for each in apart:
        plain.train(each, x, y, procedure="gaussian", **how)
    for k, each in enumerate(apart):
        for name, weights in each.state_dict().items():
            torch.testing.assert_close(together[name][k], weights, rtol=1e-3, atol=1e-4)  # of three steps of 1e-3
    found = vectorised.votes(together, x[:4], n=7, sigma=0.0)
    assert torch.equal(found.argmax(dim=2), torch.stack([each(x[:4]).argmax(dim=1) for each in apart]))
    assert (found.sum(dim=2) == 7).all()


@pytest.mark.parametrize("name", PRESETS)
def test_an_earlier_commits_settings_are_those_of_its_preset(name):
    """Where that commit is this one: what is left out or spelt otherwise would be the default of another preset."""
    config = PRESETS[name].config
    asked = [f"{field}={json.dumps(value)}" for field, value in earlier.leaves(config.model_dump(mode="json"))]
    kept = [item for item in asked if not item.startswith("protocol_version")]
    assert with_overrides(PRESETS["smoke"].config, kept) == config


def test_a_commit_that_git_does_not_know_is_one_line(capsys):
    with pytest.raises(SystemExit) as said:
        earlier.main(["nothing-of-this-name"])
    assert "nothing-of-this-name" in str(said.value)
    assert "\n" not in str(said.value)


def test_two_commits_are_laid_side_by_side():
    report = {
        "arms": {"clean": {"average_certified_radius": {"target": {"mean": 0.75}}}},
        "relative_drop": {"poisoned": {"mean": 0.4}},
    }
    table = earlier.compared({"abc": [(10.0, report), (12.0, report)], "here": [(5.0, report), (6.0, report)]}, "quick")
    assert table.rows[1] == ("here", "5.50 (5.00–6.00)", "0.50", "0.750", "40%")


def test_stages_are_counted_for_the_runs_that_the_docs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.tasks, "plain_upper_step", lambda **_: None)
    monkeypatch.setattr(stages, "flops", lambda _: 1.0)
    root = records.default_root()
    for run, attack, training in (
        ("c581e", "attack: 2695 upper steps", "training: 15 victims"),
        ("73b3", "attack: 120 upper steps", "training: 12 victims"),
    ):
        names = [row[0] for row in stages.stages(records.find(root, run), {}).rows]
        assert names[:2] == [attack, training]
    with pytest.raises(ConfigError, match="stages are counted for the attack"):
        stages.stages(records.find(root, "d3df"), {})


def test_a_victim_of_plain_code_answers_the_same_in_the_engines_layout():
    images, model = torch.rand(20, 1, 28, 28), plain.lenet()
    with torch.no_grad():
        torch.testing.assert_close(published_recipe.as_ours(model)(images), model(images))


def test_plain_code_learns_by_the_published_recipe():
    """Each class is a block of white of its own: chance is a tenth."""
    labels = torch.arange(1000) % 10
    images = torch.zeros(1000, 1, 28, 28)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label : 2 * label + 8, 2 * label : 2 * label + 8] = 1
    model = plain.lenet()
    published_recipe.train(model, images, labels, sigma=0.25, epochs=20)
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    radii = published_recipe.correct_radii(model, images[labels == 8][:5], sigma=0.25, n=1000, seed=0)
    assert (radii > 0).all()
    assert (published_recipe.correct_radii(model, images[labels == 3][:5], sigma=0.25, n=1000, seed=0) == 0).all()
