"""Inspect's test images: which of them poisoning cost most, sorted, filtered, to choose from."""

import pandas as pd
import streamlit as st

from engine import datasets
from engine.figures import pictures
from engine.figures.style import ARM_STYLE
from engine.records import Run
from engine.report import numbers, sentences
from pages import _images, _links, _pinned, _selection, _shared, _wall

SORTS = {  # name → (column, ascending)
    "radius lost, most first": ("lost", False),
    "radius lost, least first": ("lost", True),
    "clean radius, largest first": ("clean", False),
    "poisoned radius, smallest first": ("poisoned", True),
    "poisoned victims that lost it, most first": ("lost_with", False),
    "number": ("image", True),
}
ALL, EVERY, SOME, FLIPPED = "all", "lost with every poisoned victim", "lost with some", "flipped to another class"
FILTERS = {  # name → rows of `numbers.losses`
    ALL: lambda found: found.index == found.index,
    EVERY: lambda found: found["certified"] & found["lost_with"].eq(found["victims"]),
    SOME: lambda found: found["certified"] & found["lost_with"].between(1, found["victims"] - 1),
    FLIPPED: lambda found: found["flipped"] > 0,
}


@st.cache_data(max_entries=16, show_spinner=False)
def losses(directory: str, stamp: int) -> pd.DataFrame:
    return numbers.losses(_shared.certificates(directory, stamp))


def losses_of(run: Run) -> pd.DataFrame:
    """`numbers.losses` of a run, or the end of the page while it has no certificates."""
    _shared.open_certificates(run)
    return losses(str(run.directory), (run.directory / "certificates.parquet").stat().st_mtime_ns)


def in_order(run: Run) -> list[int]:
    """All certified test images: the target class first, most radius lost first."""
    found = losses_of(run)
    if found.empty:
        table = _shared.open_certificates(run)
        found = table.groupby("image")[["label"]].first().assign(lost=0.0)
    other = found["label"] != run.config.threat.target_class
    order = found.assign(other=other).sort_values(["other", "lost"], ascending=[True, False], kind="stable")
    return [int(image) for image in order.index]


def chosen(run: Run, found: pd.DataFrame) -> pd.DataFrame:
    """The images that pass the reader's filters, sorted."""
    names, target = sentences.class_names_of(run), run.config.threat.target_class

    def in_words(label: int) -> str:
        return "all classes" if label < 0 else datasets.class_in_words(run.config.dataset, label, names)

    _links.check(test_sort=list(SORTS), test_filter=list(FILTERS))
    first, second, third, fourth = st.columns([3, 3, 2, 2], vertical_alignment="bottom")
    with first:
        order = str(st.selectbox("Sort by", list(SORTS), key="test_sort", bind="query-params"))
    with second:
        kind = str(st.selectbox("Certificate", list(FILTERS), key="test_filter", bind="query-params"))
    with third:
        labels = [target, -1, *(label for label in sorted(set(found["label"])) if label != target)]
        _selection.forget("test_label", labels)
        label = st.selectbox("True class", labels, format_func=in_words, key="test_label")
    found = found[FILTERS[kind](found)]
    if label >= 0:
        found = found[found["label"] == label]
    with fourth:
        answers = [-1, *sorted(set(found.loc[found["flipped"] > 0, "flipped_to"]))]
        _selection.forget("test_answer", answers)
        answer = st.selectbox(
            "Flipped to", answers, format_func=lambda k: "any" if k < 0 else in_words(k), key="test_answer",
            help="The wrong class that most poisoned victims answer. Those that abstain answer none.",
        )  # fmt: skip
    if answer >= 0:
        found = found[found["flipped_to"] == answer]
    column, ascending = SORTS[order]
    return found.rename_axis("image").sort_values(column, ascending=ascending, kind="stable")


def view(run: Run) -> None:
    everything = losses_of(run)
    if everything.empty:
        st.info(
            "This run has no attack, so no image lost radius."
            if run.config.attack.name == "none"
            else "Radius lost needs certificates of clean and poisoned victims; this partial run lacks one of them."
        )
        st.stop()
    _wall_and_table(run, everything)


def _wall_and_table(run: Run, everything: pd.DataFrame) -> None:
    left, right = st.columns([2, 3], vertical_alignment="bottom", gap="large")
    with left:
        image = _selection.test_image(in_order(run), "Test image (target class first, most radius lost first)")
    with right:
        _selection.row(run, "test", image)
    found = chosen(run, everything)
    row = everything.loc[image] if image in everything.index else None
    if row is not None:
        flips = f"; {int(row['flipped'])} of them answer another class" if row["flipped"] else ""
        st.markdown(
            f"**Test image {image}**: mean radius {row['clean']:.3f} with clean victims, {row['poisoned']:.3f} with "
            f"poisoned ones, radius lost {row['lost']:.3f}. Not certified by {int(row['lost_with'])} of "
            f"{int(row['victims'])} poisoned victims{flips}."
        )
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    with right:
        number = _wall.page_number("test_page", len(found))
    with left:
        st.markdown(
            f"**{len(found)} of {len(everything)} certified test images.** Lost: mean radius of clean victims minus "
            "that of poisoned victims (L2, pixel units; wrong or abstaining counts as 0)."
        )
    part = _wall.part(found, number)
    if part.empty:
        st.info("No test image matches these filters.")
        return
    available = datasets.available(run.config.dataset, _shared.data_root())
    if available:
        images, _ = _images.images_of(run, train=False)
        hover = [
            f"test image {k}<br>clean {row['clean']:.3f}, poisoned {row['poisoned']:.3f}<br>lost {row['lost']:+.3f}"
            for k, row in part.iterrows()
        ]
        _wall.wall(pictures.shown(images[part.index.to_numpy()]), part.index.to_numpy(), hover, "test_wall", "test")
        st.caption(
            "These are test images. Nobody changed them; only the training set was poisoned. Point at one for its "
            "numbers, click it to choose it."
        )
        _pinned.show(run, limit=run.config.threat.epsilon or 1e-3)
    arms = [arm for arm in ARM_STYLE if arm in found.columns]
    names = {arm: ARM_STYLE[arm].name for arm in arms}
    counts = {"lost_with": "victims that lost it", "flipped": "victims that flipped it"}
    st.dataframe(
        found[["label", "lost", *arms, *counts]].rename(columns=names | counts).rename_axis("test image"),
        column_config={name: st.column_config.NumberColumn(format="%.3f") for name in ["lost", *names.values()]},
        height=320,
        alt="Mean certified radius of each chosen test image by arm, and how many poisoned victims lost or flipped it",
    )
    st.caption(f"Means over {everything['victims'].max()} poisoned and as many clean victims.")
    if not available:
        _images.images_of(run, train=False)
