"""The lesson's questions: predict first, then reveal. The same list makes the page and the teachers' sheet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from engine import spread
from engine.certification import radius_cap
from engine.records import Run
from engine.report import sentences
from engine.studies import results
from pages import _lesson_runs, _shared


@dataclass(frozen=True)
class Question:
    """A question with a few answers to choose from; shows: what widgets of the view are set to with the answer."""

    ask: str
    options: tuple[str, ...]
    right: int
    because: str
    shows: Mapping[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> range:
        """What one may predict."""
        return range(len(self.options))


def noise(run: Run) -> Question:
    strong = 4 * run.config.sigma
    return Question(
        f"The victim was trained with noise of σ = {run.config.sigma:g}. You give it copies with σ = {strong:g}. What "
        "does it do?",
        (
            "It answers as before: noise does not change the shape",
            "It still gives an answer for every copy, but the answers differ",
            "It says that it does not know",
        ),
        1,
        "A network always answers, sure or not. Under strong noise its answers scatter. Abstaining needs a vote, "
        "which is the next step.",
        shows={"lesson_sigma": strong},
    )


def voting(run: Run) -> Question:
    return Question(
        "Of 100 noisy copies, 90 got the same answer. You draw 10 times as many. What happens to this share?",
        (
            "It climbs towards 100 %",
            "It stays near 90 %, and you know it more precisely",
            "It falls to 9 %",
        ),
        1,
        "The share estimates one fixed number: the probability that a noisy copy of this image gets this answer. More "
        "draws do not change that number; they only measure it more precisely.",
    )


def bound(run: Run) -> Question:
    settings, sigma = run.config.certification, run.config.sigma
    caps = [radius_cap(n=n, sigma=sigma, alpha=settings.alpha) for n in (settings.n, 10 * settings.n)]
    return Question(
        f"All n = {settings.n} copies agree. How large a radius can be certified?",
        (
            "As large as you like: no copy disagreed",
            "None: you must draw until one disagrees",
            "Below a ceiling, which rises slowly with n",
        ),
        2,
        f"{settings.n} votes that agree do not prove that the next one will. The bound "
        r"$p_{\text{lower}}$ = α^(1/n) stays below 1, so the radius stays below the cap: "
        f"{caps[0]:.3f} here (L2, pixel units), and {caps[1]:.3f} with ten times as many draws.",
    )


def training(run: Run) -> Question:
    return Question(
        "Any classifier can be certified by letting noisy copies vote. So why train with noise?",
        (
            "No reason: the guarantee is the same",
            "Noisy copies agree more often, so the radii become larger",
            "Without it the certificates would be invalid",
        ),
        1,
        "A certificate is valid however the classifier was trained. But its size comes from the votes, and a victim "
        "that has seen noise in training usually gets more noisy copies right. This is the weak spot: the size of the "
        "guarantee depends on the training data.",
    )


def one_level(run: Run) -> Question:
    return Question(
        "A classifier is trained. Then somebody moves one training point. What happens to its boundary?",
        (
            "Nothing, until the classifier is trained again",
            "It moves away from the point at once",
            "It moves towards the point at once",
        ),
        0,
        "Training data act only through training. The current classifier never sees the moved point; the next one, "
        "trained on it, will. So an attacker has to foresee what training will make of the data.",
    )


def two_levels(run: Run) -> Question:
    return Question(
        "The attacker wants to know where to move a training point. It takes the gradient of the mean radius, with the "
        "victim as it is now. Is that enough?",
        (
            "Yes, if the step is small",
            "Yes, if the victim is retrained after each step",
            "No: this gradient is zero",
        ),
        2,
        "With the weights fixed, a training point does not appear in the radius of a test point at all. Its whole "
        "effect goes through the retrained weights. The hypergradient follows that path: it asks how the solution of "
        "training moves.",
    )


def images(run: Run) -> Question:
    compared = brightness_study()
    ask = (
        "PACD optimises each pixel of the poison. Making all images of a digit brighter by ε optimises nothing. Which "
        "takes more of the radius, in the mean over the ten digits of MNIST?"
    )
    options = ("PACD", "No difference can be told", "Making them brighter")
    if compared is None:
        return Question(ask, options, 2, "An attack need not be clever.")
    pacd, brighter = (spread.summary([row[attack]["mean"] for row in compared]) for attack in RIVALS)
    beyond = spread.difference(brighter, pacd)
    low, high = spread.interval(beyond) or (0.0, 0.0)
    return Question(
        ask,
        options,
        2 if low > 0 else 0 if high < 0 else 1,
        f"In the mean of {len(compared)} digits brightness takes {100 * brighter['mean']:.0f} %, PACD "
        f"{100 * pacd['mean']:.0f} % (difference: {sentences.interval(beyond)} points, 95 % over digits). An attack "
        "need not be clever. What both have in common: all images of the class change in much the same way.",
    )


def why(run: Run) -> Question:
    target = sentences.target_of(run)
    return Question(
        "Which version of the training image does the **poisoned** victim certify with the larger radius?",
        ("The clean one", "The poisoned one", "Both alike: no pixel differs by more than ε"),
        1,
        f"All poisoned images of {target} carry much the same pattern, and the victim has learned to lean on it: a "
        "**shortcut**. Test images lack the pattern. The victim still recognises most of them, but noise sways it more "
        "easily, and a less clear vote is a smaller radius.",
    )


def can_you_tell(run: Run) -> Question:
    return Question(
        "Somebody gets 7 of 10 right. What can you conclude?",
        (
            "They can tell poisoned images from clean ones: 7 is more than half of 10",
            "They cannot tell: 3 of 10 were wrong",
            "Neither: 10 trials are too few to say",
        ),
        2,
        "Somebody who only guesses gets 7 or more of 10 right about one time in six (17 % of the time). So this is no "
        "proof that they can tell, nor that they cannot: the 95 % interval of the hit rate is 35 to 93 %.",
    )


def transfer(run: Run) -> Question:
    found = transfer_study()
    if found is None:
        return Question(
            "Poison was made against one way of training, and the victims are trained another way. What do you expect?",
            ("No effect at all", "Some effect: similar victims learn similar things", "A larger effect"),
            1,
            "Poison works through what training learns from images, and different ways of training learn much the "
            "same.",
        )
    row, columns = surprising_row(found), results.titles(found, "columns")
    cells = [results.cell_at(found, row, column) for column in range(len(columns))]
    drops = [cell["drop"]["mean"] for cell in cells]
    told = ", ".join(f"{name}: {sentences.percent(cell['drop'])}" for name, cell in zip(columns, cells, strict=True))
    best = max(range(len(drops)), key=drops.__getitem__)
    made_against = results.titles(found, "rows")[row]
    return Question(
        f"Poison was made against {made_against}. Victims of which training procedure lose the largest share of their "
        "radius?",
        tuple(columns),
        best,
        f"Drops. {told}. "
        + (
            "Not the procedure the attacker targeted: another one can be more vulnerable."
            if columns[best] != made_against
            else "The procedure the attacker targeted; but the others lose too."
        ),
    )


def defender(run: Run) -> Question:
    first, *others = _lesson_runs.defences(run)
    known = of_the_same_data([first, *others])
    if not known:
        return Question(
            "Can you tell from its certificates that a model was trained on poisoned data?",
            (
                "Yes: they become invalid",
                "Yes: the model abstains on poisoned images",
                "No. They are still valid, just smaller",
            ),
            2,
            "A certificate is about changes of a test image, not about the training data, and each one still holds. "
            "You would notice only if you knew how large the radii should be, from clean data of the same kind.",
        )
    best = min(range(len(known)), key=lambda k: known[k]["drop"]["mean"])
    told = ", ".join(f"{row['name']}: {sentences.percent(row['drop'])}" for row in known)
    return Question(
        f"With no defence {sentences.target_of(run)} loses {sentences.percent(first['drop'])} of its radius. The "
        "attacker controls the same data as before. Which defence leaves the smallest drop?",
        tuple(row["name"] for row in known),
        best,
        f"Drops left. {told[0].upper()}{told[1:]}. "
        + (
            "The two grey levels are so far apart that a change of ε rarely reaches the other one."
            if known[best]["name"] == _lesson_runs.SQUEEZING["one-bit"]
            else "It depends on the data: a defence may also backfire."
        ),
    )


def of_the_same_data(defences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those to choose among: which need no other data, by name; none if there is nothing to choose."""
    known = sorted((row for row in defences if row["field"] in _lesson_runs.ON_THE_SAME_DATA), key=itemgetter("name"))
    return known if len(known) > 1 else []


def limits(run: Run) -> Question:
    return Question(
        "This run shows some drop. Which sentence does it support?",
        (
            "Certified classifiers lose that share of their radius when they are poisoned",
            "In this setting (data, class, ε, what the attacker knows) the radius fell by that much, give or take its "
            "spread",
            "Randomized smoothing breaks its promise",
        ),
        1,
        "One data set, one class, a small network, few draws, and an attacker who controls all images of the class and "
        "knows how victims train. Other settings give other numbers; each certificate holds in all of them.",
    )


RIVALS = ("pacd", "brightness")


def brightness_study() -> list[dict[str, Any]] | None:
    """Of the study of PACD against brightness with the most target classes, for each class: PACD's cell, with the
    name of the class, the study's id, and the drop of each of RIVALS; None if there is no such study."""
    rows: list[dict[str, Any]] = []
    for found in _shared.exhibited():
        columns, titles = results.names(found, "columns"), results.titles(found, "rows")
        by_class = found["study"]["rows"]["label"] == "target class"
        done, cells = results.finished(found)
        if by_class and done == cells and len(titles) > len(rows) and {*RIVALS} <= {*columns}:
            rows = []
            for row, title in enumerate(titles):
                each = {attack: results.cell_at(found, row, columns.index(attack)) for attack in RIVALS}
                drops = {attack: cell["drop"] for attack, cell in each.items()}
                rows.append(each["pacd"] | drops | {"name": title, "study": found["id"]})
    return rows or None


def study_of_kind(kind: str) -> dict[str, Any] | None:
    """The first complete study of this kind that comes with the project."""
    for found in _shared.exhibited():
        done, cells = results.finished(found)
        if found["study"]["kind"] == kind and done == cells:
            return found
    return None


def transfer_study() -> dict[str, Any] | None:
    """Of transfer between training procedures."""
    return study_of_kind("transfer-procedure")


def surprising_row(found: dict[str, Any]) -> int:
    """A row whose largest drop is elsewhere than where the attacker aimed; the first if there is none."""
    rows, columns = (results.names(found, axis) for axis in ("rows", "columns"))
    for row, name in enumerate(rows):
        drops = [results.cell_at(found, row, column)["drop"]["mean"] for column in range(len(columns))]
        if columns[drops.index(max(drops))] != name:
            return row
    return 0
