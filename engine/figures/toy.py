"""Plotly figures of the bilevel problem in the plane: the plane itself, and what was measured over the steps."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from engine import toy
from engine.figures.style import ARM_STYLE, FAINT, GREY, finish

WIDTH, HEIGHT = 3.0, 1.75  # half of what is seen of the plane, in its units
ARROW = 4  # times the attacker's next step
DISCS = 5  # held-out points that show their radius
TARGET, OTHER = "#2F8FC4", "#8A8A8A"  # points of the target class, of the other; seen on light and dark ground
CLEAN, POISONED, CONTROL = (ARM_STYLE[arm].colour for arm in ("clean", "poisoned", "random_noise"))
_TINT = {TARGET: "rgba(47,143,196,0.12)", OTHER: "rgba(138,138,138,0.12)"}
_FAR = 20.0
_ROOM = WIDTH - 1  # further from the middle there is none for words on the outer side
_FIXED = dict(fixedrange=True)
_LAYOUT: dict[str, Any] = dict(dragmode=False, uirevision="toy")
Trace = dict[str, Any]  # all traces of a figure are checked at once, which is what makes it quick


def plane(state: toy.State, *, chosen: int | None = None, attacker: bool = True) -> go.Figure:
    """Points, boundary, certified radii as discs; with an attacker boxes, poison points, and where they are pushed.

    Lines are named where they run, points in the legend. Every trace is there in every figure, so that a chart that
    is drawn again only moves. Of the poison points, customdata is their index.
    """
    beside, colour, now = ("clean victim", CLEAN, POISONED) if attacker else ("fully trained", GREY, TARGET)
    moved = len(state.poison) if attacker else 0
    traces = [
        *(_half_plane(state, side, tint) for side, tint in ((1, TARGET), (-1, OTHER))),
        _discs(f"radius, {beside}", state, state.clean, colour, "dash"),
        _discs("radius now", state, state.weights, now, "solid"),
        _boundary("boundary beside", state.clean, colour, "dash", 2),
        _boundary("boundary now", state.weights, now, "solid", 3),
        *([_boxes(state)] if attacker else []),
        _points("other class", state.training[toy.TARGET_POINTS :], OTHER, "square"),
        _points("target class", state.training[moved : toy.TARGET_POINTS], TARGET, "circle"),
        _points("held out", state.held_out, TARGET, "circle-open"),
        *([*_arrows(state), _ring(state, chosen), _poison(state)] if attacker else []),
        _name_of_line("victim now", state.weights, 1),
        _name_of_line(beside, state.clean, -1),
    ]
    axis = _FIXED | dict(showgrid=False, zeroline=False, constrain="domain")
    layout = _LAYOUT | dict(
        xaxis=axis | dict(range=[-WIDTH, WIDTH], title_text="x, units of the plane"),
        yaxis=axis | dict(range=[-HEIGHT, HEIGHT], scaleanchor="x", title_text="y, units of the plane"),
        hovermode="closest",
    )
    return finish(go.Figure(traces, layout), "", "", _told(state, attacker), height=410, top=10, bottom=90)


def measured(state: toy.State) -> go.Figure:
    """The mean certified radius of held-out points over upper steps, beside clean victims and random moves."""
    steps = [step.upper_steps for step in state.history]
    most, last = 60 * (1 + steps[-1] // 60), state.history[-1].retrained
    clean, control = toy.mean_radius(state, state.clean), statistics.mean(state.control)
    now_and_then = list(range(0, most + 1, most // 6))
    curves = (
        ("clean victim", [0, most], [clean, clean], CLEAN, "dash", 2),
        ("random moves of size ε", now_and_then, [control] * len(now_and_then), CONTROL, "dot", 2),
        ("victim now", steps, [step.upper_loss for step in state.history], POISONED, "solid", 1.5),
        ("trained to the end", steps, [step.retrained for step in state.history], GREY, "dashdot", 2.5),
    )
    traces = [
        _path(name, x, y, colour, dash, width)
        | dict(hovertemplate="step %{x}: %{y:.3f}", hoverinfo=None, showlegend=x is steps)
        for name, x, y, colour, dash, width in curves
    ]
    # squares, since the line of random moves mostly runs on that of the clean victim
    traces[1] |= dict(mode="lines+markers", marker=dict(color=CONTROL, symbol="square", size=7))
    layout = _LAYOUT | dict(
        xaxis=_FIXED | dict(title_text="upper steps", range=[0, most]),
        yaxis=_FIXED | dict(title_text="mean radius (L2)", range=[0, 1.25 * clean]),
    )
    text = (
        f"Mean certified radius of {toy.HELD_OUT} held-out points over upper steps: clean {clean:.3f}, after "
        f"{steps[-1]} steps {last:.3f} with a victim trained to the end; after random moves of size ε {control:.3f}."
    )
    for name, y, other in (("clean", clean, control), ("random moves", control, clean)):
        traces.append(_words(most, y, name, "top left" if (y, name) > (other, "clean") else "bottom left"))
    figure = go.Figure([*traces, _end(steps[-1], last, GREY, "diamond")], layout)
    return finish(figure, "", "", text, height=240, top=10, bottom=84)


def training(state: toy.State) -> go.Figure:
    """The victim's training loss over its steps, and below it the mean radius of held-out points."""
    count, traces, told = len(state.losses), [], []
    now = float(toy.lower_loss(state)(state.weights, state.poison)), toy.mean_radius(state, state.weights)
    most = 50 * (1 + count // 50)
    axes: dict[str, Any] = dict(xaxis2=_FIXED | dict(title_text="steps of the victim", range=[0, most], anchor="y2"))
    axes["xaxis"] = _FIXED | dict(matches="x2", showticklabels=False, anchor="y")
    for number, name, past, last, room in (
        ("", "training loss", state.losses, now[0], [0.56, 1.0]),
        ("2", "mean radius (L2)", state.reached, now[1], [0.0, 0.46]),
    ):
        values, place = [*past, last], dict(xaxis=f"x{number}", yaxis=f"y{number}")
        curve = _path(name, list(range(len(values))), values, TARGET, "solid", 2.5) | dict(hoverinfo="x+y")
        traces += [curve | place, _end(count, last, TARGET, "circle") | place]
        axes[f"yaxis{number}"] = _FIXED | dict(
            title_text=name, range=[0, 1.15 * max(values)], domain=room, anchor=f"x{number}"
        )
        told.append(f"{name} {values[0]:.3f} at first, {max(values):.3f} at most, {last:.3f} now")
    figure = go.Figure(traces, _LAYOUT | axes)
    return finish(figure, "", "", f"Over {count} steps: {'; '.join(told)}.", legend=False, height=320, top=10)


def shown(state: toy.State) -> list[int]:
    """Held-out points whose discs are drawn: spread over the clean victim's radii."""
    order = toy.radii(state, state.clean).argsort().tolist()
    return [order[round(place)] for place in np.linspace(2, len(order) - 2, DISCS)]


def _half_plane(state: toy.State, side: int, colour: str) -> Trace:
    foot, along, normal = _line(state.weights)
    ends = foot + np.array([[-_FAR], [_FAR]]) * along
    x, y = np.concatenate([ends, ends[::-1] + side * 2 * _FAR * normal]).T
    look = dict(fill="toself", fillcolor=_TINT[colour], hoverinfo="skip", showlegend=False)
    return dict(type="scatter", x=x, y=y, mode="none") | look


def _boundary(name: str, weights: Tensor, colour: str, dash: str, width: float) -> Trace:
    foot, along, _ = _line(weights)
    x, y = (foot + np.array([[-_FAR], [_FAR]]) * along).T
    return _path(name, x, y, colour, dash, width) | dict(showlegend=False)


def _name_of_line(name: str, weights: Tensor, end: int) -> Trace:
    """Words at the upper (1) or lower (-1) end of what is seen of a boundary: nowhere if none of it is seen."""
    foot, along, _ = _line(weights)
    inside = np.array([WIDTH, HEIGHT - 0.12])
    with np.errstate(divide="ignore"):
        crossings = np.sort(np.stack([(-inside - foot) / along, (inside - foot) / along]), axis=0)
    first, last = crossings[0].max(), crossings[1].min()
    (x, y), (other, _) = (foot + t * along for t in ((last, first) if end * along[1] >= 0 else (first, last)))
    if first >= last:
        x = y = np.nan
    left = x > -_ROOM if x < other + 1 else x > _ROOM  # where a tilted line does not run into the words
    return _words(x, y, name, f"middle {'left' if left else 'right'}")


def _words(x: float, y: float, text: str, place: str) -> Trace:
    look = dict(showlegend=False, hoverinfo="skip", textposition=place)
    return dict(type="scatter", x=[x], y=[y], mode="text", text=[f" {text} "], name=text) | look


def _line(weights: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Point of the boundary nearest to the middle, unit vector along it, unit normal towards the target class)."""
    w, b = weights[:2].numpy(), float(weights[2])
    size = float(np.hypot(*w))
    normal = w / size
    return -b / size * normal, np.array([-normal[1], normal[0]]), normal


def _discs(name: str, state: toy.State, weights: Tensor, colour: str, dash: str) -> Trace:
    angles = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    centres, radii = state.held_out.numpy(), toy.radii(state, weights).tolist()
    x, y = _with_gaps([centres[i] + radii[i] * circle for i in shown(state)])
    return _path(name, x, y, colour, dash, 1.5)


def _boxes(state: toy.State) -> Trace:
    corners = state.settings.epsilon * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    x, y = _with_gaps([centre + corners for centre in state.training[: len(state.poison)].numpy()])
    return _path("box of ε (L∞)", x, y, FAINT, "dot", 1) | dict(showlegend=False)


def _arrows(state: toy.State) -> list[Trace]:
    """The next step as it will be: cut at the boxes, so that points that rest there have none; and its legend's mark,
    since a legend shows the line of a path alone."""
    tails = state.poison.numpy()
    steps = toy.stepped(state).numpy() - tails
    arrows = np.stack([tails, tails + ARROW * steps], axis=1)[(np.abs(steps) > 1e-6).any(axis=1)]
    x, y = _with_gaps(list(arrows))
    heads = dict(color=POISONED, symbol="arrow", angleref="previous", size=[0, 9, 0] * len(arrows))
    path = _path(f"next step × {ARROW}", x, y, POISONED, "solid", 1.5)
    mark = dict(
        type="scatter", x=[None], y=[None], mode="markers", marker=dict(color=POISONED, symbol="arrow-right", size=12)
    )
    return [path | dict(mode="lines+markers", marker=heads, showlegend=False), mark | dict(name=path["name"])]


def _ring(state: toy.State, chosen: int | None) -> Trace:
    places = state.poison[[] if chosen is None else [chosen]]
    marker = dict(color=GREY, symbol="circle-open", size=20, line=dict(width=3))
    return _marks("chosen", places, marker) | dict(hoverinfo="skip", showlegend=False)


def _poison(state: toy.State) -> Trace:
    marker = dict(color=POISONED, symbol="diamond", size=10, line=dict(color="white", width=1))
    return _marks("poison point", state.poison, marker) | dict(
        customdata=np.arange(len(state.poison))[:, None],
        hovertemplate="poison point %{customdata[0]}<br>(%{x:.3f}, %{y:.3f})<extra></extra>",
    )


def _points(name: str, places: Tensor, colour: str, symbol: str) -> Trace:
    marker = dict(color=colour, symbol=symbol, size=9, line=dict(width=2 if "open" in symbol else 0))
    return _marks(name, places, marker) | dict(hovertemplate=f"{name}<br>(%{{x:.3f}}, %{{y:.3f}})<extra></extra>")


def _marks(name: str, places: Tensor, marker: dict[str, Any]) -> Trace:
    """Markers, which stay as they are when one of them is clicked."""
    x, y = places.numpy().T
    same = dict(selected=dict(marker=dict(opacity=1)), unselected=dict(marker=dict(opacity=1)))
    return dict(type="scatter", x=x, y=y, mode="markers", name=name, marker=marker) | same


def _path(name: str, x: Any, y: Any, colour: str, dash: str, width: float) -> Trace:
    line = dict(color=colour, dash=dash, width=width)
    return dict(type="scatter", x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip")


def _end(x: float, y: float, colour: str, symbol: str) -> Trace:
    """The last point of a curve."""
    marker = dict(color=colour, symbol=symbol, size=9)
    look = dict(showlegend=False, cliponaxis=False, hoverinfo="skip")
    return dict(type="scatter", x=[x], y=[y], mode="markers", marker=marker) | look


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
