"""Figures of the lesson: from a bound to a radius, two ways of training, guessing, and what defences cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.special import comb, ndtr, ndtri

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
_INK = "#7F7F7F"  # seen on light and dark ground
_ON_BLUE = dict(showarrow=False, font=dict(color="white", size=16), bgcolor=_LINES[0][0], borderpad=3)


def cloud(p_lower: float, moved: float, *, sigma: float, cap: float, widest: float) -> go.Figure:
    """The noisy copies of an image as a cloud over a line, once where the image is and once moved towards the boundary.

    Args:
        p_lower: share of the cloud that gets the answer, at least; above one half there is a boundary, at R.
        moved: how far the image is moved (L2).
        cap: the largest radius at these draws, marked; 0 to leave it out.
        widest: how far it can be moved in any figure, so that all have the same axis.
    """
    radius = float(sigma * ndtri(p_lower)) if p_lower > 0.5 else None
    low, high, top = -2.6 * sigma, widest + 2.6 * sigma, 1.3
    x = np.linspace(low, high, _STEPS)
    bell = np.exp(-(((x - moved) / sigma) ** 2) / 2)  # 1 at its middle
    share = 1.0 if radius is None else float(ndtr((radius - moved) / sigma))
    figure = go.Figure()
    for keeps, colour, shape in ((True, _LINES[0][0], ""), (False, _LINES[1][0], "/")):
        part = x <= (high if radius is None else radius)
        inside = part if keeps else ~part
        figure.add_scatter(
            x=x[inside], y=bell[inside], mode="lines", line=dict(color=colour, width=1.5), fill="tozeroy",
            fillpattern=dict(shape=shape, fgcolor=colour, bgcolor="rgba(0,0,0,0)") if shape else None,
            hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=np.exp(-((x / sigma) ** 2) / 2), mode="lines", line=dict(color=GREY, dash="dot", width=1.5),
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=[0, moved], y=[0, 0], mode="markers", marker=dict(color=GREY, symbol=["circle-open", "circle"], size=13),
        cliponaxis=False, hovertemplate="image at %{x:.3f}<extra></extra>",
    )  # fmt: skip
    label = dict(showarrow=False, yanchor="bottom", font_size=14)
    if radius is None:
        figure.add_annotation(x=0, y=1.05, text="no certain majority: abstain", **label)
    else:
        figure.add_vline(x=radius, line=dict(color=_INK, width=3))
        figure.add_annotation(x=radius, y=top, text="boundary ", xanchor="right", **label | dict(yanchor="top"))
        figure.add_annotation(x=radius, y=top, text=" another answer", xanchor="left", **label | dict(yanchor="top"))
        figure.add_annotation(x=min(moved, radius) - sigma * 0.6, y=0.25, text=f"<b>{share:.0%}</b>", **_ON_BLUE)
        figure.add_annotation(
            x=radius, ax=0, y=-0.2, ay=-0.2, axref="x", ayref="y", showarrow=True, arrowhead=2, arrowwidth=2,
            arrowcolor=_INK, text="",
        )  # fmt: skip
        figure.add_annotation(x=radius / 2, y=-0.2, text=f"R = {radius:.3f}", **label | dict(yanchor="top"))
    if cap:
        figure.add_vline(x=cap, line=dict(color=GREY, dash="dot", width=2))
        figure.add_annotation(x=cap, y=0.75, text=f" cap {cap:.3f}", xanchor="left", **label)
    figure.update_xaxes(
        title_text="distance in the worst direction (L2, pixel units)", range=[low, high], zeroline=False
    )
    figure.update_yaxes(visible=False, range=[-0.45, top])
    told = "no boundary: it abstains" if radius is None else f"boundary at R = {radius:.3f}, {share:.0%} on this side"
    return finish(
        figure,
        "How far can the cloud move?",
        "blue: copies that keep the answer; striped: copies that change it; dotted: the image where it is",
        f"Cloud of noisy copies with standard deviation {sigma:g}, moved by {moved:.2f}; {told}."
        + (f" The cap is {cap:.3f}." if cap else ""),
        legend=False,
        height=330,
    )


def with_polls(figure: go.Figure, place: int, shares: Sequence[float]) -> go.Figure:
    """The histogram of votes, with short lines at the shares of several polls beside the bar of a class."""
    return figure.add_scatter(
        x=[place - 0.5] * len(shares), y=list(shares), mode="markers", name="other noise", showlegend=False,
        marker=dict(symbol="line-ew", size=12, line=dict(width=2, color=ARM_STYLE["poisoned"].colour)),
        hovertemplate="share with other noise: %{y:.1%}<extra></extra>",
    )  # fmt: skip


def rivals(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """What PACD, brightness and random noise take from each class.

    Rows: name, epsilon; pacd, brightness, control_drop: summaries of drops.
    """
    names, figure, told = [row["name"] for row in rows], go.Figure(), []
    grounds = f"mean over {len(rows[0]['pacd']['seeds'])} victims; ε = {rows[0]['epsilon']:g} (L∞)"
    looks = (
        ("brightness", "brighter by ε, which optimises nothing", _LINES[1][0], "triangle-up"),
        ("pacd", "PACD, which optimises each pixel", ARM_STYLE["poisoned"].colour, ARM_STYLE["poisoned"].symbol),
        (
            "control_drop",
            ARM_STYLE["random_noise"].name,
            ARM_STYLE["random_noise"].colour,
            ARM_STYLE["random_noise"].symbol,
        ),
    )
    for key, name, colour, symbol in looks:
        drops = [row[key]["mean"] for row in rows]
        figure.add_scatter(
            x=names, y=drops, mode="markers", name=name, marker=dict(color=colour, symbol=symbol, size=12),
            hovertemplate=f"%{{x}}, {name}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
        told.append(f"{name}: {', '.join(f'{label} {drop:.0%}' for label, drop in zip(names, drops, strict=True))}")
    figure.update_yaxes(title_text="share of ACR lost", tickformat=".0%", dtick=0.25, rangemode="tozero")
    return finish(
        figure, "The same ε, class by class", grounds,
        f"Share of the average certified radius that is lost. {'; '.join(told)}.", height=440,
    )  # fmt: skip


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
        f"{100 * chance[reached].sum():.1f} % of cases.",
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
