"""Charts of certified radii: by arm, over radii, as a histogram, and image by image."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine import metrics
from engine.certification import ABSTAIN, radius_cap
from engine.choices import ARMS
from engine.config import Config
from engine.figures.style import ARM_STYLE, FAINT, GREY, RADIUS, by_arm, finish, transparent
from engine.report.numbers import of_scope
from engine.report.sentences import TARGET, several

_MOST_RADII = 400  # points of a curve
_BINS = 20  # of a histogram of radii


def acr_by_arm(report: dict[str, Any], recorded: dict[str, Any] | None = None) -> go.Figure:
    """ACR of the target class (left) and of all classes (right): a point per victim, and mean ± sd below it.

    Args:
        recorded: the report at the recorded n and alpha, where `report` is at others: its means are drawn in grey, and
            the axes reach its cap.
    """
    config, cap = report["config"], float(report["radius_cap"])
    target = report.get("target_name", TARGET)
    arms = [arm for arm in ARMS if arm in report["arms"]]
    titles = (f"{target} (target)", "all classes")
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=titles)
    told = []
    for column, scope in enumerate(("target", "all"), start=1):
        for position, arm in enumerate(arms):
            style, found = ARM_STYLE[arm], report["arms"][arm]["average_certified_radius"][scope]
            if found["mean"] is None:
                continue
            seeds = np.array(found["seeds"])
            figure.add_scatter(
                x=seeds,
                y=np.full(len(seeds), position - 0.15),
                mode="markers",
                name=f"{style.name}, victims",
                marker=dict(color=style.colour, symbol=f"{style.symbol}-open", size=9),
                hovertemplate=f"{style.name}<br>victim's ACR %{{x:.4f}}<extra></extra>",
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=[found["mean"]],
                y=[position + 0.15],
                error_x=dict(type="data", array=[found["sd"] or 0.0], thickness=2, width=6),
                mode="markers",
                name=f"{style.name}, mean",
                marker=dict(color=style.colour, symbol=style.symbol, size=13),
                hovertemplate=f"{style.name}<br>mean ± sd {_spread(found)}<extra></extra>",
                row=1,
                col=column,
            )
            if recorded:
                before = recorded["arms"][arm]["average_certified_radius"][scope]
                figure.add_scatter(
                    x=[before["mean"]],
                    y=[position + 0.15],
                    mode="markers",
                    name=f"{style.name}, mean as recorded",
                    marker=dict(color=FAINT, symbol=style.symbol, size=13),
                    hovertemplate=f"{style.name}, as recorded<br>mean ± sd {_spread(before)}<extra></extra>",
                    row=1,
                    col=column,
                )
            told.append(f"{style.name}, {'target class' if scope == 'target' else 'all classes'}: {_spread(found)}")
    figure.add_vline(x=cap, line=dict(color=GREY, dash="dot"), row="all", col="all")
    last = len(arms) - 0.2  # a free line below the arms, for the cap's value
    widest = max(cap, float(recorded["radius_cap"]) if recorded else 0.0)
    side = _side(cap, widest)
    words = dict(text=f"cap {cap:.3f}", showarrow=False, xanchor=side, yanchor="bottom")
    figure.add_annotation(x=cap, y=last, xshift=-4 if side == "right" else 4, **words)
    figure.update_yaxes(
        tickvals=list(range(len(arms))), ticktext=[ARM_STYLE[arm].name for arm in arms], range=[last, -0.5]
    )
    figure.update_yaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(title_text="ACR (L2, pixel units)", range=[0, 1.08 * widest or 1.0], nticks=4, showgrid=True)
    images = report["certified_images"]
    return finish(
        figure,
        "Average certified radius by arm",
        f"{images['target']} test images of {target}, {images['all']} in all, weighted as the test set; open: "
        f"{several(config['victim_seeds'], 'victim')}, filled: mean ± sd"
        + "; grey: as recorded"
        * (recorded is not None),
        f"Average certified radius by arm. {'; '.join(told)}. The cap is {cap:.3f}.",
        legend=False,
        height=200 + 52 * len(arms),
    )


def certified_accuracy(
    table: pd.DataFrame,
    config: Config,
    scope: str = "target",
    arms: Iterable[str] | None = None,
    *,
    target: str = TARGET,
    widest: float = 0.0,
) -> go.Figure:
    """Certified accuracy at each radius r: share correct with radius ≥ r, abstentions in the denominator.

    Args:
        table: certificates; config: their settings, with the alpha that the radii were computed at.
        arms: those to draw, by default all present; target: the target class in words.
        widest: a radius that the axis reaches at least, so that it stays where it is while n and alpha move.
    """
    table, cap = of_scope(table, scope, config), _cap(table, config)
    radii = _radii(metrics.correct_radius(table).to_numpy(), cap)
    figure, told = go.Figure(), []
    for arm, rows in by_arm(table, arms):
        style = ARM_STYLE[arm]
        curves = np.stack([metrics.certified_accuracy(part, radii) for _, part in rows.groupby("victim")])
        mean = curves.mean(axis=0)
        if len(curves) > 1:
            sd = curves.std(axis=0, ddof=1)
            edge = dict(mode="lines", line=dict(width=0, shape="vh"), legendgroup=arm, showlegend=False)
            figure.add_scatter(
                x=radii, y=(mean - sd).clip(0, 1), name=f"{style.name}, mean − sd", hoverinfo="skip", **edge
            )
            band = transparent(style.colour, 0.16)
            figure.add_scatter(
                x=radii,
                y=(mean + sd).clip(0, 1),
                name=f"{style.name}, mean + sd",
                fill="tonexty",
                fillcolor=band,
                hoverinfo="skip",
                **edge,
            )
        figure.add_scatter(
            x=radii,
            y=mean,
            mode="lines",
            name=style.name,
            legendgroup=arm,
            line=dict(color=style.colour, dash=style.dash, width=2.5, shape="vh"),
            hovertemplate="%{y:.1%}",
        )
        half = mean[np.searchsorted(radii, cap / 2)]
        told.append(f"{style.name} starts at {mean[0]:.0%} and is {half:.0%} at half the cap")
    widest = max(cap, widest)
    _cap_line(figure, cap, table, config, widest)
    figure.update_xaxes(title_text="radius r (L2, pixel units)", range=[0, 1.04 * widest or 1.0])
    figure.update_yaxes(title_text="certified accuracy (approximate)", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(hovermode="x unified")
    return finish(
        figure,
        "Certified accuracy at radius r",
        f"{_images_and_victims(table, scope, target)}; band: ± sd over victims; abstentions count as wrong",
        f"Certified accuracy against radius. {'; '.join(told)}. The cap is {cap:.3f}.",
    )


def radius_histogram(
    table: pd.DataFrame,
    config: Config,
    scope: str = "target",
    arms: Iterable[str] | None = None,
    *,
    target: str = TARGET,
    widest: float = 0.0,
) -> go.Figure:
    """Share of test images by certified radius, all arms in the same bins; errors and abstentions have their own.

    Args: as of `certified_accuracy`.
    """
    table, cap = of_scope(table, scope, config), _cap(table, config)
    top = max(cap, widest) or config.sigma
    edges = np.linspace(0, top, _BINS + 1)
    last = 1 + max(1, int(np.searchsorted(edges, cap)))  # of shares: the bin of the cap, after wrong and abstain
    width = top / _BINS
    middles = np.concatenate([[-9 * width, -4 * width], (edges[:-1] + edges[1:]) / 2])
    widths = np.concatenate([[2 * width] * 2, np.full(_BINS, 0.94 * width)])
    where = ["wrong class", "abstain", *(f"{low:.3f} to {high:.3f}" for low, high in pairwise(edges))]
    figure, told = go.Figure(), []
    for arm, rows in by_arm(table, arms):
        style, victims, images = ARM_STYLE[arm], rows["victim"].nunique(), rows["image"].nunique()
        correct, abstains = metrics.is_correct(rows), rows["prediction"] == ABSTAIN
        weights = rows["weight"] / rows["weight"].sum()
        shares, counts = (
            np.concatenate([[w[~correct & ~abstains].sum(), w[abstains].sum()], _histogram(rows[correct], w, edges)])
            for w in (weights, pd.Series(1 / victims, index=rows.index))
        )
        figure.add_bar(
            x=middles,
            y=shares,
            width=widths,
            name=style.name,
            customdata=np.stack([np.array(where, dtype=object), counts], axis=1),
            marker=dict(
                color=transparent(style.colour, 0.45),
                line=dict(color=style.colour, width=1.5),
                pattern=dict(shape=style.pattern, fgcolor=style.colour, solidity=0.25, size=7, fillmode="overlay"),
            ),
            hovertemplate=f"{style.name}, %{{customdata[0]}}<br>%{{customdata[1]:.0f}} of {images} images"
            + ("" if scope == "target" else ", %{y:.1%} of the weight")
            + "<extra></extra>",
        )
        told.append(
            f"{style.name}: {shares[0]:.0%} wrong, {shares[1]:.0%} abstain, {shares[last]:.0%} in the cap's bin"
        )
    _cap_line(figure, cap, table, config, top)
    figure.add_vline(x=-width, line=dict(color=FAINT, width=1))
    ticks = _round_ticks(top)
    figure.update_xaxes(
        title_text=RADIUS,
        tickvals=[*middles[:2], *ticks],
        ticktext=["wrong", "abstain", *(f"{tick:g}" for tick in ticks)],
        tickangle=0,
        range=[-12 * width, top + width],
        zeroline=False,
    )
    figure.update_yaxes(title_text="share of test images", tickformat=".0%", rangemode="tozero")
    figure.update_layout(barmode="overlay")
    return finish(
        figure,
        "Certified radii of the test images",
        f"{_images_and_victims(table, scope, target)}; mean over victims",
        f"Histogram of certified radii. {'; '.join(told)}.",
    )


def radius_before_after(
    table: pd.DataFrame, config: Config, arm: str = "poisoned", *, target: str = TARGET, widest: float = 0.0
) -> go.Figure:
    """For each target-class test image its mean radius over victims: clean (x) and of an arm (y). customdata: image.

    Args: widest: as of `certified_accuracy`.
    """
    rows, cap, style = of_scope(table, "target", config), _cap(table, config), ARM_STYLE[arm]
    means = radii_by_image(rows, config)
    top = 1.05 * (max(cap, widest) or config.sigma)
    figure = go.Figure()
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", line=dict(color=GREY, dash="dot"), name="no change", hoverinfo="skip"
    )
    lost = 0
    if {"clean", arm} <= set(means.columns):
        both = means.dropna(subset=["clean", arm])
        lost = int((both[arm] < both["clean"]).sum())
        figure.add_scatter(
            x=both["clean"],
            y=both[arm],
            mode="markers",
            name="test image",
            customdata=both.index.to_numpy()[:, None],
            marker=dict(
                color=style.colour, symbol=style.symbol, size=9, opacity=0.7, line=dict(width=1, color="white")
            ),
            hovertemplate="test image %{customdata[0]}<br>clean %{x:.3f}<br>" + style.name + " %{y:.3f}<extra></extra>",
        )
    shared = dict(range=[-0.02 * top, top], constrain="domain")
    figure.update_xaxes(title_text="mean radius, clean victims (L2, pixel units)", **shared)
    figure.update_yaxes(title_text=f"mean radius, {style.name} victims (L2, pixel units)", scaleanchor="x", **shared)
    figure.update_layout(clickmode="event+select", dragmode="pan")
    return finish(
        figure,
        f"Each test image: clean against {style.name}",
        f"{_images_and_victims(rows, 'target', target)}; below the diagonal: radius lost; wrong or abstain: 0",
        f"Scatter of mean certified radius, clean against {style.name}: {lost} of {len(means)} images lost radius.",
        legend=False,
        height=500,
    )


def radii_by_image(table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Mean over victims of each target-class test image's radius (0 where wrong or abstaining): a column per arm."""
    rows = of_scope(table, "target", config)
    values = rows.assign(value=metrics.correct_radius(rows))
    return values.pivot_table(index="image", columns="arm", values="value", aggfunc="mean")


def _cap(table: pd.DataFrame, config: Config) -> float:
    return radius_cap(n=int(table["n"].iloc[0]), sigma=config.sigma, alpha=config.certification.alpha)


def _cap_line(figure: go.Figure, cap: float, table: pd.DataFrame, config: Config, widest: float) -> None:
    """The largest radius that n draws can show, with its formula, on an axis that ends at widest."""
    n, alpha = int(table["n"].iloc[0]), config.certification.alpha
    figure.add_vline(x=cap, line=dict(color=GREY, dash="dot", width=2))
    text = f"cap σ·Φ⁻¹(α<sup>1/n</sup>) = {cap:.3f}" if cap else f"n = {n} is too small for α = {alpha:g}: all abstain"
    side = _side(cap, widest)
    figure.add_annotation(x=cap, y=1, yref="paper", text=text, showarrow=False, xanchor=side, yanchor="bottom")


def _side(cap: float, widest: float) -> str:
    """Which end of its words stands at the cap: they have more room on the other side of it."""
    return "right" if cap > widest / 2 else "left"


def _images_and_victims(table: pd.DataFrame, scope: str, target: str) -> str:
    images = table["image"].nunique()
    victims = sorted(set(table.groupby("arm")["victim"].nunique()))
    number = "–".join(str(v) for v in dict.fromkeys((victims[0], victims[-1]))) if victims else "0"
    of = f"of {target}" if scope == "target" else "of all classes, weighted as the test set"
    return f"{images} test images {of}, {number} victim{'s' * (number != '1')} per arm, n = {int(table['n'].iloc[0]):,}"


def _radii(found: np.ndarray, cap: float) -> np.ndarray:
    """Where certified accuracy changes: 0, every radius that occurs, and just beyond the cap."""
    radii = np.unique(np.concatenate([[0.0], found]))
    if len(radii) > _MOST_RADII:
        radii = np.linspace(0, radii[-1], _MOST_RADII)
    return np.append(radii, max(cap, radii[-1]) * 1.0001 + 1e-9)


def _round_ticks(top: float) -> list[float]:
    """Three to five, from 0."""
    step = 10.0 ** np.floor(np.log10(top))
    step *= 0.5 if top < 2 * step else 1 if top < 5 * step else 2
    return [round(float(tick), 9) for tick in np.arange(0, top, step)]


def _histogram(rows: pd.DataFrame, weights: pd.Series, edges: np.ndarray) -> np.ndarray:
    inside = rows["radius"].to_numpy().clip(edges[0], edges[-1])
    return np.histogram(inside, bins=edges, weights=weights.loc[rows.index].to_numpy())[0]


def _spread(found: dict[str, Any]) -> str:
    """mean ± sd of n victims, as a reader expects it."""
    if found["sd"] is None:
        return f"{found['mean']:.3f} (one victim)"
    return f"{found['mean']:.3f} ± {found['sd']:.3f} ({len(found['seeds'])} victims)"
