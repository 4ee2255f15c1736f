"""The lesson's questions: predict first, then reveal. The same list makes the page and the teachers' sheet."""

from dataclasses import dataclass
from typing import Any

from engine import spread
from engine.certification import radius_cap
from engine.records import Run
from engine.report import sentences
from engine.studies import exhibits, results


@dataclass(frozen=True)
class Choice:
    """A question with a few answers to choose from."""

    ask: str
    options: tuple[str, ...]
    right: int
    because: str

    @property
    def allowed(self) -> range:
        """What one may predict."""
        return range(len(self.options))


@dataclass(frozen=True)
class Guess:
    """A question for a percentage; `right` is in percent."""

    ask: str
    right: float
    because: str
    near: float = 10.0  # percentage points within which a guess was good

    @property
    def allowed(self) -> range:
        """What one may predict."""
        return range(101)


Question = Choice | Guess


def noise(run: Run) -> Question:
    return Choice(
        f"The victim was trained with noise of σ = {run.config.sigma:g}. You give it copies with four times as much. "
        "What does it do?",
        (
            "It answers as before: noise changes no shape",
            "It still answers each copy, but the copies get different answers",
            "It says that it does not know",
        ),
        1,
        "A base classifier always answers, sure or not. With much noise its answers scatter over the classes. Only the "
        "smoothed classifier, which lets many copies vote, can abstain.",
    )


def voting(run: Run) -> Question:
    return Choice(
        "Of 100 noisy copies, 90 got the same answer. You draw 10 times as many. What happens to that share?",
        (
            "It climbs towards 100 %",
            "It stays near 90 %, and you know it more exactly",
            "It falls to 9 %",
        ),
        1,
        "The share estimates one fixed number: the probability that a noisy copy of this image gets this answer. More "
        "draws do not change that number, they only tell it more exactly. That is why more draws are worth their time.",
    )


def bound(run: Run) -> Question:
    settings, sigma = run.config.certification, run.config.sigma
    caps = [radius_cap(n=n, sigma=sigma, alpha=settings.alpha) for n in (settings.n, 10 * settings.n)]
    return Choice(
        f"All of n = {settings.n} copies got the same answer. How large a radius can be certified?",
        (
            "As large as you like: nobody disagreed",
            "None: one must draw until somebody disagrees",
            "One with a ceiling, which rises slowly with n",
        ),
        2,
        f"{settings.n} agreeing votes do not prove that the next one agrees. The bound p_lower = α^(1/n) stays below "
        f"1, so the radius stays below the cap: {caps[0]:.3f} here (L2, pixel units), and {caps[1]:.3f} with ten "
        "times as many draws.",
    )


def training(run: Run) -> Question:
    return Choice(
        "Any classifier can be certified by letting noisy copies vote. What is training with noise good for, then?",
        (
            "Nothing: the guarantee is the same",
            "Noisy copies agree more often, so radii become larger",
            "Without it the certificates would be invalid",
        ),
        1,
        "The certificate is valid for every classifier, however it was trained. But its size comes from the votes, "
        "and a victim that has seen noise in training mostly gets more noisy copies right. Here lies the weak spot: "
        "the size of a guarantee rests on the training data.",
    )


def one_level(run: Run) -> Question:
    return Choice(
        "A classifier is fixed. Somebody moves one training point. What happens to the boundary it has learnt?",
        (
            "Nothing, until it is trained again",
            "It moves away from the point at once",
            "It moves towards the point at once",
        ),
        0,
        "Training data act through training only. The classifier of now does not see the moved point; the next one, "
        "trained on it, does. So an attacker has to foresee what training will make of the data.",
    )


def two_levels(run: Run) -> Question:
    return Choice(
        "The attacker wants to know where to move a point. Why is the gradient through a fixed victim not enough?",
        (
            "Because the victim's weights depend on the point: they change with it",
            "Because gradients need labels",
            "Because the radius of a certificate is no number",
        ),
        0,
        "With fixed weights, a training point does not even appear in the radius of a test point. Its whole effect "
        "goes through the retrained weights. The hypergradient follows that way: it asks how the solution of "
        "training moves.",
    )


def images(run: Run) -> Question:
    report = run.report or {}
    drop, noise = (report["relative_drop"].get(arm) for arm in ("poisoned", "random_noise"))
    lost, control = (((each or {}).get("mean") or 0.0) for each in (drop, noise))
    verdict = "much of it is what any noise of that budget does"
    if spread.is_above_zero(spread.difference(drop, noise)) and lost > 2 * control:
        verdict = "most of it is more than noise of that budget does"
    return Guess(
        f"You see what was changed: no pixel by more than ε = {run.config.threat.epsilon:g} of 1, no label. What "
        f"share of its average certified radius does {sentences.target_of(run)} lose, in percent?",
        100 * lost,
        f"{sentences.headline(report)} Against that control, {verdict}.",
    )


def can_you_tell(run: Run) -> Question:
    return Choice(
        "Somebody gets 7 of 10 right. What may one conclude?",
        (
            "They can tell poisoned images from clean ones: 7 is more than half of 10",
            "They cannot tell: 3 of 10 were wrong",
            "Neither: 10 trials are too few to say",
        ),
        2,
        "7 or more of 10 happen to guessers in about one case of six (probability 0.17). That is no proof that they "
        "can tell, and no proof that they cannot: the 95 % interval of the hit rate runs from 0.35 to 0.93.",
    )


def transfer(run: Run) -> Question:
    found = transfer_study()
    if found is None:
        return Choice(
            "Poison was made against one way of training. Victims train another way. What do you expect?",
            ("No effect at all", "Some effect: similar victims learn similar things", "A larger effect"),
            1,
            "Poison works through what training learns from images, and different ways of training learn much the "
            "same.",
        )
    row, columns = surprising_row(found), results.titles(found, "columns")
    cells = [results.cell_at(found, row, column) for column in range(len(columns))]
    drops = [cell["drop"]["mean"] for cell in cells]
    told = ", ".join(f"{name} {sentences.percent(cell['drop'])}" for name, cell in zip(columns, cells, strict=True))
    best = max(range(len(drops)), key=drops.__getitem__)
    made_against = results.titles(found, "rows")[row]
    return Choice(
        f"Poison was made against {made_against}. Victims of which training procedure lose the largest share of their "
        f"radius?",
        tuple(columns),
        best,
        f"Drops: {told}. "
        + (
            "Not those that the attacker aimed at: another procedure can be the softer target."
            if columns[best] != made_against
            else "Those that the attacker aimed at, but the others lose too."
        ),
    )


def defender(run: Run) -> Question:
    return Choice(
        "A model was trained on poisoned data. Do its certificates tell?",
        (
            "Yes: they become invalid",
            "Yes: the model abstains on poisoned images",
            "No: they are valid as ever, only smaller",
        ),
        2,
        "A certificate speaks about changes of a test image, not about the training data. Each one is still true. "
        "Only who knows how large radii should be, from clean data of the same kind, can see that something is "
        "missing.",
    )


def limits(run: Run) -> Question:
    return Choice(
        "This run shows some drop. Which sentence does it support?",
        (
            "Certified classifiers lose that share of their radius if they are poisoned",
            "In this setting (data, class, ε, what the attacker knows) the radius fell by that much, give or take its "
            "spread",
            "Randomized smoothing does not keep its promise",
        ),
        1,
        "One data set, one class, a small network, few draws, an attacker who owns all images of the class and knows "
        "how victims train. Other settings give other numbers; the promise of each certificate holds in all of them.",
    )


def transfer_study() -> dict[str, Any] | None:
    """The project's study of transfer between training procedures, if it is whole."""
    for found in exhibits.exhibited():
        done, cells = results.finished(found)
        if found["study"]["kind"] == "transfer-procedure" and done == cells:
            return found
    return None


def surprising_row(found: dict[str, Any]) -> int:
    """A row whose largest drop is elsewhere than where the attacker aimed; the first if there is none."""
    rows, columns = (results.names(found, axis) for axis in ("rows", "columns"))
    for row, name in enumerate(rows):
        drops = [results.cell_at(found, row, column)["drop"]["mean"] for column in range(len(columns))]
        if columns[drops.index(max(drops))] != name:
            return row
    return 0
