"""Plotly figures of the bilevel problem in the plane: the plane itself, and what was measured over the steps."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from engine import toy
from engine.figures import ARM_STYLE, FAINT, GREY, finish

WIDTH, HEIGHT = 3.0, 1.75  # half of what is seen of the plane, in its units
ARROW = 4  # times the attacker's next step
DISCS = 5  # held-out points that show their radius
TARGET, OTHER = "#2F8FC4", "#8A8A8A"  # points of the target class, of the other; seen on light and dark ground
CLEAN, POISONED, CONTROL = (ARM_STYLE[arm].colour for arm in ("clean", "poisoned", "random_noise"))
_TINT = {TARGET: "rgba(47,143,196,0.12)", OTHER: "rgba(138,138,138,0.12)"}
_FAR = 20.0


def plane(state: toy.State, *, chosen: int | None = None, attacker: bool = True) -> go.Figure:
    """Points, boundary, certified radii as discs; with an attacker boxes, poison points, and where they are pushed.

    Every trace is there in every figure, so that a chart that is drawn again only moves. Of the poison points,
    customdata is their index.
    """
    figure = go.Figure()
    _half_planes(figure, state)
    beside, now = ("clean", POISONED) if attacker else ("fully trained", TARGET)
    _discs(figure, f"radius, {beside}", state, state.clean, GREY, "dot")
    _discs(figure, "radius now", state, state.weights, now, "solid")
    _boundary(figure, f"boundary, {beside}", state.clean, GREY, "dash", 2)
    _boundary(figure, "boundary now", state.weights, now, "solid", 3)
    moved = len(state.poison) if attacker else 0
    if attacker:
        _boxes(figure, state)
    _points(figure, "other class", state.training[toy.TARGET_POINTS :], OTHER, "square")
    _points(figure, "target class", state.training[moved : toy.TARGET_POINTS], TARGET, "circle")
    _points(figure, "held out", state.held_out, TARGET, "circle-open")
    if attacker:
        _arrows(figure, state)
        _poison(figure, state, chosen)
    fixed: dict[str, Any] = dict(fixedrange=True, showgrid=False, zeroline=False, constrain="domain", title_text="")
    figure.update_xaxes(range=[-WIDTH, WIDTH], **fixed)
    figure.update_yaxes(range=[-HEIGHT, HEIGHT], scaleanchor="x", **fixed)
    figure.update_layout(dragmode=False, hovermode="closest", uirevision="toy")
    return finish(figure, "", "", _told(state, attacker), height=480, top=10, bottom=96)


def measured(state: toy.State) -> go.Figure:
    """The mean certified radius of held-out points over outer steps, beside clean victims and random moves."""
    figure = go.Figure()
    steps = [step.outer_steps for step in state.history]
    most = 60 * (1 + steps[-1] // 60)
    clean, control = toy.mean_radius(state, state.clean), statistics.mean(state.control)
    lines = (
        ("clean victim", [0, most], [clean, clean], CLEAN, "dot", 2),
        ("random moves of size ε", [0, most], [control, control], CONTROL, "dashdot", 2),
        ("victim as it is", steps, [step.upper_loss for step in state.history], GREY, "solid", 1.5),
        ("trained to the end", steps, [step.retrained for step in state.history], POISONED, "dash", 2.5),
    )
    for name, x, y, colour, dash, width in lines:
        line = dict(color=colour, dash=dash, width=width)
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hovertemplate="step %{x}: %{y:.3f}")
    last = state.history[-1].retrained
    figure.add_scatter(
        x=steps[-1:],
        y=[last],
        mode="markers",
        showlegend=False,
        cliponaxis=False,
        marker=dict(color=POISONED, symbol="diamond", size=9),
    )
    figure.update_xaxes(title_text="outer steps", range=[0, most], fixedrange=True)
    figure.update_yaxes(title_text="mean radius (L2)", range=[0, 1.25 * clean], fixedrange=True)
    figure.update_layout(dragmode=False, uirevision="toy")
    text = (
        f"Mean certified radius of {toy.HELD_OUT} held-out points over outer steps: clean {clean:.3f}, after "
        f"{steps[-1]} steps {last:.3f} with a victim trained to the end; after random moves of size ε {control:.3f}."
    )
    return finish(figure, "", "", text, height=270, top=10, bottom=110)


def training(losses: Sequence[float], last: float) -> go.Figure:
    """The victim's training loss over its steps; `last` is the loss now."""
    values = [*losses, last]
    most = 50 * (1 + (len(values) - 1) // 50)
    figure = go.Figure()
    figure.add_scatter(
        x=np.arange(len(values)),
        y=values,
        mode="lines",
        line=dict(color=TARGET, width=2.5),
        hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=[len(values) - 1],
        y=[last],
        mode="markers",
        marker=dict(color=TARGET, size=9),
        hoverinfo="skip",
        cliponaxis=False,
    )
    figure.update_xaxes(title_text="steps of the victim", range=[0, most], fixedrange=True)
    figure.update_yaxes(title_text="training loss", range=[0, 1.1 * max(values)], fixedrange=True)
    figure.update_layout(dragmode=False, uirevision="toy")
    text = f"Training loss over {len(losses)} steps: {values[0]:.3f} at first, {last:.3f} now."
    return finish(figure, "", "", text, legend=False, height=270, top=10)


def shown(state: toy.State) -> list[int]:
    """Held-out points whose discs are drawn: spread over the clean victim's radii."""
    order = toy.radii(state, state.clean).argsort().tolist()
    return [order[round(place)] for place in np.linspace(2, len(order) - 2, DISCS)]


def _half_planes(figure: go.Figure, state: toy.State) -> None:
    for colour, side in ((TARGET, 1), (OTHER, -1)):
        foot, along, normal = _line(state.weights)
        ends = foot + np.array([[-_FAR], [_FAR]]) * along
        corners = np.concatenate([ends, ends[::-1] + side * 2 * _FAR * normal])
        figure.add_scatter(
            x=corners[:, 0],
            y=corners[:, 1],
            mode="none",
            fill="toself",
            fillcolor=_TINT[colour],
            hoverinfo="skip",
            showlegend=False,
        )


def _boundary(figure: go.Figure, name: str, weights: Any, colour: str, dash: str, width: float) -> None:
    foot, along, _ = _line(weights)
    ends = foot + np.array([[-_FAR], [_FAR]]) * along
    line = dict(color=colour, dash=dash, width=width)
    figure.add_scatter(x=ends[:, 0], y=ends[:, 1], mode="lines", name=name, line=line, hoverinfo="skip")


def _line(weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Point of the boundary nearest to the middle, unit vector along it, unit normal towards the target class)."""
    w, b = weights[:2].numpy(), float(weights[2])
    size = float(np.hypot(*w))
    normal = w / size
    return -b / size * normal, np.array([-normal[1], normal[0]]), normal


def _discs(figure: go.Figure, name: str, state: toy.State, weights: Any, colour: str, dash: str) -> None:
    angles = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centres, radii = state.held_out.numpy(), toy.radii(state, weights).tolist()
    x, y = _with_gaps([centres[i] + radii[i] * circle for i in shown(state)])
    line = dict(color=colour, dash=dash, width=1.5)
    figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")


def _boxes(figure: go.Figure, state: toy.State) -> None:
    clean, epsilon = state.training[: len(state.poison)].numpy(), state.settings.epsilon
    square = epsilon * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    x, y = _with_gaps([centre + square for centre in clean])
    line = dict(color=FAINT, dash="dot", width=1)
    figure.add_scatter(x=x, y=y, mode="lines", name="box of ε (L∞)", line=line, hoverinfo="skip")


def _arrows(figure: go.Figure, state: toy.State) -> None:
    tails = state.poison.numpy()
    pushes = -ARROW * toy.OUTER_RATE * len(state.training) * toy.hypergradient(state).numpy()
    x, y = _with_gaps([np.stack([tail, tail + push]) for tail, push in zip(tails, pushes, strict=True)])
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=f"next step × {ARROW}",
        line=dict(color=POISONED, width=1.5),
        marker=dict(color=POISONED, symbol="arrow", angleref="previous", size=[0, 9, 0] * len(tails)),
        hoverinfo="skip",
    )


def _poison(figure: go.Figure, state: toy.State, chosen: int | None) -> None:
    places = state.poison.numpy()
    ring = places[[chosen]] if chosen is not None else places[:0]
    figure.add_scatter(
        x=ring[:, 0],
        y=ring[:, 1],
        mode="markers",
        name="chosen",
        marker=dict(color=GREY, symbol="circle-open", size=20, line_width=3),
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=places[:, 0],
        y=places[:, 1],
        mode="markers",
        name="poison point",
        customdata=np.arange(len(places))[:, None],
        marker=dict(color=POISONED, symbol="diamond", size=10, line=dict(color="white", width=1)),
        selected=dict(marker=dict(opacity=1)),
        unselected=dict(marker=dict(opacity=1)),
        hovertemplate="poison point %{customdata[0]}<br>(%{x:.3f}, %{y:.3f})<extra></extra>",
    )


def _points(figure: go.Figure, name: str, places: Any, colour: str, symbol: str) -> None:
    figure.add_scatter(
        x=places[:, 0].numpy(),
        y=places[:, 1].numpy(),
        mode="markers",
        name=name,
        marker=dict(color=colour, symbol=symbol, size=9, line_width=2 if "open" in symbol else 0),
        unselected=dict(marker=dict(opacity=1)),
        hovertemplate=f"{name}<br>(%{{x:.3f}}, %{{y:.3f}})<extra></extra>",
    )


def _with_gaps(paths: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of several paths [K, 2] in one line, with a gap after each."""
    gap = np.full((1, 2), np.nan)
    joined = np.concatenate([gap[:0], *(part for path in paths for part in (path, gap))])
    return joined[:, 0], joined[:, 1]


def _told(state: toy.State, attacker: bool) -> str:
    clean, now = toy.mean_radius(state, state.clean), toy.mean_radius(state, state.weights)
    wrong = int((toy.radii(state, state.weights) == 0).sum())
    parts = [
        f"{toy.TARGET_POINTS} points of the target class on the right, {toy.OTHER_POINTS} of another on the left, and "
        f"the victim's straight boundary between them. Mean certified radius of {toy.HELD_OUT} held-out points: "
        f"{now:.3f} now, {wrong} of them wrong; {clean:.3f} with a fully trained clean victim."
    ]
    if attacker:
        clean_places = state.training[: len(state.poison)]
        most = float((state.poison - clean_places).abs().max()) if len(clean_places) else 0.0
        parts.append(
            f"{len(clean_places)} poison points, moved by up to {most:.3f} of ε = {state.settings.epsilon:g} (L∞)."
        )
    return " ".join(parts)
