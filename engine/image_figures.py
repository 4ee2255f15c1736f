"""Plotly figures of images to look at closely: one scale for all, values under the pointer, tiles to choose."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.figures import SIGNED_SCALE, finish

GREY_SCALE = [(0.0, "#000000"), (1.0, "#FFFFFF")]


def selected_number(points: Sequence[Any]) -> int | None:
    """The image number (customdata) of the first selected point that has one; Streamlit sends it as {"0": number}."""
    for point in points:
        data = point.get("customdata")
        if data is not None and len(data):
            return int(data["0"] if isinstance(data, dict) else data[0])
    return None


def image_triple(
    clean: np.ndarray, other: np.ndarray, *, limit: float, names: Sequence[str] = ("clean", "poisoned")
) -> go.Figure:
    """Two images [H, W] on one grey scale 0…1 and their difference on a signed scale ±limit; hover reads all three."""
    clean, other = np.asarray(clean, dtype=np.float32), np.asarray(other, dtype=np.float32)
    delta = other - clean
    figure = make_subplots(
        1, 3, horizontal_spacing=0.02, subplot_titles=(names[0], names[1], f"δ = {names[1]} − {names[0]}")
    )
    values = np.stack([clean, other, delta], axis=-1)
    read_out = (
        f"row %{{y}}, column %{{x}}<br>{names[0]} %{{customdata[0]:.4f}}<br>{names[1]} %{{customdata[1]:.4f}}"
        "<br>δ %{customdata[2]:+.4f}<extra></extra>"
    )
    for column, (shown, axis) in enumerate(
        ((clean, "coloraxis"), (other, "coloraxis"), (delta, "coloraxis2")), start=1
    ):
        figure.add_heatmap(z=shown, coloraxis=axis, customdata=values, hovertemplate=read_out, row=1, col=column)
        _square(figure, column)
    bar = dict(thickness=12, len=0.9, outlinewidth=0)
    figure.update_layout(
        coloraxis=dict(colorscale=GREY_SCALE, cmin=0, cmax=1, colorbar=dict(x=1.01, title_text="pixel", **bar)),
        coloraxis2=dict(
            colorscale=_signed_scale(), cmin=-limit, cmax=limit, colorbar=dict(x=1.09, title_text="δ", **bar)
        ),
    )
    return finish(
        figure,
        "",
        "",
        f"{names[0]} image, {names[1]} image and their signed difference; the largest change is "
        f"{np.abs(delta).max(initial=0):.3f}.",
        legend=False,
        height=310,
        top=30,
    )


def blink(clean: np.ndarray, other: np.ndarray, *, names: Sequence[str] = ("clean", "poisoned")) -> go.Figure:
    """One heat map that its own button switches between two images [H, W] in the browser, one second each."""
    figure = go.Figure()
    shades = dict(colorscale=GREY_SCALE, zmin=0, zmax=1, showscale=False, hovertemplate="%{z:.4f}<extra></extra>")
    pictures = [np.asarray(image, dtype=np.float32) for image in (clean, other)]
    figure.add_heatmap(z=pictures[0], **shades)
    figure.frames = [
        go.Frame(name=name, data=[go.Heatmap(z=z, **shades)], layout=dict(annotations=[_caption_in(name)]))
        for name, z in zip(names, pictures, strict=True)
    ]
    timing = dict(frame=dict(duration=1000, redraw=True), transition=dict(duration=0), fromcurrent=False)
    button = dict(method="animate")
    figure.update_layout(
        annotations=[_caption_in(names[0])],
        updatemenus=[
            dict(
                type="buttons",
                direction="right",
                x=0.5,
                xanchor="center",
                y=-0.02,
                yanchor="top",
                font_color="#333333",
                bgcolor="#F0F0F0",
                buttons=[
                    dict(label="Blink", args=[[names[1], names[0]] * 15, timing], **button),
                    dict(label="Stop", args=[[None], timing | dict(mode="immediate")], **button),
                    *(dict(label=name, args=[[name], timing | dict(mode="immediate")], **button) for name in names),
                ],
            )
        ],
    )
    _square(figure)
    return finish(
        figure, "", "", f"{names[0]} and {names[1]} image in the same place, in turn.", legend=False, height=420, top=30
    )


def picture_wall(
    png: bytes, *, columns: int, rows: int, numbers: Sequence[int], hover: Sequence[str], chosen: int | None = None
) -> go.Figure:
    """A mosaic picture with an invisible mark on each tile, to hover over and to select. customdata: the number."""
    places = np.arange(len(numbers))
    x, y = places % columns + 0.5, places // columns + 0.5
    figure = go.Figure()
    figure.add_layout_image(
        source="data:image/png;base64," + base64.b64encode(png).decode(),
        x=0,
        y=0,
        sizex=columns,
        sizey=rows,
        xref="x",
        yref="y",
        sizing="stretch",
        layer="below",
    )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        name="image",
        customdata=np.array(numbers)[:, None],
        text=list(hover),
        hovertemplate="%{text}<extra></extra>",
        marker=dict(symbol="square", size=30, color="rgba(128,128,128,0.01)"),
        selected=dict(marker=dict(color="rgba(213,94,0,0.35)")),
        unselected=dict(marker=dict(opacity=0.01)),
    )
    if chosen in list(numbers):
        place = list(numbers).index(chosen)
        corner = (place % columns, place // columns)
        figure.add_shape(
            type="rect",
            x0=corner[0],
            y0=corner[1],
            x1=corner[0] + 1,
            y1=corner[1] + 1,
            line=dict(color="#D55E00", width=3),
        )
    figure.update_xaxes(visible=False, range=[0, columns], constrain="domain", fixedrange=True)
    figure.update_yaxes(visible=False, range=[rows, 0], scaleanchor="x", constrain="domain", fixedrange=True)
    figure.update_layout(clickmode="event+select", dragmode=False)
    return finish(
        figure,
        "",
        "",
        f"Mosaic of {len(numbers)} images, {columns} in a row.",
        legend=False,
        height=int(76 * rows) + 20,
        top=4,
        bottom=4,
    )


def _square(figure: go.Figure, column: int | None = None) -> None:
    """Square pixels, row 0 on top, no ticks."""
    where = {} if column is None else dict(row=1, col=column)
    anchor = "x" if column in (None, 1) else f"x{column}"
    figure.update_xaxes(visible=False, constrain="domain", **where)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor=anchor, constrain="domain", **where)


def _caption_in(text: str) -> dict[str, Any]:
    return dict(
        text=f"<b>{text}</b>",
        x=0.5,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="center",
        yanchor="bottom",
        showarrow=False,
    )


def _signed_scale() -> list[tuple[float, str]]:
    return [(k / (len(SIGNED_SCALE) - 1), colour) for k, colour in enumerate(SIGNED_SCALE)]
