"""Figures of the lesson: from a bound to a radius, two ways of training, guessing, and what defences cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.special import comb, ndtri

from engine import metrics
from engine.certification import radius_cap
from engine.config import Config
from engine.figures.style import ARM_STYLE, GREY, RADIUS, finish
from engine.report.numbers import of_scope

_LINES = (("#0072B2", "solid", "circle"), ("#E69F00", "dash", "square"))  # Okabe and Ito's blue and orange
_STEPS = 400


def quantile(p_lower: float, share: float, *, sigma: float, cap: float, tells_cap: bool) -> go.Figure:
    """σ·Φ⁻¹(p) over p in [1/2, 1), with the bound's radius on it, and what the raw share would give."""
    top = 1.25 * cap if cap else sigma
    p = np.linspace(0.5, 1, _STEPS, endpoint=False)
    figure = go.Figure()
    figure.add_scatter(x=p, y=sigma * ndtri(p), mode="lines", line=dict(color=GREY, width=3), hoverinfo="skip")
    figure.add_vrect(x0=0.3, x1=0.5, fillcolor="rgba(128,128,128,0.18)", line_width=0)
    figure.add_annotation(x=0.4, y=top * 0.5, text="abstain:<br>no majority<br>for certain", showarrow=False)
    if cap and tells_cap:
        figure.add_hline(y=cap, line=dict(color=GREY, dash="dot"))
        figure.add_annotation(x=0.31, y=cap, text=f"cap {cap:.3f}", showarrow=False, xanchor="left", yanchor="bottom")
    radius = float(sigma * ndtri(p_lower)) if p_lower > 0.5 else 0.0
    colour = ARM_STYLE["clean"].colour
    for x, y in (([p_lower, p_lower], [0, radius]), ([0.3, p_lower], [radius, radius])):
        figure.add_scatter(x=x, y=y, mode="lines", line=dict(color=colour, dash="dash", width=1.5), hoverinfo="skip")
    figure.add_scatter(
        x=[p_lower],
        y=[radius],
        mode="markers+text",
        text=[f"R = {radius:.3f}"],
        textposition="top left",
        marker=dict(color=colour, symbol="diamond", size=14),
        hovertemplate=f"p_lower {p_lower:.4f}<br>radius {radius:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=[share],
        y=[min(top, float(sigma * ndtri(min(max(share, 0.5), 1 - 1e-6))))],
        mode="markers",
        marker=dict(color=GREY, symbol="circle-open", size=12, line_width=2),
        hovertemplate=f"share k/n {share:.3f}: no bound, no guarantee<extra></extra>",
    )
    figure.update_xaxes(title_text="probability p of the class under noise", range=[0.3, 1.01])
    figure.update_yaxes(title_text="σ·Φ⁻¹(p), L2, pixel units", range=[0, top])
    return finish(
        figure,
        "From a bound to a radius",
        "filled diamond: p_lower and its radius R; open circle: the share k/n, which guarantees nothing",
        f"Curve of sigma times the normal quantile. The bound {p_lower:.4f} gives radius {radius:.3f}; the share of "
        f"votes is {share:.3f}" + (f"; the cap is {cap:.3f}." if tells_cap else "."),
        legend=False,
        height=360,
    )


def curves(tables: Mapping[str, pd.DataFrame], config: Config, *, scope: str, radius: float) -> go.Figure:
    """Certified accuracy of two groups of clean victims, a line each, and where the reader's radius cuts them."""
    cap = radius_cap(n=config.certification.n, sigma=config.sigma, alpha=config.certification.alpha)
    radii = np.append(np.linspace(0, cap, _STEPS), cap * 1.0001)
    figure, told = go.Figure(), []
    for (name, table), (colour, dash, symbol) in zip(tables.items(), _LINES, strict=False):
        parts = [part for _, part in of_scope(table, scope, config).groupby("victim")]
        mean = np.mean([metrics.certified_accuracy(part, radii) for part in parts], axis=0)
        at = float(np.mean([metrics.certified_accuracy(part, np.array([radius]))[0] for part in parts]))
        line = dict(color=colour, dash=dash, width=2.5, shape="vh")
        figure.add_scatter(x=radii, y=mean, mode="lines", name=name, line=line, hovertemplate="%{y:.1%}")
        figure.add_scatter(
            x=[radius],
            y=[at],
            mode="markers+text",
            text=[f"{at:.0%}"],
            textposition="middle right",
            marker=dict(color=colour, symbol=symbol, size=12),
            showlegend=False,
            hoverinfo="skip",
        )
        told.append(f"{name}: {at:.0%} at radius {radius:.2f}")
    figure.add_vline(x=radius, line=dict(color=GREY, dash="dash"))
    figure.add_vline(x=cap, line=dict(color=GREY, dash="dot", width=2))
    figure.add_annotation(x=cap, y=1, yref="paper", text=f"cap {cap:.3f}", showarrow=False, yanchor="bottom")
    figure.update_xaxes(title_text=f"radius r: {RADIUS} at least r", range=[0, 1.08 * cap])
    figure.update_yaxes(title_text="certified accuracy (approximate)", range=[0, 1.05], tickformat=".0%")
    figure.update_layout(hovermode="x unified")
    victims = " and ".join(str(table["victim"].nunique()) for table in tables.values())
    return finish(
        figure,
        "Certified accuracy, two ways of training",
        f"{victims} victims, nobody poisoned; σ = {config.sigma:g}, n = {config.certification.n}; dashed upright "
        f"line: r",
        f"Certified accuracy against radius. {'; '.join(told)}. The cap is {cap:.3f}.",
    )


def guessing(hits: int, count: int) -> go.Figure:
    """How often mere guessing gets each number of hits; bars from the reader's score on are striped."""
    numbers = np.arange(count + 1)
    chance = comb(count, numbers) / 2.0**count
    reached = numbers >= hits
    figure = go.Figure()
    figure.add_bar(
        x=numbers,
        y=chance,
        marker=dict(
            color=np.where(reached, "#D55E00", "#8C8C8C"),
            pattern=dict(shape=list(np.where(reached, "/", "")), fgcolor="white", solidity=0.3, fillmode="overlay"),
        ),
        hovertemplate="%{x} right: %{y:.1%} of guessers<extra></extra>",
    )
    figure.add_vline(x=hits, line=dict(color=GREY, dash="dash"))
    figure.add_annotation(x=hits, y=1, yref="paper", text=f"you: {hits}", showarrow=False, yanchor="bottom")
    figure.update_xaxes(title_text=f"right answers of {count}", tickformat="d")
    figure.update_yaxes(title_text="share of guessers", tickformat=".0%")
    return finish(
        figure,
        "What guessing would give",
        "striped: at least as many right as you",
        f"Binomial distribution of right answers among {count} guesses; {chance[reached].sum():.1%} of guessers get at "
        f"least your {hits}.",
        legend=False,
        height=320,
    )


def defences(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """A row per defence: ACR of clean and of poisoned victims, joined by a line. Rows: name, clean, poisoned."""
    names = [row["name"] for row in rows]
    figure = go.Figure()
    for row in rows:
        figure.add_scatter(
            x=[row["clean"], row["poisoned"]],
            y=[row["name"]] * 2,
            mode="lines",
            line=dict(color=GREY, width=2),
            showlegend=False,
            hoverinfo="skip",
        )
    for arm in ("clean", "poisoned"):
        style = ARM_STYLE[arm]
        figure.add_scatter(
            x=[row[arm] for row in rows],
            y=names,
            mode="markers",
            name=style.name,
            marker=dict(color=style.colour, symbol=style.symbol, size=13),
            hovertemplate=f"%{{y}}<br>{style.name} ACR %{{x:.3f}}<extra></extra>",
        )
    figure.update_xaxes(title_text="average certified radius of the target class (L2, pixel units)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    told = "; ".join(f"{row['name']}: clean {row['clean']:.3f}, poisoned {row['poisoned']:.3f}" for row in rows)
    return finish(
        figure,
        "What a defence saves, and what it costs",
        "the line is what the attack takes; clean further left than without a defence is the price",
        f"Average certified radius by defence. {told}.",
        height=220 + 44 * len(rows),
    )
