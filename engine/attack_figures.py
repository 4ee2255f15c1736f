"""Plotly figures of the attack: its losses over the upper steps, and the sizes of the changes that it made."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.figures import FAINT, GREY, SIGNED_SCALE, finish


def attack_losses(records: Sequence[dict[str, Any]], restart_every: int | None = None) -> go.Figure:
    """Upper loss, lower loss and the linear system's relative residual over upper steps, one above the other.

    Args:
        records: as run.metrics("attack") gives them; a value that was not finite is None, and a gap.
        restart_every: upper steps until the surrogate starts again; marked by vertical lines.
    """
    names = (
        "upper loss: soft radius (pixel units)",
        "lower loss: surrogate's training",
        "relative residual (log scale)",
    )
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[3, 3, 2], subplot_titles=names)
    frame = pd.DataFrame(list(records), columns=["step", "upper_loss", "lower_loss", "relative_residual"]).astype(float)
    looks = (("upper_loss", "#D55E00", "solid"), ("lower_loss", "#0072B2", "dash"), ("relative_residual", GREY, "dot"))
    for row, ((column, colour, dash), name) in enumerate(zip(looks, names, strict=True), start=1):
        figure.add_scatter(
            x=frame["step"],
            y=frame[column],
            mode="lines+markers" if len(frame) < 60 else "lines",
            name=name,
            line=dict(color=colour, dash=dash, width=2),
            marker=dict(size=4),
            hovertemplate="upper step %{x}<br>%{y:.4g}<extra></extra>",
            row=row,
            col=1,
        )
    last = 0 if frame.empty else int(frame["step"].max())
    restarts = range(restart_every, last, restart_every) if restart_every else range(0)
    for step in restarts:
        figure.add_vline(x=step + 0.5, line=dict(color=FAINT, dash="dash", width=1))
    figure.update_yaxes(type="log", **_log_ticks(frame["relative_residual"]), row=3, col=1)
    figure.update_xaxes(title_text="upper step", row=3, col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    marks = f"; dashed lines: the surrogate starts again ({len(restarts)}×)" if restarts else ""
    ends = "" if frame.empty else f" from {frame['upper_loss'].iloc[0]:.3g} to {frame['upper_loss'].iloc[-1]:.3g}"
    return finish(
        figure,
        "The attack, step by step",
        f"{last} upper steps{marks}",
        f"Attack losses over {last} upper steps: the upper loss goes{ends}.",
        legend=False,
        height=470,
        top=104,
    )


def perturbation_histogram(delta: np.ndarray, epsilon: float, bins: int = 41) -> go.Figure:
    """Share of pixels by their change δ, all poison images together, with the budget ±ε marked.

    Args:
        delta: [P, C, H, W]; the middle bin holds δ = 0.
    """
    limit = (epsilon or 1e-3) * (1 + 1 / bins)
    values = np.asarray(delta, dtype=np.float32).ravel()
    counts, edges = np.histogram(values.clip(-limit, limit), bins=bins, range=(-limit, limit))
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
    text = f"{unchanged:.0%} of pixels unchanged, {at_limit:.0%} at the budget ε = {epsilon:g} (L∞)"
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
