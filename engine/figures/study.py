"""The heat map of a study, made from its results alone: the drop in each cell, the control beneath it."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from engine.figures import style
from engine.report.sentences import typeset, with_spread
from engine.studies import results

# From nothing to the colour of the poisoned arm and on: lightness alone tells the order.
SCALE = ("#FBF3EC", "#F2C3A0", "#E08A4B", "#B04A00", "#5A2500")
DARK_FROM = 66  # percent, from which white text is read better than black
ROW_HEIGHT = 84  # pixels
MOST_ACROSS = 6  # columns whose texts do not overlap


def heat_map(found: dict[str, Any], chosen: tuple[int, int] | None = None) -> go.Figure:
    """Relative drop in percent, one colour scale from 0 to 100 % for all studies; the chosen (row, column) is framed.

    Where there are more columns than fit, and fewer rows, columns are drawn downwards.
    Its second trace has a marker per cell with customdata (row, column): a heat map itself cannot be clicked.
    """
    names = {axis: results.titles(found, f"{axis}s") for axis in ("row", "column")}
    down, across = "row", "column"
    if len(names["column"]) > max(MOST_ACROSS, len(names["row"])):
        down, across = across, down
    drops = np.full((len(names[down]), len(names[across])), np.nan)
    texts, hovers, inks, places, told = [], [], [], [], []
    for cell in found["cells"]:
        drop = (cell["drop"] or {}).get("mean")
        drops[cell[down], cell[across]] = np.nan if drop is None else 100 * drop
        places.append((cell["row"], cell["column"]))
        texts.append(_text(cell))
        hovers.append(_hover(found, cell))
        inks.append("#888888" if drop is None else "#FFFFFF" if 100 * drop >= DARK_FROM else "#1A1A1A")
        told.append(f"{results.cell_title(found, cell)}: {_words(cell)}")
    figure = go.Figure()
    figure.add_heatmap(
        z=drops,
        x=list(range(len(names[across]))),
        y=list(range(len(names[down]))),
        zmin=0,
        zmax=100,
        colorscale=SCALE,
        colorbar=dict(title=dict(text="Drop in ACR, %", side="right"), thickness=14, outlinewidth=0),
        xgap=3,
        ygap=3,
        hoverinfo="skip",
    )
    same = dict(marker=dict(opacity=0.01))
    figure.add_scatter(
        x=[cell[across] for cell in found["cells"]],
        y=[cell[down] for cell in found["cells"]],
        mode="markers+text",
        text=texts,
        textfont=dict(color=inks, size=13),
        marker=dict(symbol="square", size=56, opacity=0.01, color="#888888"),
        selected=same,
        unselected=same,
        customdata=places,
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    if chosen is not None:
        y, x = chosen if down == "row" else reversed(chosen)
        frame = dict(color="#0072B2", width=4)
        figure.add_shape(type="rect", x0=x - 0.5, x1=x + 0.5, y0=y - 0.5, y1=y + 0.5, line=frame)
    labels = [results.label(found["study"][f"{axis}s"]) for axis in (down, across)]
    ticks = [[_broken(name) for name in names[axis]] for axis in (down, across)]
    still = dict(showgrid=False, zeroline=False, automargin=True)
    figure.update_yaxes(
        tickvals=list(range(len(names[down]))),
        ticktext=ticks[0],
        range=[len(names[down]) - 0.5, -0.5],
        title=dict(text=labels[0], standoff=20),
        **still,
    )
    figure.update_xaxes(
        tickvals=list(range(len(names[across]))),
        ticktext=ticks[1],
        range=[-0.5, len(names[across]) - 0.5],
        side="top",
        tickangle=0,
        title=dict(text=labels[1], standoff=8),
        **still,
    )
    finished, cells = results.finished(found)
    partial = "" if finished == cells else f" PARTIAL: {finished} of {cells} cells."
    figure = style.finish(
        figure,
        "",
        "",
        f"Heat map of the relative drop of the target class's ACR.{partial} {'; '.join(told)}.",
        legend=False,
        height=110 + ROW_HEIGHT * len(names[down]),
        top=70,
    )
    return figure.update_layout(clickmode="event+select", dragmode=False)


def _text(cell: dict[str, Any]) -> str:
    if not cell["drop"]:
        return str(cell["state"])
    partial = "" if cell["complete"] else "<br>(partial)"
    control = f"<br><span style='font-size:11px'>random noise {typeset(cell['control_drop'])}</span>"
    return f"<b>{typeset(cell['drop'])}</b>{control}{partial}"


def _words(cell: dict[str, Any]) -> str:
    if not cell["drop"]:
        return str(cell["state"])
    return f"{typeset(cell['drop'])}, random noise {typeset(cell['control_drop'])}"


def _hover(found: dict[str, Any], cell: dict[str, Any]) -> str:
    lines = [f"<b>{results.cell_title(found, cell)}</b>", _words(cell)]
    if cell["drop"]:
        seeds = ", ".join(f"{100 * value:z.0f} %" for value in cell["drop"]["seeds"]).replace("-", "−")
        lines += [
            f"n = {results.victims(cell)} pairs of victims: {seeds}",
            f"ACR {with_spread(cell['acr_clean'])} → {with_spread(cell['acr_poisoned'])} (L2)",
        ]
    return "<br>".join([*lines, f"seed {cell['seed']}, run {cell['run']}"])


def _broken(name: str) -> str:
    """A long name on two lines."""
    if len(name) <= 18:
        return name
    for separator in (", ", "-", " "):
        head, found, tail = name.partition(separator)
        if found:
            return f"{head}{found.rstrip()}<br>{tail}"
    return name
