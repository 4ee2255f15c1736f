"""Figures say what the tables say."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from engine import metrics
from engine.certification import ABSTAIN, radius_cap
from engine.choices import ARMS
from engine.figures import attack, images, radii, training
from engine.figures.comparison import several_runs
from engine.figures.style import ARM_STYLE, alt, finish
from engine.records import GALLERY, Run
from engine.report import numbers
from tests.app import EXAMPLE

RUN = Run(GALLERY / EXAMPLE)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return RUN.need_certificates()


def curve(figure: go.Figure, name: str) -> go.Scatter:
    (trace,) = (trace for trace in figure.data if trace.name == name)
    return trace


def all_figures(table: pd.DataFrame) -> list[go.Figure]:
    config, facts = RUN.config, RUN.report
    assert facts is not None
    one = table[(table["image"] == table["image"].iloc[0]) & (table["victim"] == 0)]
    square = np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 28, 28)
    coloured = np.linspace(0, 1, 3 * 9 * 12, dtype=np.float32).reshape(3, 9, 12)
    return [
        radii.acr_by_arm(facts),
        radii.certified_accuracy(table, config),
        radii.radius_histogram(table, config, "all"),
        radii.radius_before_after(table, config),
        images.vote_histogram(one),
        images.vote_histogram(one, [f"name {k}" for k in range(10)]),
        attack.attack_losses(RUN.metrics("attack"), 6),
        attack.attack_losses([dict(step=1, mean_size=0.1)]),
        attack.attack_losses([]),
        training.training_curves(RUN.metrics("training")),
        attack.perturbation_histogram(np.zeros((2, 1, 28, 28)), 0.1),
        images.image_triple(square, square * 0.9, limit=0.1),
        images.blink(square, square * 0.9),
        images.image_triple(coloured, coloured * 0.9, limit=0.1),
        images.blink(coloured, coloured * 0.9),
        images.picture_wall(b"", columns=2, rows=1, numbers=[4, 7], hover=["a", "b"], chosen=7),
    ]


def test_every_figure_has_a_text_alternative_and_a_clear_ground(table):
    for figure in all_figures(table):
        assert len(alt(figure)) > 20
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        json.loads(figure.to_json())


def test_arms_differ_in_more_than_colour():
    assert set(ARM_STYLE) == set(ARMS)
    for part in ("name", "colour", "dash", "symbol", "pattern"):
        assert len({getattr(style, part) for style in ARM_STYLE.values()}) == len(ARMS)


def test_acr_is_the_reports(table):
    facts = RUN.report
    assert facts is not None
    figure = radii.acr_by_arm(facts)
    for arm, style in ARM_STYLE.items():
        for scope, (points, mean) in zip(
            numbers.SCOPES,
            zip(
                [trace for trace in figure.data if trace.name == f"{style.name}, victims"],
                [trace for trace in figure.data if trace.name == f"{style.name}, mean"],
                strict=True,
            ),
            strict=True,
        ):
            found = facts["arms"][arm]["average_certified_radius"][scope]
            assert list(points.x) == found["seeds"]
            assert list(mean.x) == [found["mean"]]
            assert mean.error_x.array[0] == found["sd"]


@pytest.mark.parametrize("scope", numbers.SCOPES)
def test_certified_accuracy_starts_at_accuracy_never_rises_and_ends_at_zero(table, scope):
    figure = radii.certified_accuracy(table, RUN.config, scope)
    rows = numbers.of_scope(table, scope, RUN.config)
    for arm, style in ARM_STYLE.items():
        trace = curve(figure, style.name)
        expected = numbers.per_victim(rows[rows["arm"] == arm], metrics.accuracy)[arm].mean()
        assert trace.y[0] == pytest.approx(expected)
        assert trace.x[0] == 0
        assert (np.diff(trace.y) <= 1e-12).all()
        assert trace.y[-1] == 0
        assert trace.line.shape == "vh"  # y of the right end holds on (left, right]: share with radius ≥ r


def test_certified_accuracy_between_points_is_exact(table):
    trace = curve(radii.certified_accuracy(table, RUN.config), "poisoned")
    rows = numbers.of_scope(table[table["arm"] == "poisoned"], "target", RUN.config)
    for r in np.linspace(0.001, 0.37, 40):
        share = np.mean([metrics.certified_accuracy(part, np.array([r]))[0] for _, part in rows.groupby("victim")])
        assert trace.y[np.searchsorted(trace.x, r)] == pytest.approx(share)


@pytest.mark.parametrize("scope", numbers.SCOPES)
def test_histogram_accounts_for_every_image(table, scope):
    figure = radii.radius_histogram(table, RUN.config, scope)
    rows = numbers.of_scope(table, scope, RUN.config)
    for arm, style in ARM_STYLE.items():
        trace, part = curve(figure, style.name), rows[rows["arm"] == arm]
        assert sum(trace.y) == pytest.approx(1)
        assert sum(float(count) for _, count in trace.customdata) == pytest.approx(part["image"].nunique())
        abstained = (part["prediction"] == ABSTAIN).sum() / part["victim"].nunique()
        assert float(trace.customdata[1][1]) == pytest.approx(abstained)
        assert trace.x[0] < trace.x[1] < 0 < trace.x[2]
    assert len({tuple(trace.x) for trace in figure.data}) == 1


def test_curves_of_training_are_what_the_run_recorded():
    records = RUN.metrics("training")
    figure = training.training_curves([*records, dict(victim="before-0", epoch=1, loss=9.0, accuracy=0.0)])
    for arm, style in ARM_STYLE.items():
        of_victims = [
            [record for record in records if record["victim"] == f"{arm}-{k}"] for k in range(RUN.config.victim_seeds)
        ]
        for panel, name in enumerate(("loss", "accuracy")):
            drawn = [trace for trace in figure.data if trace.name.startswith(style.name)][panel::2]
            expected = [[record[name] for record in of_one] for of_one in of_victims]
            assert [list(trace.y) for trace in drawn[:-1]] == expected
            assert list(drawn[-1].y) == pytest.approx(np.mean(expected, axis=0))
            assert drawn[-1].name == style.name
    assert len(figure.data) == 2 * len(ARM_STYLE) * (RUN.config.victim_seeds + 1)


def test_the_cap_is_drawn_where_it_is(table):
    cap = radius_cap(n=100, sigma=RUN.config.sigma, alpha=0.001)
    for figure in (radii.certified_accuracy(table, RUN.config), radii.radius_histogram(table, RUN.config)):
        assert cap in [shape.x0 for shape in figure.layout.shapes]
        assert any(f"{cap:.3f}" in (note.text or "") for note in figure.layout.annotations)


def test_too_few_draws_give_a_chart_that_says_so(table):
    less = metrics.recertify(table, sigma=RUN.config.sigma, alpha=0.001, n=5)
    for figure in (radii.certified_accuracy(less, RUN.config), radii.radius_histogram(less, RUN.config)):
        assert any("too small" in (note.text or "") for note in figure.layout.annotations)
    assert radii.radius_histogram(less, RUN.config).data[0].y[1] == pytest.approx(1)


def test_axes_stay_where_they_are_while_draws_become_fewer(table):
    widest = radius_cap(n=100, sigma=RUN.config.sigma, alpha=0.001)
    less = metrics.recertify(table, sigma=RUN.config.sigma, alpha=0.001, n=20)
    for draw in (radii.certified_accuracy, radii.radius_histogram, radii.radius_before_after):
        before, after = draw(table, RUN.config), draw(less, RUN.config, widest=widest)
        assert after.layout.xaxis.range == before.layout.xaxis.range


def test_the_recorded_means_stay_in_sight_while_draws_become_fewer():
    report = RUN.report
    fewer = report | {"radius_cap": 0.1}
    figure = radii.acr_by_arm(fewer, report)
    means = [arm["average_certified_radius"]["target"]["mean"] for arm in report["arms"].values()]
    recorded = [trace.x[0] for trace in figure.data if trace.name.endswith("as recorded") and trace.xaxis == "x"]
    assert recorded == means
    assert figure.layout.xaxis.range == radii.acr_by_arm(report).layout.xaxis.range


def test_before_after_holds_means_and_image_numbers(table):
    trace = curve(radii.radius_before_after(table, RUN.config), "test image")
    image = int(trace.customdata[3][0])
    rows = table[(table["image"] == image) & (table["label"] == RUN.config.threat.target_class)]
    for arm, value in (("clean", trace.x[3]), ("poisoned", trace.y[3])):
        assert metrics.correct_radius(rows[rows["arm"] == arm]).mean() == pytest.approx(value)
    assert len(trace.x) == RUN.config.certification.target_images


def test_votes_are_shares_of_the_draws_with_the_selected_class_marked(table):
    rows = table[(table["image"] == table["image"].iloc[0]) & (table["victim"] == 0)]
    for arm, style in ARM_STYLE.items():
        trace, row = curve(images.vote_histogram(rows), style.name), rows[rows["arm"] == arm].iloc[0]
        assert sum(trace.y) == pytest.approx(1)
        assert list(trace.y) == pytest.approx(row["estimation_votes"] / row["n"])
        assert [k for k, mark in enumerate(trace.text) if mark] == [row["selected_class"]]


def test_losses_keep_gaps_and_mark_restarts():
    steps = [dict(step=k, steps=9, upper_loss=None if k == 4 else 1.0, lower_loss=0.5) for k in range(1, 10)]
    figure = attack.attack_losses(steps, restart_every=3)
    assert np.isnan(figure.data[0].y[3])
    assert [trace.name.partition(":")[0] for trace in figure.data] == [
        "upper loss",
        "lower loss",
    ]  # no residual is there
    assert {shape.x0 for shape in figure.layout.shapes} == {3.5, 6.5}
    assert attack.attack_losses([]).data[0].x.size == 0


def test_an_attack_without_losses_shows_the_size_of_its_change():
    steps = [dict(step=k, steps=3, upper_loss=None, lower_loss=None, mean_size=0.01 * k) for k in (1, 2, 3)]
    (trace,) = attack.attack_losses(steps, restart_every=1).data
    assert "mean |δ|" in trace.name
    assert list(trace.y) == [0.01, 0.02, 0.03]
    assert not attack.attack_losses(steps, restart_every=1).layout.shapes  # no surrogate, so none starts again


def test_perturbation_histogram_counts_every_pixel():
    rng = np.random.default_rng(0)
    delta = rng.uniform(-0.1, 0.1, (3, 1, 28, 28)).astype(np.float32)
    trace = attack.perturbation_histogram(delta, 0.1).data[0]
    assert sum(trace.customdata) == delta.size
    assert list(trace.x) == pytest.approx([-x for x in reversed(trace.x)])
    for empty, epsilon in ((np.zeros((0, 1, 28, 28)), 0.1), (np.zeros((2, 1, 28, 28)), 0.0)):
        attack.perturbation_histogram(empty, epsilon)


def test_triple_has_fixed_scales_and_reads_the_arrays_exactly():
    clean = np.full((1, 28, 28), 0.2, dtype=np.float32)
    other = clean.copy()
    other[0, 3, 5] += 0.05
    figure = images.image_triple(clean, other, limit=0.1)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert (figure.layout.coloraxis2.cmin, figure.layout.coloraxis2.cmax) == (-0.1, 0.1)
    np.testing.assert_array_equal(
        figure.data[2].customdata[3, 5], [clean[0, 3, 5], other[0, 3, 5], other[0, 3, 5] - clean[0, 3, 5]]
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (96, 64)])
def test_triple_of_a_coloured_image_shows_and_reads_each_channel(height, width):
    clean = np.full((3, height, width), 0.5, dtype=np.float32)
    other = clean.copy()
    other[:, 3, 5] += [0.05, 0, -0.1]
    first, second, change = images.image_triple(clean, other, limit=0.1).data
    assert change.z.shape == (height, width, 3)
    np.testing.assert_array_equal(change.z[3, 5], [191, 128, 0])  # ½ + δ/(2·limit), of 255
    np.testing.assert_array_equal(change.z[0, 0], [128, 128, 128])
    assert (first.z == 128).all()
    for trace in (first, second, change):
        np.testing.assert_allclose(
            trace.customdata[3, 5], [0.5, 0.5, 0.5, 0.55, 0.5, 0.4, 0.05, 0, -0.1], rtol=1e-5, atol=1e-7
        )
        assert "%{customdata[8]:+.4f}" in trace.hovertemplate


def test_votes_are_for_classes_by_name(table):
    rows = table[(table["image"] == table["image"].iloc[0]) & (table["victim"] == 0)]
    label, names = int(rows["label"].iloc[0]), [f"thing {k}" for k in range(10)]
    ticks = images.vote_histogram(rows, names).layout.xaxis.ticktext
    assert [tick for tick in ticks if "true" in tick] == [f"<b>thing {label}<br>true</b>"]
    many = rows.assign(estimation_votes=[np.pad(votes, (0, 90)) for votes in rows["estimation_votes"]])
    ticks = images.vote_histogram(many).layout.xaxis.ticktext
    assert len(ticks) == 100
    assert {k for k, tick in enumerate(ticks) if tick} == {label, *rows["selected_class"]}


def test_charts_name_the_target_class(table):
    for make in (radii.certified_accuracy, radii.radius_histogram, radii.radius_before_after):
        assert "test images of ship" in make(table, RUN.config, target="ship").layout.title.subtitle.text
    facts = (RUN.report or {}) | {"target_name": "ship"}
    figure = radii.acr_by_arm(facts)
    assert any("ship" in (note.text or "") for note in figure.layout.annotations)


def test_clean_victims_that_runs_share_are_drawn_once(table):
    other = table.assign(radius=table["radius"].where(table["arm"] != "clean", table["radius"] / 2))

    def drawn(**tables: pd.DataFrame) -> list[str]:
        figure = several_runs({name: (each, 1.0) for name, each in tables.items()})
        return [trace.name.partition(" (")[0] for trace in figure.data]

    assert drawn(a=table, b=table) == ["clean, shared", "a: poisoned", "b: poisoned"]
    assert drawn(a=table, b=other) == ["a: clean", "a: poisoned", "b: clean", "b: poisoned"]
    assert drawn(a=table, b=other, c=table)[0] == "a and c: clean"
    assert drawn(a=table) == ["a: clean", "a: poisoned"]


def test_selected_reads_what_the_browser_sends():
    assert images.selected([{"customdata": {"0": 41}}]) == 41
    assert images.selected([{"x": 1}, {"customdata": [7]}]) == 7
    assert images.selected([]) is None


@pytest.mark.parametrize(("top", "ticks"), [(1.059, [0, 0.5, 1]), (0.375, [0, 0.1, 0.2, 0.3]), (3.8, [0, 1, 2, 3])])
def test_ticks_of_radii_are_round(top, ticks):
    assert radii._round_ticks(top) == ticks


def test_a_long_subtitle_takes_as_many_lines_as_it_needs_and_moves_the_plot_down():
    short, long = (finish(go.Figure(), "title", "a few words " * k, "some words") for k in (1, 15))
    assert long.layout.title.subtitle.text.count("<br>") == 2
    assert long.layout.margin.t > short.layout.margin.t
