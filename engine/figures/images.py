"""Plotly figures of images to look at closely: one scale for all, values under the pointer, tiles to choose."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.figures import pictures
from engine.figures.style import ARM_STYLE, FINE, GREY, SIGNED_SCALE, TEXT, by_arm, finish

GREY_SCALE = ("#000000", "#FFFFFF")
_MOST_TICKS = 20  # classes beyond which only the true and the selected ones are written out


def selected(points: Sequence[Any]) -> Any:
    """The first value of customdata of the first selected point that has any, which Streamlit sends as {"0": value};
    None where none has.
    """
    for point in points:
        if data := point.get("customdata"):
            return data["0"] if isinstance(data, dict) else data[0]
    return None


def image_triple(clean: np.ndarray, poisoned: np.ndarray, *, limit: float) -> go.Figure:
    """Two images [C, H, W] on one scale 0…1 and their difference on a signed scale ±limit; hover reads all three."""
    clean, poisoned = np.asarray(clean, dtype=np.float32), np.asarray(poisoned, dtype=np.float32)
    delta = poisoned - clean
    figure = make_subplots(1, 3, horizontal_spacing=0.02, subplot_titles=("clean", "poisoned", "change δ"))
    values = np.moveaxis(np.concatenate([clean, poisoned, delta]), 0, -1)  # [H, W, 3·C]
    read_out = _read_out(len(clean))
    if len(clean) == 1:
        pixels = [
            go.Heatmap(z=shown[0], coloraxis=axis, customdata=values, hovertemplate=read_out)
            for shown, axis in ((clean, "coloraxis"), (poisoned, "coloraxis"), (delta, "coloraxis2"))
        ]
        figure.update_layout(
            coloraxis=dict(colorscale=GREY_SCALE, cmin=0, cmax=1, colorbar=_scale_below(0.33, 0.6, (0, 0.5, 1))),
            coloraxis2=dict(
                colorscale=SIGNED_SCALE,
                cmin=-limit,
                cmax=limit,
                colorbar=_scale_below(0.835, 0.3, (-limit, 0, limit), tickformat="~g"),
            ),
        )
    else:
        maps = [*pictures.shown(np.stack([clean, poisoned])), *pictures.shown_changes(delta[None], limit=limit)]
        pixels = [go.Image(z=shown, customdata=values, hovertemplate=read_out) for shown in maps]
    for column, trace in enumerate(pixels, start=1):
        figure.add_trace(trace, row=1, col=column)
        _square(figure, column)
    return finish(
        figure,
        "",
        "",
        "Clean image, poisoned image and their signed difference; the largest change is "
        f"{np.abs(delta).max(initial=0):.3f}.",
        legend=False,
        height=340 if len(clean) == 1 else 310,
        bottom=50 if len(clean) == 1 else 10,
    )


def _scale_below(x: float, length: float, ticks: Sequence[float], **options: Any) -> dict[str, Any]:
    """A colour bar below the pictures that it belongs to, where a narrow window has room for it."""
    return dict(
        orientation="h", x=x, len=length, y=-0.02, yanchor="top", thickness=12, outlinewidth=0, tickvals=list(ticks),
        tickfont_size=TEXT, **options,
    )  # fmt: skip


def blink(clean: np.ndarray, poisoned: np.ndarray) -> go.Figure:
    """One picture that its own button switches between two images [C, H, W] in the browser, one second each."""
    figure, names = go.Figure(), ("clean", "poisoned")
    shades = dict(colorscale=GREY_SCALE, zmin=0, zmax=1, showscale=False, hovertemplate="%{z:.4f}<extra></extra>")
    images = [np.asarray(image, dtype=np.float32) for image in (clean, poisoned)]
    if len(clean) == 1:
        traces = [go.Heatmap(z=image[0], **shades) for image in images]
    else:
        traces = [go.Image(z=shown, hoverinfo="x+y+color") for shown in pictures.shown(np.stack(images))]
    figure.add_trace(traces[0])
    figure.frames = [
        go.Frame(name=name, data=[trace], layout=dict(annotations=[_caption_in(name)]))
        for name, trace in zip(names, traces, strict=True)
    ]
    timing = dict(frame=dict(duration=1000, redraw=True), transition=dict(duration=0), fromcurrent=False)
    button = dict(method="animate")
    figure.update_layout(
        annotations=[_caption_in("clean")],
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
                    dict(label="Blink", args=[["poisoned", "clean"] * 15, timing], **button),
                    dict(label="Stop", args=[[None], timing | dict(mode="immediate")], **button),
                    *(dict(label=name, args=[[name], timing | dict(mode="immediate")], **button) for name in names),
                ],
            )
        ],
    )
    _square(figure)
    return finish(
        figure, "", "", "Clean and poisoned image in the same place, in turn.", legend=False, height=420, top=30
    )


def vote_histogram(rows: pd.DataFrame, class_names: Sequence[str] = ()) -> go.Figure:
    """Votes per class of one test image under noise, by arm.

    Args:
        rows: certificate rows of one image and one victim of each arm, with label, selected_class and estimation_votes.
        class_names: of all classes; their numbers stand for them otherwise.
    """
    arms = {arm: part.iloc[0] for arm, part in by_arm(rows, None)}
    image, n = f"test image {int(rows['image'].iloc[0])}", int(rows["n"].iloc[0])
    whose = "one victim per arm" if len(arms) > 1 else "one victim"
    shares = {arm: np.asarray(row["estimation_votes"]) / row["estimation_votes"].sum() for arm, row in arms.items()}
    return shares_by_class(
        {image: shares},
        class_names or [str(k) for k in range(len(next(iter(shares.values()))))],
        title=f"Votes under noise, {image}",
        subtitle=f"{n:,} draws, {whose}; ★ selected class; a certificate needs more than half",
        quantity="share of the noise draws",
        selected={(image, arm): int(row["selected_class"]) for arm, row in arms.items()},
        label=int(rows["label"].iloc[0]),
    )


def shares_by_class(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    class_names: Sequence[str],
    *,
    title: str,
    subtitle: str,
    quantity: str,
    selected: Mapping[tuple[str, str], int] | None = None,
    label: int | None = None,
) -> go.Figure:
    """How each arm's victim classifies one or several images: bars by class.

    Where no more than two arms share the room, bars have their numbers in per cent.

    Args:
        panels: name of the image → arm → shares [K] in [0, 1].
        quantity: what the shares are, for the axis.
        selected: (image, arm) → the class that its votes chose; draws the line of one half, that a certificate needs.
        label: the true class, where there is one.
    """
    figure = make_subplots(
        len(panels), 1, vertical_spacing=0.2, subplot_titles=list(panels) if len(panels) > 1 else None
    )
    told, selected = [], selected or {}
    for row, (image, arms) in enumerate(panels.items(), start=1):
        for arm, shares in arms.items():
            style, best = ARM_STYLE[arm], int(np.argmax(shares))
            stars = ["★" if selected.get((image, arm)) == k else "" for k in range(len(shares))]
            numbers = [f"{100 * share:.0f}" if share >= 0.005 and len(arms) < 3 else "" for share in shares]
            figure.add_bar(
                x=np.arange(len(shares)),
                y=shares,
                name=style.name,
                legendgroup=arm,
                showlegend=row == 1,
                text=["<br>".join(filter(None, mark)) for mark in zip(stars, numbers, strict=True)],
                textposition="outside",
                textangle=0,
                textfont_size=FINE if len(arms) < 3 else 10,  # stars of neighbouring bars must not overlap
                constraintext="none",
                cliponaxis=False,
                hovertext=list(class_names),
                marker=dict(
                    color=style.colour,
                    pattern=dict(shape=style.pattern, fgcolor="white", solidity=0.3, fillmode="overlay"),
                ),
                hovertemplate=f"{style.name}, %{{hovertext}}<br>%{{y:.2%}}<extra></extra>",
                row=row,
                col=1,
            )
            told.append(f"{image}, {style.name}: {class_names[best]} with {shares[best]:.0%}")
    if selected:
        figure.add_hline(y=0.5, line=dict(color=GREY, dash="dot"), row="all", col="all")
    ticks = [f"<b>{name}<br>true</b>" if k == label else name for k, name in enumerate(class_names)]
    if len(ticks) > _MOST_TICKS:
        shown = {label, *selected.values()}
        ticks = [tick if k in shown else "" for k, tick in enumerate(ticks)]
    figure.update_xaxes(tickvals=list(range(len(ticks))), ticktext=ticks)
    figure.update_yaxes(range=[0, 1.2], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%", title_text=quantity)
    figure.update_layout(bargap=0.12)
    several_arms = len({arm for arms in panels.values() for arm in arms}) > 1
    text = f"{title}. {'; '.join(told)}."
    return finish(figure, title, subtitle, text, height=210 + 230 * len(panels), bottom=76, legend=several_arms)


def picture_wall(
    png: bytes,
    *,
    columns: int,
    rows: int,
    numbers: Sequence[int],
    hover: Sequence[str],
    chosen: int | None = None,
    pinned: int | None = None,
) -> go.Figure:
    """A mosaic picture with an invisible mark on each tile, to hover over and to select. customdata: the number.

    The chosen image has a solid frame, the pinned one a dotted one.
    """
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
    for number, look in ((pinned, dict(color="#0072B2", dash="dot")), (chosen, dict(color="#D55E00"))):
        if number in list(numbers):
            row, column = divmod(list(numbers).index(number), columns)
            figure.add_shape(type="rect", x0=column, y0=row, x1=column + 1, y1=row + 1, line=dict(width=3, **look))
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


def _read_out(channels: int) -> str:
    """What the pointer says of a pixel whose customdata are its values in clean, poisoned and δ, C of each."""
    lines = ["row %{y}, column %{x}"]
    for part, (name, form) in enumerate((("clean", ".4f"), ("poisoned", ".4f"), ("δ", "+.4f"))):
        values = (f"%{{customdata[{part * channels + channel}]:{form}}}" for channel in range(channels))
        lines.append(f"{name} {', '.join(values)}")
    return "<br>".join(lines) + "<extra></extra>"


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
