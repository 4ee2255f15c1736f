"""A figure of several runs on the same axes, a colour and a marker each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from engine import metrics
from engine.figures.style import ARM_STYLE, RADIUS, finish
from engine.report.sentences import several

RUN_STYLE = (  # colour and marker of each of several runs: none of an arm's colours, which would say more
    ("#8e6bbf", "circle"),
    ("#d19000", "diamond"),
    ("#56b4e9", "square"),
    ("#8a6d3b", "triangle-up"),
    ("#7f8c9b", "x"),
    ("#a3a500", "cross"),
    ("#c0392b", "star"),
    ("#2aa5a0", "hexagon"),
)


def several_runs(runs: Mapping[str, tuple[pd.DataFrame, float]]) -> go.Figure:
    """Certified accuracy of the clean and the poisoned arm of several runs, means over victims, on the same axes.

    Runs whose clean victims have the same certificates have one clean curve, which else would hide the others.

    Args:
        runs: by their labels, as many as RUN_STYLE has: (table of the rows that count, cap of its radii).
    """
    figure, told = go.Figure(), []
    clean = {label: _clean(table) for label, (table, _) in runs.items()}
    sharing = {label: [name for name in runs if clean[name].equals(clean[label])] for label in runs}
    radii = np.linspace(0, max(cap for _, cap in runs.values()) * 1.02, 301)
    for (label, (table, cap)), (colour, marker) in zip(runs.items(), RUN_STYLE, strict=False):
        for arm, dash in (("clean", "solid"), ("poisoned", "dash")):
            rows = table[table["arm"] == arm]
            owners = sharing[label] if arm == "clean" else [label]
            if rows.empty or owners[0] != label:  # drawn already
                continue
            of_all = len(runs) == len(owners) > 1
            whose = f"{arm}, shared" if of_all else f"{' and '.join(owners)}: {arm}"
            curves = [metrics.certified_accuracy(part, radii) for _, part in rows.groupby("victim")]
            mean = np.mean(curves, axis=0)
            figure.add_scatter(
                x=radii,
                y=mean,
                mode="lines+markers",
                name=f"{whose} ({several(len(curves), 'victim')})",
                line=dict(color=ARM_STYLE[arm].colour if of_all else colour, dash=dash, shape="vh", width=2.5),
                marker=dict(symbol=marker, size=9, maxdisplayed=8),
                hovertemplate="%{y:.1%}",
            )
            told.append(f"{whose}: {mean[0]:.0%} at 0")
        figure.add_vline(x=cap, line=dict(color=colour, dash="dot", width=1.5))
    figure.update_xaxes(title_text=f"radius r: {RADIUS} at least r", range=[0, radii[-1] or 1])
    figure.update_yaxes(title_text="certified accuracy (approximate)", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(hovermode="x unified")
    return finish(
        figure,
        "Certified accuracy at radius r, several runs",
        "",
        f"Certified accuracy against radius of several runs. {'; '.join(told)}.",
        height=430 + 48 * len(runs),
        bottom=80 + 48 * len(runs),
    )


def _clean(table: pd.DataFrame) -> pd.DataFrame:
    """What curves are made of."""
    return table.loc[table["arm"] == "clean", ["victim", "image", "label", "prediction", "radius"]].reset_index(
        drop=True
    )
