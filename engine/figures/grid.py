"""How the drop grows with the budget, along one line of the gallery's grid."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from engine.choices import ARMS
from engine.figures.style import ARM_STYLE, FAINT, GREY, finish


def drop_by_epsilon(drops: Mapping[float, Mapping[str, Mapping[str, Any]]], chosen: float) -> go.Figure:
    """Relative drop of the target class's ACR against ε (L∞), an arm a line, mean ± sd over victims. customdata: ε.

    Args:
        drops: for each ε the `relative_drop` of a report.
        chosen: the ε that the rest of the page shows.
    """
    figure, told = go.Figure(), []
    for arm in ARMS[1:]:
        points = {epsilon: found[arm] for epsilon, found in sorted(drops.items()) if arm in found}
        points = {epsilon: value for epsilon, value in points.items() if value["mean"] is not None}
        if not points:
            continue
        style = ARM_STYLE[arm]
        figure.add_scatter(
            x=list(points),
            y=[value["mean"] for value in points.values()],
            error_y=dict(type="data", array=[value["sd"] or 0.0 for value in points.values()], thickness=1.5, width=5),
            customdata=[[epsilon] for epsilon in points],
            mode="lines+markers",
            name=style.name,
            line=dict(color=style.colour, dash=style.dash, width=2.5),
            marker=dict(color=style.colour, symbol=style.symbol, size=[14 if e == chosen else 8 for e in points]),
            hovertemplate=f"{style.name}, ε = %{{x:~g}}<br>drop %{{y:.1%}} ± %{{error_y.array:.1%}}<extra></extra>",
        )
        told.append(f"{style.name}: " + ", ".join(f"{v['mean']:.0%} at ε {e:g}" for e, v in points.items()))
    figure.add_vline(x=chosen, line=dict(color=GREY, dash="dot", width=1.5))
    figure.add_hline(y=0, line=dict(color=FAINT, width=1))
    top = max([0.1, *drops]) * 1.08
    figure.update_xaxes(title_text="budget ε (L∞, pixel units of [0, 1])", range=[0, top], tickvals=sorted(drops))
    figure.update_yaxes(title_text="drop in ACR", tickformat=".0%", range=[-0.08, 1.0])
    figure.update_layout(clickmode="event+select", dragmode=False)
    return finish(
        figure,
        "Drop in ACR by budget ε",
        "mean ± sd over victims, paired by seed; dotted: the ε shown on this page",
        f"Relative drop of the target class's average certified radius against epsilon. {'; '.join(told)}.",
    )
