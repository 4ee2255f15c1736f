"""Plotly figures of the attack: its losses over the upper steps, and the sizes of the changes that it made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.figures.style import FAINT, GREY, SIGNED_SCALE, finish
from engine.report.sentences import of_hundred


@dataclass(frozen=True)
class _Curve:
    column: str
    name: str
    colour: str
    dash: str
    height: int = 3  # of its panel, in parts
    log: bool = False


_CURVES = (
    _Curve("upper_loss", "upper loss: soft radius (pixel units)", "#D55E00", "solid"),
    _Curve("lower_loss", "lower loss: surrogate's training", "#0072B2", "dash"),
    _Curve("relative_residual", "relative residual (log scale)", GREY, "dot", height=2, log=True),
)
_BINS = 41  # of a histogram of changes, the middle one for none
_SIZE = _Curve("mean_size", "mean |δ| (pixel units)", "#8A4F7D", "dashdot")


def attack_losses(records: Sequence[dict[str, Any]], restart_every: int | None = None) -> go.Figure:
    """What the attack wrote down over its steps, one panel above the other.

    Upper loss, lower loss and the linear system's relative residual, as far as this attack has them, and the mean size
    of the change where it has no upper loss.

    Args:
        records: as run.metrics("attack") gives them; a value that was not finite is None, and a gap.
        restart_every: upper steps until the surrogate starts again; marked by vertical lines.
    """
    frame = pd.DataFrame(list(records), columns=["step", *(curve.column for curve in (*_CURVES, _SIZE))]).astype(float)
    curves = [curve for curve in _CURVES if frame[curve.column].notna().any()]
    if not any(curve.column == "upper_loss" for curve in curves):
        curves.append(_SIZE)
    figure = make_subplots(
        len(curves),
        1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        row_heights=[curve.height for curve in curves],
        subplot_titles=[curve.name for curve in curves],
    )
    for row, curve in enumerate(curves, start=1):
        figure.add_scatter(
            x=frame["step"],
            y=frame[curve.column],
            mode="lines+markers" if len(frame) < 60 else "lines",
            name=curve.name,
            line=dict(color=curve.colour, dash=curve.dash, width=2),
            marker=dict(size=4),
            hovertemplate="step %{x}<br>%{y:.4g}<extra></extra>",
            row=row,
            col=1,
        )
        if curve.log:
            figure.update_yaxes(type="log", **_log_ticks(frame[curve.column]), row=row, col=1)
    last = 0 if frame.empty else int(frame["step"].max())
    learns = frame["lower_loss"].notna().any()
    restarts = range(restart_every, last, restart_every) if restart_every and learns else range(0)
    for step in restarts:
        figure.add_vline(x=step + 0.5, line=dict(color=FAINT, dash="dash", width=1))
    figure.update_xaxes(title_text="step", row=len(curves), col=1)
    figure.update_annotations(x=0, xanchor="left")
    marks = f"; dashed lines: the surrogate starts again ({len(restarts)}×)" if restarts else ""
    told = [f"{curve.name} goes {_from_to(frame[curve.column])}" for curve in curves if frame[curve.column].any()]
    return finish(
        figure,
        "The attack, step by step",
        f"{last} upper step{'s' * (last != 1)}{marks}",
        f"The attack over {last} steps. {'; '.join(told)}.",
        legend=False,
        height=80 + 130 * len(curves),
    )


def _from_to(values: pd.Series) -> str:
    found = values.dropna()
    return f"from {found.iloc[0]:.3g} to {found.iloc[-1]:.3g}"


def perturbation_histogram(delta: np.ndarray, epsilon: float) -> go.Figure:
    """Share of pixels by their change δ, all poison images together, with the budget ±ε marked.

    Args:
        delta: [P, C, H, W], every channel counted as a pixel of its own; the middle bin holds δ = 0.
    """
    limit = (epsilon or 1e-3) * (1 + 1 / _BINS)
    values = np.asarray(delta, dtype=np.float32).ravel()
    counts, edges = np.histogram(values.clip(-limit, limit), bins=_BINS, range=(-limit, limit))
    middles, total = (edges[:-1] + edges[1:]) / 2, max(1, values.size)
    at_limit = float((np.abs(values) > 0.999 * epsilon).sum() / total) if epsilon else 0.0
    unchanged = float((values == 0).sum() / total)
    figure = go.Figure()
    figure.add_bar(
        x=middles,
        y=counts / total,
        customdata=counts,
        width=(edges[1] - edges[0]) * 0.94,
        name="pixels",
        marker=dict(color=[_signed_colour(middle / limit) for middle in middles], line=dict(color=GREY, width=1)),
        hovertemplate="change about %{x:.4f}<br>%{customdata:,} pixels (%{y:.1%})<extra></extra>",
    )
    for sign, name in ((-1, "−ε"), (1, "+ε")):
        figure.add_vline(x=sign * epsilon, line=dict(color=GREY, dash="dash"))
        figure.add_annotation(x=sign * epsilon, y=1, yref="paper", text=name, showarrow=False, yanchor="bottom")
    figure.update_xaxes(title_text="change of a pixel δ (pixel units of [0, 1])", range=[-1.12 * limit, 1.12 * limit])
    figure.update_yaxes(title_text="share of pixels", tickformat=".0%")
    images = len(delta)
    text = f"{of_hundred(unchanged)} of pixels unchanged, {of_hundred(at_limit)} at the budget ε = {epsilon:g} (L∞)"
    return finish(
        figure,
        "How much the pixels change",
        f"{images} poison images; {text}" if images else "no image was changed",
        f"Histogram of pixel changes over {images} images: {text}.",
        legend=False,
    )


def _log_ticks(values: pd.Series) -> dict[str, Any]:
    """Ticks with whole numbers written out: 1, 2, 5 in a short range, powers of ten in a long one."""
    positive = values[values > 0]
    if positive.empty:
        return {}
    low, high = np.log10(positive.min()), np.log10(positive.max())
    factors = (1, 2, 5) if high - low < 1.3 else (1,)
    ticks = [factor * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for factor in factors]
    return dict(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _signed_colour(value: float) -> str:
    """The colour of a value in [−1, 1] on the signed scale, to the nearest of its five."""
    return SIGNED_SCALE[round((min(max(value, -1.0), 1.0) + 1) / 2 * (len(SIGNED_SCALE) - 1))]
