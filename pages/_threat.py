"""The threat model in words: what the attacker knows, may do, wants, and what is held against it."""

import streamlit as st

from engine.config import Config, arms_of, lower_level
from pages import _words


def card(config: Config, target: str) -> None:
    """Args: target is the target class in words."""
    with st.container(border=True):
        st.markdown("**Threat model**")
        st.markdown("\n".join(f"- {line}" for line in lines(config, target)))


def lines(config: Config, target: str) -> list[str]:
    attack = _words.attack_of(config)
    if config.attack.name == "none":
        return ["**No attack**: clean victims are trained and certified as they are, a baseline to compare with."]
    return [
        _knowledge(config, attack),
        _capability(config, attack, target),
        ":red[:material/visibility: **Not clean-label**]: labels are wrong, and whoever looks sees it. No image "
        "changes. Here for contrast only."
        if attack.labels
        else "**Clean-label**: no label changes, no image is added or removed; checked before any victim trains.",
        f"**Goal**: victims that {_training(config)} certify {target} with a smaller average certified radius (L2).",
        _controls(config, attack),
    ]


def _knowledge(config: Config, attack: _words.Attack) -> str:
    share = config.threat.attacker_share
    data = "the training data" if share == 1 else f"{share:.0%} of the training data"
    if not attack.surrogate:
        return f"**Knowledge**: {data}, labels included; nothing of how victims train, and no test image."
    procedure, sigma = lower_level(config)
    believed = {
        "procedure": _words.procedure_line(procedure),
        "noise level": f"σ = {sigma:g}",
        "architecture": _words.ARCHITECTURE_NAMES[config.attack.surrogate],
    }
    true = [
        _words.procedure_line(config.procedure),
        f"σ = {config.sigma:g}",
        _words.ARCHITECTURE_NAMES[config.architecture],
    ]
    differs = [
        f"{what} ({is_so})" for (what, taken), is_so in zip(believed.items(), true, strict=True) if taken != is_so
    ]
    truth = (
        f"; victims differ in {' and '.join(differs)}, so the poison has to transfer"
        if differs
        else ", as victims are trained"
    )
    return (
        f"**Knowledge**: {data}; no victim's weights, and no test image. Its surrogates: "
        f"{', '.join(believed.values())}{truth}."
    )


def _capability(config: Config, attack: _words.Attack, target: str) -> str:
    threat = config.threat
    held = "" if threat.attacker_share == 1 else " in its hands"
    which = f"{threat.poison_fraction:.0%} of the training images of {target}{held}"
    if attack.labels:
        return f"**Capability**: {attack.name.partition(' (')[0]} on {which}: {attack.changes}; no pixel changes."
    return (
        f"**Capability**: {attack.name} on {which}: {attack.changes}; no pixel changes by more than "
        f"ε = {threat.epsilon:g} (L∞, pixel units of [0, 1])."
    )


def _training(config: Config) -> str:
    epochs = config.training.fine_tune_epochs
    if not epochs:
        return "train from scratch on it"
    return f"were trained on clean data and are fine-tuned on it for {epochs} epoch{'s' * (epochs != 1)}"


def _controls(config: Config, attack: _words.Attack) -> str:
    found = [
        {"random_noise": "random noise of the same ε", "shuffled_signs": "the poison with its signs shuffled"}[arm]
        for arm in arms_of(config)
        if arm in _words.CONTROL_NAMES
    ]
    if not found:
        return "**Controls**: none, so nothing tells the attack's direction from its mere size."
    signs = "; with unchanged pixels, shuffled signs are the clean data" if attack.labels else ""
    return f"**Controls**: {', and '.join(found)}, on the same images{signs}."
