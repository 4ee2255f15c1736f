"""What a run asked for, did and means, in sentences (Markdown): app and report say the same."""

from typing import Any

from engine import datasets, paper, spread
from engine.choices import CONTROLS
from engine.config import Config, arms_of, lower_level
from engine.records import Run
from engine.report import wording
from engine.status import ACTIVE

TARGET = "the target class"  # where its name is not given
HOW_TO_READ = (
    "**Average certified radius (ACR)**: the mean, over the certified test images of a class, of the L2 radius within "
    "which the smoothed classifier provably keeps its correct answer; wrong answers and abstentions count as 0.",
    "**A certificate** holds with probability at least 1 − α for its one image; nothing corrects for the number of "
    "images.",
    "**The cap** σ·Φ⁻¹(α^(1/n)): no radius can exceed it with n draws, so ACR at different n must not be compared.",
    "**Relative drop**: 1 − ACR(arm)/ACR(clean), for victims of the same seed, then mean ± standard deviation over "
    "seeds.",
    "**Random noise** and **shuffled signs** are controls: they change the same images within the same budget, but "
    "independently in each pixel of each image. What an attack takes beyond theirs is due to structure in its changes "
    "(shared between neighbouring pixels, or between images) or to their direction. To tell these apart, compare with "
    "attacks that optimise nothing: *Brightness* and the fixed patterns.",
)


def with_spread(value: dict[str, Any] | None) -> str:
    """A summary of report.json as "mean ± standard deviation"."""
    if not value or value["mean"] is None:
        return "–"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{spread}"


def percent(share: dict[str, Any] | None, digits: int = 0) -> str:
    """The same of a share, as "46 ± 7 %"."""
    if not share or share["mean"] is None:
        return "–"
    spread = "" if share["sd"] is None else f" ± {100 * share['sd']:.{digits}f}"
    return f"{100 * share['mean']:z.{digits}f}{spread} %"


def of_hundred(value: float, digits: int = 0) -> str:
    """A plain share, as "46 %"."""
    return f"{100 * value:z.{digits}f} %"


def typeset(share: dict[str, Any] | None) -> str:
    """`percent` with a minus sign, for texts and figures."""
    return percent(share).replace("-", "−")


def drop_of(report: dict[str, Any], arm: str) -> str:
    """The arm's drop, as `percent`, and of how many pairs of victims it is where some have none."""
    found = report["relative_drop"].get(arm)
    return percent(found) + (of_pairs(len(found["seeds"]), report["config"]["victim_seeds"]) if found else "")


def of_pairs(counted: int, pairs: int) -> str:
    """ " (1 of 2 pairs)", where a pair has no drop: a clean victim without a radius has none to lose; else ""."""
    return f" ({counted} of {pairs} pairs)" if counted < pairs else ""


def interval(found: dict[str, Any] | None) -> str:
    """A share's 95 % interval in per cent, for sentences: "−10 to 57"."""
    return spread.percent(found).replace("-", "−")


def duration(seconds: float) -> str:
    """Rounded, in the largest unit of which there are two: "90 s", "3 min", "40 h", "3 days"."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def time_left(seconds: float | None) -> str:
    """The end of a line of progress: ", about 3 min left", or nothing where that is not known."""
    return "" if seconds is None else f", about {duration(seconds)} left"


def headline(report: dict[str, Any]) -> str:
    """What happened, in one sentence with the report's numbers."""
    config, arms = report["config"], report["arms"]
    target, drop = report.get("target_name", TARGET), report["relative_drop"].get("poisoned")
    acr = {arm: values["average_certified_radius"]["target"] for arm, values in arms.items()}
    if config["attack"]["name"] == "none" and "clean" in acr:
        found = with_spread(acr["clean"])
        return f"Clean victims certify {target} with an average certified radius (ACR) of **{found}**."
    if drop and drop["mean"] is None and drop.get("seeds") == [] and {"clean", "poisoned"} <= set(acr):
        found = with_spread(acr["clean"])
        return f"Clean victims certify nothing of {target} (ACR {found}), so there was nothing to lose."
    if not drop or drop["mean"] is None:
        return f"No victim of the clean and the poisoned arm is certified yet, so the drop for {target} is unknown."
    clean, poisoned = (spread.among(acr[arm], drop) for arm in ("clean", "poisoned"))  # in the pairs of the drop
    radii = f"an average certified radius (ACR) of **{with_spread(poisoned)}** instead of **{with_spread(clean)}**"
    pairs = of_pairs(len(drop["seeds"]), config["victim_seeds"])
    if drop["mean"] < -1:
        return (
            f"Retrained victims certify {target} with {radii}{pairs}. Some clean victim certifies almost nothing, so "
            "that a relative drop means nothing."
        )
    share = f"**{_size(drop)} {'less' if drop['mean'] >= 0 else 'more'}**{pairs}"
    if (clean["mean"] - poisoned["mean"]) * drop["mean"] < 0:  # a mean of ratios is not the ratio of means
        share = f"averaged over pairs of victims of the same seed, however, {share}"
    noise, control = report["relative_drop"].get("random_noise"), ""
    if noise and noise["mean"] is not None:
        takes, pairs = (
            "adds" if noise["mean"] < -0.005 else "takes",
            of_pairs(len(noise["seeds"]), config["victim_seeds"]),
        )
        limits = spread.interval(noise)
        unsure = ", which cannot be told from 0" if limits and limits[0] <= 0 <= limits[1] else ""
        control = f" Random noise of the same ε {takes} {_size(noise)}{pairs}{unsure}."
    beyond = spread.difference(drop, noise)  # the surer of the two where there is a control: victims are paired
    if len(drop["seeds"]) == 1:
        control += " One pair of victims cannot say how sure that is."
    elif drop["mean"] > 0 and not spread.is_above_zero(beyond or drop):
        than_noise = " beyond that" * bool(beyond)
        if not spread.is_telling(beyond or drop):
            control += f" That is too few victims to tell whether the poison takes anything{than_noise}."
        else:
            found = f"{interval(beyond)} points more" if beyond else f"{interval(drop)} %"
            victims, other = several(len(drop["seeds"]), "victim"), "random noise's" if beyond else "0"
            control += f" With {victims} the drop cannot be told from {other} (95 %: {found})."
    victims = "fine-tuned" if config["training"]["fine_tune_epochs"] else "retrained"
    return f"After poisoning, {victims} victims certify {target} with {radii}: {share}.{control}"


def _size(share: dict[str, Any]) -> str:
    """Of a drop or a gain, with its standard deviation over pairs of victims if there are several."""
    return percent(share | {"mean": abs(share["mean"])})


def several(count: int, what: str) -> str:
    """ "1 victim", "3 victims"."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def numbers_line(report: dict[str, Any]) -> str:
    """What the numbers of `headline` are: norm, unit, draws, seeds."""
    settings, victims = report["config"]["certification"], report["config"]["victim_seeds"]
    return (
        f"Radii: L2, pixel units of [0, 1], each wrong with probability ≤ α = {settings['alpha']}. "
        + ("One victim for each arm; " if victims == 1 else f"Mean ± standard deviation over {victims} victim seeds; ")
        + f"{report['certified_images']['target']} test images, "
        f"n = {settings['n']:,} draws each."
    )


def victims_line(report: dict[str, Any]) -> str:
    """How sure drops are as means over victims, and how far the poison's is beyond its controls'; "" of one victim."""
    drops = report["relative_drop"]
    told = [f"{_arm(arm)} {interval(found)} %" for arm, found in drops.items() if spread.is_telling(found)]
    beyond = {arm: spread.difference(drops.get("poisoned"), drops.get(arm)) for arm in CONTROLS}
    told += [
        f"poisoned beyond {_arm(arm)} {interval(found)} points"
        for arm, found in beyond.items()
        if spread.is_telling(found)
    ]
    if not told and any(spread.interval(found) for found in drops.values()):
        return "Too few victims for an interval of the drops that would say anything."
    return f"Drops, 95 % intervals over victims (Student's t, pairs of one seed): {', '.join(told)}." if told else ""


def _arm(name: str) -> str:
    return name.replace("_", " ")


def class_names_of(run: Run) -> tuple[str, ...]:
    """The names of the run's classes: as its report has them, else as the data set does, if it can be read."""
    if names := (run.report or {}).get("class_names"):
        return tuple(names)
    try:
        return datasets.class_names(run.config.dataset, run.data_root)
    except datasets.DatasetUnavailable:
        return ()


def target_of(run: Run) -> str:
    """The run's target class in words: "digit 8", "ship"."""
    config = run.config
    return datasets.class_in_words(config.dataset, config.threat.target_class, class_names_of(run))


def dataset_words(config: Config) -> str:
    found = datasets.describe(config.dataset)
    return found[0].upper() + found[1:]


def settings_line(run: Run) -> str:
    """What was asked for, in one line."""
    config, threat, attack = run.config, run.config.threat, wording.attack_of(run.config)
    share = "" if threat.attacker_share == 1 else f", attacker's share {of_hundred(threat.attacker_share)}"
    epochs = config.training.fine_tune_epochs
    victims = (
        f"{wording.procedure_line(config.procedure)}, {wording.ARCHITECTURE_NAMES[config.architecture]}, "
        f"σ = {config.sigma:g}{f', fine-tuned for {epochs} epochs' if epochs else ''}"
    )
    if config.attack.name == "none":
        return f"{dataset_words(config)}; no attack; victims: {victims}; seed {config.seed}."
    return (
        f"{dataset_words(config)}; {attack.name} on {target_of(run)}, ε = {threat.epsilon:g} (L∞, pixel units of "
        f"[0, 1]), poison fraction {of_hundred(threat.poison_fraction)}{share}; victims: {victims}; seed {config.seed}."
    )


def is_the_papers(config: Config) -> bool:
    """Whether it is a setting of the authors, apart from target class and what only this project has.

    That is seeds, controls, images of other classes, and the precision of products.
    """

    def as_ours(authors: Config) -> Config:
        own: dict[str, Any] = {name: getattr(config, name) for name in ("seed", "victim_seeds", "controls")}
        own["threat"] = authors.threat.model_copy(update={"target_class": config.threat.target_class})
        training = authors.training.model_copy(update={"precision": config.training.precision})
        others = {"other_images": config.certification.other_images}
        certification = authors.certification.model_copy(update=others)
        return authors.model_copy(update=own | {"training": training, "certification": certification})

    settings = (
        paper.paper(procedure, data, config.sigma)
        for data in paper.DATASETS
        for procedure in paper.PROCEDURES
        if config.sigma in paper.SIGMAS[data]
    )
    return any(config == as_ours(authors) for authors in settings)


def limits_line(run: Run, *, what_if: bool = False) -> str:
    """What a reader must know before trusting a number of this run: sizes, draws, seeds, data set, whole or partial.

    Args: what_if: whether it stands beside numbers at another n or α than the run's.
    """
    config, settings = run.config, run.config.certification
    state = run.status().state
    partial = f"Still {state}: partial result. " if state in ACTIVE else f"Partial result ({state}). "
    partial *= state != "done"
    other = "" if is_the_papers(config) else " Not the paper's setting."
    certified = (run.report or {}).get("certified_images", {})
    found = certified.get("target", settings.target_images)  # a class may have fewer than were asked for
    return (
        f"{partial}{dataset_words(config)}. {config.data.train_size:,} training images. {found} test images of "
        f"{target_of(run)} and {settings.other_images} of each other class, "
        f"{'recorded with ' * what_if}n = {settings.n:,} draws, "
        f"α = {settings.alpha} for each certificate, σ = {config.sigma}, "
        f"{several(config.victim_seeds, 'victim')} per arm, training precision {config.training.precision}. "
        f"ε is L∞, radii are L2, both in pixel units of [0, 1].{other}"
    )


def threat_model(config: Config, target: str) -> list[str]:
    """What the attacker knows, may do and wants, and the controls: a line of Markdown each."""
    attack = wording.attack_of(config)
    if config.attack.name == "none":
        return ["**No attack**: clean victims are trained and certified as they are, a baseline to compare with."]
    return [
        _knowledge(config),
        _capability(config, attack, target),
        "**Not clean-label**: labels are wrong, and whoever looks sees it. No image changes. Here for contrast only."
        if config.attack.traits.changes_labels
        else "**Clean-label**: no label changes, no image is added or removed; checked before any victim trains.",
        f"**Goal**: victims that {_training(config)} certify {target} with a smaller average certified radius (L2).",
        _controls(config),
    ]


def _believed(config: Config) -> dict[str, tuple[str, str]]:
    """Of what the attacker believes of victims: (what it takes it to be, what it is)."""
    procedure, sigma = lower_level(config)
    believed = {
        "procedure": (wording.procedure_line(procedure), wording.procedure_line(config.procedure)),
        "noise level": (f"σ = {sigma:g}", f"σ = {config.sigma:g}"),
        "architecture": (
            wording.ARCHITECTURE_NAMES[config.attack.surrogate],
            wording.ARCHITECTURE_NAMES[config.architecture],
        ),
    }
    if config.attack.augmentation:
        believed["augmentation"] = (
            f"augmentation {config.attack.augmentation}",
            f"augmentation {config.training.augmentation}",
        )
    return believed


def taken_wrongly(config: Config) -> dict[str, str]:
    """What the attacker believes of victims and is not so, with what is: {"procedure": "MACER"}."""
    return {what: is_so for what, (taken, is_so) in _believed(config).items() if taken != is_so}


def _knowledge(config: Config) -> str:
    share = config.threat.attacker_share
    data = "the training data" if share == 1 else f"{of_hundred(share)} of the training data"
    if not config.attack.traits.surrogates:
        return f"**Knowledge**: {data}, labels included; nothing of how victims train, and no test image."
    differs = [f"{what} ({is_so})" for what, is_so in taken_wrongly(config).items()]
    truth = (
        f"; victims differ in {' and '.join(differs)}, so the poison has to transfer"
        if differs
        else ", as victims are trained"
    )
    return (
        f"**Knowledge**: {data}, and held-out images of the class, on which no victim trains; no victim's weights, and "
        f"no test image. Its surrogates: {', '.join(taken for taken, _ in _believed(config).values())}{truth}."
    )


def _capability(config: Config, attack: wording.Attack, target: str) -> str:
    threat = config.threat
    held = "" if threat.attacker_share == 1 else " in its hands"
    which = f"{of_hundred(threat.poison_fraction)} of the training images of {target}{held}"
    if config.attack.name == "from-file":
        which = f"those images of a file that are among {which}"
    elif config.attack.file:
        which += ", starting from an earlier poison"
    if config.attack.traits.changes_labels:
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


def _controls(config: Config) -> str:
    found = [
        {"random_noise": "random noise of the same ε", "shuffled_signs": "the poison with its signs shuffled"}[arm]
        for arm in arms_of(config)
        if arm in wording.CONTROL_NAMES
    ]
    if not found:
        return "**Controls**: none, so the effect of the attack cannot be told from that of random noise of its budget."
    same = not config.attack.traits.changes_pixels
    signs = "; with unchanged pixels, shuffled signs are the clean data" if same else ""
    return f"**Controls**: {', and '.join(found)}, on the same images{signs}."
