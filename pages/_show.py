"""Figures and pictures as every page shows them: with a text alternative, and with the same tools."""

from typing import Any

import numpy as np
import streamlit as st

from engine.figures import pictures, style


def chart(figure: Any, key: str, **options: Any) -> Any:
    return st.plotly_chart(figure, key=key, config=style.SAVE, alt=style.alt(figure), **options)


def picture(content: np.ndarray, *, scale: int, caption: str | None, text: str, **options: Any) -> None:
    st.image(pictures.png(content, scale=scale), caption=caption, output_format="PNG", alt=text, **options)
