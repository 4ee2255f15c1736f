"""The drop in ACR, arm by arm: the headline number of a run, under one name on every page."""

from typing import Any

import streamlit as st

from engine.choices import ARMS
from engine.figures.style import ARM_STYLE
from engine.report import sentences


def cards(report: dict[str, Any], what_if: str = "") -> None:
    """Args: what_if: at which n and α, where these are not the recorded."""
    drops = report["relative_drop"]
    shown = [arm for arm in ARMS if arm in drops]
    for place, arm in zip(st.columns(len(shown)), shown, strict=True):
        found = drops[arm]
        if found["mean"] is None:
            meaning = "Clean victims have ACR 0: nothing to lose."
        else:
            meaning = (
                "1 − ACR / ACR of the clean victim of the same seed, target class; mean ± standard deviation over "
                f"{sentences.several(len(found['seeds']), 'victim seed')}. Seed by seed: "
                f"{', '.join(sentences.of_hundred(value, 1) for value in found['seeds'])}."
            )
        place.metric(
            f"Drop in ACR, {ARM_STYLE[arm].name}",
            sentences.drop_of(report, arm),
            f"what if {what_if}" if what_if else None,
            "off",
            delta_arrow="off",
            border=True,
            help=meaning,
        )
