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

_LINES = (  # Okabe and Ito's blue and orange; the colour of words on it, and where they stand
    ("#0072B2", "solid", "circle", "white", "left", 10),
    ("#E69F00", "dash", "square", "black", "right", -10),
)
_STEPS = 400


def quantile(p_lower: float, share: float, *, sigma: float, cap: float, tells_cap: bool) -> go.Figure:
    """σ·Φ⁻¹(p) over p in [1/2, 1), with the bound's radius on it, and what the raw share would give."""
    top = 1.25 * cap if cap else sigma
    p = np.linspace(0.5, 1, _STEPS, endpoint=False)
    figure = go.Figure()
    figure.add_scatter(x=p, y=sigma * ndtri(p), mode="lines", line=dict(color=GREY, width=3), hoverinfo="skip")
    figure.add_vrect(x0=0.3, x1=0.5, fillcolor="rgba(128,128,128,0.18)", line_width=0)
    figure.add_annotation(x=0.4, y=top * 0.5, text="abstain:<br>no certain<br>majority", showarrow=False)
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


def widest_gap(tables: Mapping[str, pd.DataFrame], config: Config, *, scope: str, radii: np.ndarray) -> float:
    """The one of these radii at which the certified accuracies of two groups differ most."""
    one, other = (_accuracy(of_scope(table, scope, config), radii) for table in tables.values())
    return float(radii[np.abs(one - other).argmax()])


def _accuracy(rows: pd.DataFrame, radii: np.ndarray) -> np.ndarray:
    """Certified accuracy at each radius, the mean over victims."""
    return np.mean([metrics.certified_accuracy(part, radii) for _, part in rows.groupby("victim")], axis=0)


def curves(tables: Mapping[str, pd.DataFrame], config: Config, *, scope: str, radius: float) -> go.Figure:
    """Certified accuracy of two groups of clean victims, a line each, and where the reader's radius cuts them."""
    cap = radius_cap(n=config.certification.n, sigma=config.sigma, alpha=config.certification.alpha)
    radii = np.append(np.linspace(0, cap, _STEPS), cap * 1.0001)
    figure, told = go.Figure(), []
    for (name, table), (colour, dash, symbol, ink, anchor, shift) in zip(tables.items(), _LINES, strict=False):
        rows = of_scope(table, scope, config)
        mean, at = _accuracy(rows, radii), float(_accuracy(rows, np.array([radius]))[0])
        line = dict(color=colour, dash=dash, width=2.5, shape="vh")
        figure.add_scatter(x=radii, y=mean, mode="lines", name=name, line=line, hovertemplate="%{y:.1%}")
        figure.add_scatter(
            x=[radius],
            y=[at],
            mode="markers",
            marker=dict(color=colour, symbol=symbol, size=12),
            showlegend=False,
            hoverinfo="skip",
        )
        look = dict(showarrow=False, font=dict(color=ink), bgcolor=colour, borderpad=2)
        figure.add_annotation(x=radius, y=at, text=f"{at:.0%}", xanchor=anchor, xshift=shift, **look)
        told.append(f"{name}: {at:.0%} at radius {radius:.2f}")
    figure.add_vline(x=radius, line=dict(color=GREY, dash="dash"))
    figure.add_vline(x=cap, line=dict(color=GREY, dash="dot", width=2))
    figure.add_annotation(x=cap, y=1, yref="paper", text=f"cap {cap:.3f}", showarrow=False, yanchor="bottom")
    figure.update_xaxes(title_text=f"radius r: {RADIUS} at least r", range=[0, 1.08 * cap])
    figure.update_yaxes(title_text="certified accuracy (approximate)", range=[0, 1.05], tickformat=".0%")
    figure.update_layout(hovermode="x unified")
    counts = {name: table["victim"].nunique() for name, table in tables.items()}
    victims = ", ".join(f"{name}: {count} {'victim' if count == 1 else 'victims'}" for name, count in counts.items())
    return finish(
        figure,
        "Certified accuracy, two ways of training",
        f"{victims}; clean data; σ = {config.sigma:g}, n = {config.certification.n}; dashed vertical line: r",
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
        hovertemplate="%{x} right: %{y:.1%} of those who guess<extra></extra>",
    )
    figure.add_vline(x=hits, line=dict(color=GREY, dash="dash"))
    figure.add_annotation(x=hits, y=1, yref="paper", text=f"you: {hits}", showarrow=False, yanchor="bottom")
    figure.update_xaxes(title_text=f"correct answers out of {count}", tickformat="d")
    figure.update_yaxes(title_text="share of those who guess", tickformat=".0%")
    return finish(
        figure,
        "What guessing would give",
        "striped: at least as many correct as you",
        f"Binomial distribution of correct answers in {count} guesses; guessing gets at least your {hits} in "
        f"{chance[reached].sum():.1%} of cases.",
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
    figure.update_xaxes(title_text="ACR of the target class (L2)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    told = "; ".join(f"{row['name']}: clean {row['clean']:.3f}, poisoned {row['poisoned']:.3f}" for row in rows)
    return finish(
        figure,
        "What a defence saves, and what it costs",
        "line: what the attack takes; price: clean circle left of that of “no defence”",
        f"Average certified radius by defence. {told}.",
        height=220 + 44 * len(rows),
    )
