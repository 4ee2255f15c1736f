"""What all charts share: how an arm looks, title and legend, the text alternative, and how they are saved."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from engine.choices import ARMS

RADIUS = "certified radius (L2, pixel units)"
# For plotly_chart(config=…). Buttons of tools for the pointer alone would only be stops on the keyboard's way.
SAVE = {
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg", "scale": 2},
    "modeBarButtonsToRemove": ["zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d"],
}
SIGNED_SCALE = ("#4B2E83", "#9E8CC4", "#F7F7F7", "#F2A65A", "#A84B00")  # darker … unchanged … brighter
TEXT, FINE, AXIS, TITLE = 14, 13, 15, 18  # pixels, to be read from the back of a room
GREY = "rgba(128,128,128,0.9)"
FAINT = "rgba(128,128,128,0.45)"
_CLEAR = "rgba(0,0,0,0)"
_WIDTH = 66  # characters of a subtitle's line, which Plotly does not break: what the narrowest chart has room for


@dataclass(frozen=True)
class Style:
    """How an arm looks, everywhere: never told apart by colour alone."""

    name: str
    colour: str
    dash: str
    symbol: str
    pattern: str
    in_words: str  # all of that, for a reader


ARM_STYLE = {  # colours: Okabe and Ito 2008
    "clean": Style("clean", "#0072B2", "solid", "circle", "", "blue, solid line, circle"),
    "poisoned": Style("poisoned", "#D55E00", "dash", "diamond", "/", "vermillion, dashed line, diamond, stripes"),
    "random_noise": Style("random noise", "#009E73", "dot", "square", "x", "green, dotted line, square, crosses"),
    "shuffled_signs": Style(
        "shuffled signs", "#CC79A7", "dashdot", "triangle-up", ".", "pink, dash-dotted line, triangle, dots"
    ),
}


def alt(figure: go.Figure) -> str:
    """The figure's text alternative, for those who cannot see it."""
    return str((figure.layout.meta or {}).get("alt", ""))


def finish(
    figure: go.Figure,
    title: str,
    subtitle: str,
    text: str,
    *,
    legend: bool = True,
    height: int = 440,
    top: int | None = None,
    bottom: int | None = None,
) -> go.Figure:
    """What all figures share: title, sizes of text, transparent ground, legend below, the text alternative.

    Args:
        top: of the margin; by default what title and subtitle take, and a line of labels on the plot's upper edge.
    """
    lines = textwrap.wrap(subtitle, width=_WIDTH)
    if top is None:
        top = (66 if title else 30) + 18 * len(lines)
    heading = dict(text=title, font_size=TITLE, subtitle=dict(text="<br>".join(lines), font_size=FINE))
    place = dict(y=1, yref="container", yanchor="top", pad_t=8)
    figure.update_layout(
        title=heading | place if title else None,
        font_size=TEXT,
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        showlegend=legend,
        legend=dict(orientation="h", yref="container", yanchor="bottom", y=0, x=0, font_size=TEXT),
        margin=dict(l=10, r=16, t=top, b=bottom if bottom is not None else 112 if legend else 10),
        height=height,
        modebar=dict(bgcolor=_CLEAR, color=GREY, activecolor=GREY),  # on light and on dark ground
        meta=dict(alt=text),
    )
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(tickfont_size=TEXT, title_font_size=AXIS)
    return figure.update_annotations(font_size=TEXT)


def by_arm(table: pd.DataFrame, arms: Iterable[str] | None) -> list[tuple[str, pd.DataFrame]]:
    """(arm, its rows) in the order of ARMS, for those wanted and present."""
    wanted = set(ARMS if arms is None else arms)
    parts = ((arm, table[table["arm"] == arm]) for arm in ARMS if arm in wanted)
    return [(arm, rows) for arm, rows in parts if len(rows)]


def transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
