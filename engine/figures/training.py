"""Plotly figure of how victims trained: loss and accuracy over epochs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.figures.style import ARM_STYLE, by_arm, finish
from engine.report.sentences import several

_PANELS = {"loss": "mean training loss", "accuracy": "accuracy under noise"}


def training_curves(records: Sequence[dict[str, Any]]) -> go.Figure:
    """Each victim's mean training loss over an epoch and its accuracy at the end, and the mean over an arm's victims.

    Accuracy is the base classifier's, on one noisy copy of each of up to 300 training images.

    Args:
        records: as run.metrics("training") gives them; a value that was not finite is None, and a gap.
    """
    frame = pd.DataFrame(list(records), columns=["victim", "epoch", *_PANELS])
    frame[["arm", "k"]] = frame["victim"].str.rsplit("-", n=1, expand=True)
    figure = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=list(_PANELS.values()))
    told, victims = [], 0
    for arm, of_arm in by_arm(frame, None):  # not those that fine-tuning begins with
        style, lines = ARM_STYLE[arm], {f", victim {k}": rows.set_index("epoch") for k, rows in of_arm.groupby("k")}
        victims += len(lines)
        lines[""] = mean = of_arm.groupby("epoch")[list(_PANELS)].mean()
        for who, values in lines.items():
            for column, panel in enumerate(_PANELS, start=1):
                figure.add_scatter(
                    x=values.index,
                    y=values[panel],
                    mode="lines+markers" if len(values) == 1 else "lines",
                    name=style.name + who,
                    line=dict(color=style.colour, dash=style.dash, width=1 if who else 3),
                    opacity=0.5 if who else 1,
                    legendgroup=arm,
                    showlegend=not who and column == 1,
                    hovertemplate=f"{style.name}{who or ', mean'}<br>epoch %{{x}}: %{{y:.4g}}<extra></extra>",
                    row=1,
                    col=column,
                )
        told.append(f"{style.name}: loss {mean['loss'].iloc[-1]:.3g}, accuracy {mean['accuracy'].iloc[-1]:.0%}")
    figure.update_xaxes(title_text="epoch")
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(tickformat=".0%", col=2)
    return finish(
        figure,
        "Training of the victims",
        f"{several(victims, 'victim')}; thin: one, thick: mean of its arm. Accuracy: base classifier, one noisy copy "
        "of each of up to 300 training images",
        f"Training loss and accuracy of {several(victims, 'victim')} over epochs. Means over victims at the end: "
        f"{'; '.join(told)}.",
    )
