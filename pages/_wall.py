"""A wall of images to choose from: a page of tiles at a time, sorted and filtered before."""

import numpy as np
import pandas as pd
import streamlit as st

from engine.figures import images, pictures
from pages import _selection
from pages._show import chart

COLUMNS, ROWS = 12, 5
PER_PAGE = COLUMNS * ROWS


def page_number(key: str, count: int) -> int:
    """Which page of a wall of so many images, from 0."""
    pages = max(1, -(-count // PER_PAGE))
    _selection.forget(key, range(1, pages + 1))
    return int(st.number_input(f"Page, 1 to {pages}", 1, pages, key=key)) - 1


def part(table: pd.DataFrame, page: int) -> pd.DataFrame:
    return table.iloc[page * PER_PAGE :][:PER_PAGE]


def within(table: pd.DataFrame, column: str, name: str, key: str) -> pd.DataFrame:
    """Only the rows whose value lies between two that the reader chooses."""
    low, high = float(table[column].min()), float(table[column].max())
    low, high = np.floor(low * 1000) / 1000, np.ceil(high * 1000) / 1000
    if not low < high:
        st.caption(f"{name}: the same for all.")
        return table
    kept = st.session_state.get(key)
    if kept is not None and not (low <= kept[0] <= kept[1] <= high):
        del st.session_state[key]
    least, most = st.slider(f"Only with {name} from … to …", low, high, (low, high), key=key, format="%.3f")
    return table[table[column].between(least, most)]


def wall(tiles: np.ndarray, numbers: np.ndarray, hover: list[str], key: str, kind: str) -> None:
    """Tiles [N, H, W] or [N, H, W, 3] of numbered images of a kind; a click chooses one, the chosen one is framed."""
    rows = max(1, -(-len(tiles) // COLUMNS))
    scale = pictures.enlargement(tiles.shape[1], pixels=84)
    content = pictures.png(pictures.mosaic(tiles, columns=COLUMNS), scale=scale)
    found = _selection.pinned()
    figure = images.picture_wall(
        content,
        columns=COLUMNS,
        rows=rows,
        numbers=[int(n) for n in numbers],
        hover=hover,
        chosen=st.session_state.get(_selection.KEYS[kind]),
        pinned=found[2] if found is not None and found[1] == kind else None,
    )
    chart(figure, key, on_select=lambda: _selection.take(key, kind), selection_mode="points")
