"""What a figure shows, as a table: every series that it plots, point by point."""

from typing import Any

import numpy as np
import pandas as pd


def table(figure: Any) -> pd.DataFrame:
    """Every plotted series of a Plotly figure, a row per point, in the order of drawing.

    Columns: series (its name), panel (of figures with several), x and y (or z by row and column of a map), and error
    where it has error bars. Axis titles stand in the names of x and y where the figure has one panel.
    """
    panels = {getattr(trace, "xaxis", None) or "x" for trace in figure.data}
    parts = []
    for number, trace in enumerate(figure.data, start=1):
        columns = _points(trace)
        if columns:
            name = trace.name or f"series {number}"
            parts.append(pd.DataFrame({"series": name, "panel": getattr(trace, "xaxis", None) or "x", **columns}))
    if not parts:
        return pd.DataFrame(columns=["series", "x", "y"])
    found = pd.concat(parts, ignore_index=True)
    return found if len(panels) > 1 else found.drop(columns="panel").rename(columns=_titles(figure))


def csv(figure: Any) -> str:
    """`table` as CSV."""
    return table(figure).to_csv(index=False)


def _points(trace: Any) -> dict[str, np.ndarray]:
    z = getattr(trace, "z", None)
    if z is not None and np.ndim(z) == 2:
        rows, columns = np.indices(np.shape(z))
        return {"row": rows.ravel(), "column": columns.ravel(), "z": np.asarray(z).ravel()}
    found = {name: np.asarray(value) for name in ("x", "y") if (value := getattr(trace, name, None)) is not None}
    error = getattr(getattr(trace, "error_y", None), "array", None)
    if error is not None:
        found["error"] = np.asarray(error)
    return {name: values for name, values in found.items() if values.ndim == 1}


def _titles(figure: Any) -> dict[str, str]:
    titles = {"x": figure.layout.xaxis.title.text, "y": figure.layout.yaxis.title.text}
    return {name: f"{name}: {' '.join(title.replace('<br>', ' ').split())}" for name, title in titles.items() if title}
