"""What all charts share: how an arm looks, title and legend, the text alternative, and how they are saved."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from engine.config import ARMS

RADIUS = "certified radius (L2, pixel units)"
# For plotly_chart(config=…). Buttons of tools for the pointer alone would only be stops on the keyboard's way.
SAVE = {
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg", "scale": 2},
    "modeBarButtonsToRemove": ["zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d"],
}
SIGNED_SCALE = ("#4B2E83", "#9E8CC4", "#F7F7F7", "#F2A65A", "#A84B00")  # darker … unchanged … brighter
GREY = "rgba(128,128,128,0.9)"
FAINT = "rgba(128,128,128,0.45)"
_CLEAR = "rgba(0,0,0,0)"


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
    height: int = 420,
    top: int = 104,
    bottom: int | None = None,
) -> go.Figure:
    """What all figures share: title, transparent ground, legend below, the text alternative."""
    figure.update_layout(
        title=dict(text=title, subtitle=dict(text=_wrapped(subtitle), font_size=12)) if title else None,
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        showlegend=legend,
        legend=dict(orientation="h", yref="container", yanchor="bottom", y=0, x=0),
        margin=dict(l=10, r=16, t=top, b=bottom if bottom is not None else 96 if legend else 10),
        height=height,
        modebar=dict(bgcolor=_CLEAR, color=GREY, activecolor=GREY),  # on light and on dark ground
        meta=dict(alt=text),
    )
    return figure


def _wrapped(text: str, width: int = 78) -> str:
    """Two lines where one is too long: Plotly does not wrap."""
    if len(text) <= width:
        return text
    middle = text.rfind(" ", 0, width)
    return f"{text[:middle]}<br>{text[middle + 1 :]}"


def by_arm(table: pd.DataFrame, arms: Iterable[str] | None) -> list[tuple[str, pd.DataFrame]]:
    """(arm, its rows) in the order of ARMS, for those wanted and present."""
    wanted = set(ARMS if arms is None else arms)
    parts = ((arm, table[table["arm"] == arm]) for arm in ARMS if arm in wanted)
    return [(arm, rows) for arm, rows in parts if len(rows)]


def transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
