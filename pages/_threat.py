"""The threat model's card."""

import streamlit as st

from engine.config import Config
from engine.report.sentences import threat_model

NOT = "**Not clean-label**"  # anyone can see it, so it stands out


def card(config: Config, target: str) -> None:
    """Args: target is the target class in words."""
    text = "\n".join(f"- {line}" for line in threat_model(config, target))
    with st.container(border=True):
        st.markdown("**Threat model**")
        st.markdown(text.replace(NOT, f":red[:material/visibility: {NOT}]"))
