"""How the lesson ends: what the reader knows now, steps worth another look, and ways on."""

from collections.abc import Callable, Sequence

import streamlit as st

from pages import _lesson_questions, _shared

KNOWN = (
    "Noise and votes give any classifier **certificates**: radii within which no change of an image alters the answer.",
    "How large they are depends on training, and so on the **training data**.",
    "Changing one class's training images by at most ε **shrinks its radii**, and it need not take a clever attack.",
    "It works by a **shortcut**: victims lean on a pattern that test images lack. It carries over to other victims.",
    "The certificates **still hold**: unless you know how large they should be, nothing gives a poisoned model away.",
)


def end(wrong: Sequence[tuple[int, str]], go: Callable[[int], None]) -> None:
    """Args: number and title of each step whose prediction was wrong; a callback that opens the step of a number."""
    with st.container(border=True):
        st.markdown("**What you know now**\n" + "\n".join(f"- {line}" for line in KNOWN))
        if wrong:
            st.markdown("**Worth another look**, where your prediction was wrong:")
            with st.container(horizontal=True):
                for number, title in wrong:
                    st.button(f"{number}. {title}", on_click=go, args=(number,), key=f"lesson_look_{number}")
        st.markdown("**Go on**")
        with st.container(horizontal=True):
            _shared.page_link("pages/try.py", "Draw your own digit")
            compared = _lesson_questions.brightness_study()
            if compared is not None:
                most = max(compared, key=lambda row: row["pacd"]["mean"])
                words = f"Explore {most['name']}, which loses most"
                _shared.page_link("pages/explore.py", words, digit=str(most["target_class"]))
            rivals = _lesson_questions.study_of_kind("rivals")
            if rivals is not None:
                count = len(rivals["study"]["rows"]["points"])
                _shared.page_link("pages/studies.py", f"{count} attacks at the same ε", study=rivals["id"])
