"""The glossary of the sidebar: every term and abbreviation of the pages in plain words."""

import streamlit as st

TERMS = {
    "ABX test": "A test of whether people can tell two pictures A and B apart: X is a copy of one of them; of which?",
    "abstain": "To give no answer, because no class has a majority for certain. Counts as wrong, with radius 0.",
    "ACR (average certified radius)": "Mean of the certified radii of test images; wrong answers and abstentions "
    "count as 0. One number for how large the guarantees are.",
    "α (alpha)": "How often a certificate may be wrong: with probability α at most, for each image by itself.",
    "arm": "A group of victims that differ from other groups in their training images only: clean, poisoned, or a "
    "control.",
    "attacker's share": "The part of the training images that is in the attacker's hands.",
    "base classifier": "The network itself, which answers one (noisy) image at a time.",
    "bilevel": "An optimisation inside another: the attacker moves images (upper level) and has to foresee what "
    "training will make of them (lower level). An upper step moves images once, a lower step trains once.",
    "brightness": "An attack without any optimisation: every pixel of the class's training images gets brighter by ε.",
    "cap": "The largest radius that n draws can certify, σ·Φ⁻¹(α^(1/n)), reached when all agree. More draws raise it.",
    "certificate": "A proof, right with probability 1 − α at least, that no change of an image within the radius "
    "changes the answer.",
    "certified accuracy": "Share of test images that are answered right with at least the radius in question.",
    "certified radius": "How far an image may be changed, in L2, before its certificate ends.",
    "clean-label": "An attack that changes images a little and no label, so that nothing looks wrong.",
    "Clopper–Pearson": "An exact interval or bound for a share, seen in so many draws.",
    "confidence": "What a network's output layer says of its own answer, from 0 to 1. Not a guarantee.",
    "control": "The same images, changed within the same budget but independently in each pixel: random noise, or the "
    "poison with shuffled signs. Shows the effect of changes without any common structure.",
    "δ (delta)": "What was added to an image: poisoned minus clean.",
    "digits": "1,797 small images (8 × 8) that come with the program and need no download.",
    "ε (epsilon)": "The most by which any pixel of a training image may be changed (L∞).",
    "fine-tuning": "Training a finished network a little more, on other data.",
    "fork": "A new run that starts from the settings of another one, and remembers which.",
    "hypergradient": "The direction in which a poison image should be moved, when training is repeated after each "
    "move.",
    "L2": "Euclidean length: the root of the sum of squares over all pixels. Radii are measured in it.",
    "L∞": "The largest change of any single pixel. The budget ε is measured in it.",
    "linear solver": "The part of the attack that works out the hypergradient from a large linear system.",
    "MNIST": "70,000 images of handwritten digits (28 × 28), a standard of the field.",
    "n and n0 (draws)": "Numbers of noisy copies that vote: n0 choose the class, n fresh ones bound its share.",
    "p_lower": "The bound: the true share of votes is at least this, with probability 1 − α.",
    "p-value": "How often mere guessing, or mere chance, gets a result at least so good.",
    "PACD": "Poisoning Against Certified Defenses, the attack of this program (Mehra et al., CVPR 2021).",
    "perceptron (MLP)": "A network whose layers are all fully connected.",
    "Φ⁻¹": "Quantile function of the normal distribution: below how many standard deviations a given share of it lies.",
    "pixel units": "Pixels run from 0 (black) to 1 (white); all sizes are told in this unit.",
    "poison": "Training images with their small changes.",
    "poison fraction": "Share of the images of the class, among those that the attacker holds, that may change.",
    "preset": "A set of settings with a name, to start from.",
    "procedure": "How a network is trained to get large radii. Gaussian augmentation: noise on each training image. "
    "SmoothAdv: on noisy images made as hard as possible. MACER: pushes the radius itself up. Consistency: noisy "
    "copies should get like answers. SmoothMix: mixes images with hard ones. Standard: without noise.",
    "PSNR": "Peak signal-to-noise ratio in decibels: the higher, the less visible a change.",
    "randomized smoothing": "Letting many noisy copies of an image vote, and certifying what they agree on.",
    "relative drop": "What part of the ACR is lost: 1 − poisoned/clean, for victims of the same seed.",
    "residual": "How far the linear system of the attack is from being solved: 0 means solved, 1 no better than the "
    "solution 0.",
    "run": "One whole experiment: poison, victims, certificates.",
    "seed": "The number from which all chance of a run follows; the same seed gives the same run.",
    "σ (sigma)": "Noise level: standard deviation of the noise on every pixel.",
    "smoothed classifier": "Gives the answer that most noisy copies of an image get.",
    "soft radius": "A smooth stand-in for the radius that the attacker can differentiate. Not a guarantee.",
    "squeezing": "A defence: training images lose detail (few shades, a median filter), and faint changes with it.",
    "SSIM": "Structural similarity of two images: 1 means identical.",
    "Student's t": "Gives the interval that a mean over few values lies in, with 95 %: wide where they are few.",
    "study": "A whole grid of runs that answers one question.",
    "surrogate": "A network that the attacker trains for itself, to try poison on.",
    "target class": "The class whose radii the attacker wants to be small.",
    "training precision": "How exactly victims' training is computed: float32 keeps about seven digits; fast "
    "multiplies in bfloat16, which keeps about three, where the processor has it.",
    "transfer": "Poison that was made on one kind of network works on another.",
    "victim": "A network trained on the (poisoned) images, which the attacker never sees.",
}


def panel() -> None:
    """A button in the sidebar of every page."""
    if st.button("Glossary", icon=":material/menu_book:", key="open glossary", width="stretch"):
        window()


@st.dialog("Glossary", width="large")
def window() -> None:
    found = matching(st.text_input("Find a term", key="glossary filter"))
    st.markdown("\n\n".join(f"**{term}** – {TERMS[term]}" for term in found) or "No term matches.")


def matching(wanted: str) -> list[str]:
    """The terms that have these words, or whose meanings do."""
    return [term for term, text in TERMS.items() if wanted.strip().lower() in f"{term} {text}".lower()]
