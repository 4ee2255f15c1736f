"""The lesson's sequence: each step one idea, one view, one thing to do, one question."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.records import Run
from pages import _bilevel, _lesson_abx, _lesson_effect, _lesson_questions, _lesson_votes, _lesson_why
from pages._lesson_questions import Question


@dataclass(frozen=True)
class Step:
    """view(run, revealed): revealed is False while the reader has still to predict what the view would show."""

    title: str
    idea: str
    task: str
    view: Callable[[Run, bool], None]
    question: Callable[[Run], Question]
    formula: str = ""  # one click away
    values: tuple[str, ...] = ()  # keys of the view's widgets that a link sets
    wide: bool = False  # whether the view needs the page's whole width


def _alive(view: Callable[[Run], None]) -> Callable[[Run, bool], None]:
    """A view that gives no answer away."""
    return lambda run, revealed: view(run)


STEPS = (
    Step(
        "What noise does to a prediction",
        "A trained network (the **victim**) looks at noisy copies of one test image. The noise does not change what "
        "the image shows, and you can still recognise it. Can the victim?",
        "Raise σ until the victim gets about half of the copies wrong.",
        _alive(_lesson_votes.noise),
        _lesson_questions.noise,
        r"A noisy copy is $x + \sigma z$, where $z$ holds a standard normal number for every pixel. The victim $f$ "
        r"answers $f(x + \sigma z)$.",
        values=("lesson_image", "lesson_sigma"),
    ),
    Step(
        "Let them vote",
        "A single answer is unreliable; a majority vote is much more stable. The **smoothed classifier** gives the "
        "answer that most noisy copies get. We cannot try all of them, so we draw some and count.",
        "Press “New noise” a few times with 10 copies, then with 1000. What keeps changing, and what settles?",
        _alive(_lesson_votes.voting),
        _lesson_questions.voting,
        r"$g(x) = \arg\max_c\, P[f(x + \sigma z) = c]$. If $k$ of $n$ draws vote for class $c$, then $k/n$ estimates "
        r"that probability, with a standard error of at most $1/(2\sqrt n)$.",
        values=("lesson_image", "lesson_draws"),
    ),
    Step(
        "From votes to a radius",
        r"The votes give a **lower bound** $p_{\text{lower}}$ on the true share, right with probability 1 − α or more. "
        "A cloud of noisy copies with most of itself on one side of a boundary must move some way before less than "
        "half is left: the **radius** R. Change the image by less (L2), and the answer stays the same. That is a "
        "**certificate**.",
        "Move the image until the majority flips. Then change n and α: what makes R larger, and at what cost?",
        _lesson_votes.radius,
        _lesson_questions.bound,
        r"Clopper–Pearson: $p_{\text{lower}} = \mathrm{Beta}^{-1}(\alpha; k, n-k+1)$. Cohen et al. (2019): "
        r"$R = \sigma\,\Phi^{-1}(p_{\text{lower}})$ if $p_{\text{lower}} > 1/2$, else abstain. $\Phi^{-1}$ is the "
        r"quantile function of the standard normal distribution: a share $p$ of it lies below $\Phi^{-1}(p)$.",
        values=("lesson_image", "lesson_n", "lesson_alpha"),
    ),
    Step(
        "Why train with noise?",
        "A certificate is only as large as the vote is clear. The **average certified radius (ACR)** is the mean "
        "radius over test images, with wrong answers counted as 0.",
        "Predict and reveal. The marker starts at r = σ; move it. Where do the two differ, and where hardly?",
        _lesson_effect.training,
        _lesson_questions.training,
        r"Gaussian augmentation minimises the mean of $\ell(f(x + \sigma z), y)$ over training images and fresh noise. "
        r"$\mathrm{ACR} = \frac1N \sum_i R_i \cdot [g(x_i) = y_i]$.",
        wide=True,
    ),
    Step(
        "One level: a victim trains",
        "A problem small enough to watch all of it: points in the plane instead of images, a line instead of a "
        "network. Each training step moves the line to lower the training loss. Each disc is a certificate: the point "
        "can move anywhere inside it without changing the answer.",
        "Take single steps, then press Play. The loss only falls. Do the discs only grow?",
        lambda run, revealed: _bilevel.one_level(),
        _lesson_questions.one_level,
        r"Training (the lower level): $w^* = \arg\min_w g(w)$, with $g$ the mean loss over all training points, each "
        r"seen under Gaussian noise.",
        wide=True,
    ),
    Step(
        "Two levels: now add an attacker",
        "Somebody moves training points, within a budget, to shrink the discs. The victim is retrained after each "
        "move, so the attacker asks: **how would the trained line move if I moved this point?** The answer, a gradient "
        "through training, is the **hypergradient**.",
        "Set the speed to “Part by part”, press Play, and follow steps 1 to 4. Then move a point yourself: can you do "
        "better?",
        lambda run, revealed: _bilevel.two_levels(),
        _lesson_questions.two_levels,
        r"$\min_x f(w^*(x))$ with $w^*(x) = \arg\min_w g(w, x)$. The hypergradient: $\frac{df}{dx} = f_x - g_{xw}\,p$ "
        r"with $g_{ww}\,p = f_w$, a linear system.",
        wide=True,
    ),
    Step(
        "Now real images",
        "The attacker changes training images of one class so that victims **trained from scratch** on them get small "
        "radii for that class. No label changes, and no pixel changes by more than ε.",
        "Look for the changes, and read what they cost. Does it take an attack as clever as this?",
        _lesson_effect.images,
        _lesson_questions.images,
        r"$\min_{\|\delta\|_\infty \le \varepsilon} R(\theta^*(\delta))$, where $\theta^*(\delta)$ is what training "
        r"makes of $x + \delta$. Relative drop: $1 - \mathrm{ACR}_{\text{poisoned}} / \mathrm{ACR}_{\text{clean}}$.",
    ),
    Step(
        "Why does it work?",
        "Victims of step 7 certify smaller radii for **test** images, which nobody changed. To see why, ask them about "
        "a **training** image: as it was, and as it was poisoned.",
        "Predict and reveal. Compare the two victims. Then try other images.",
        _lesson_why.why,
        _lesson_questions.why,
    ),
    Step(
        "Can you tell?",
        "“Imperceptible” is a claim about people, so test it on people. In an **ABX test** X is the same as A or as "
        "B, and you say which. On handwritten digits, ε = 0.1 turns the black background visibly grey.",
        "Answer ten trials, then see what they prove.",
        _lesson_abx.can_you_tell,
        _lesson_questions.can_you_tell,
        r"Guessing: $P[\text{hits} \ge h] = \sum_{j \ge h} \binom{m}{j} 2^{-m}$ of $m$ trials. The interval of the "
        r"hit rate is Clopper–Pearson's, as for votes: the same mathematics judges you and the victim.",
        wide=True,
    ),
    Step(
        "Does it carry over?",
        "The attacker tries out poison on networks of its own (**surrogates**). The victim may be trained in another "
        "way. If the poison works on it all the same, it **transfers**.\n\n*Gaussian augmentation* adds noise to "
        "training images. *SmoothAdv* trains on noisy images made as hard as possible. *MACER* pushes up the radius "
        "itself.",
        "Predict and reveal. Which column loses least?",
        _lesson_effect.transfer,
        _lesson_questions.transfer,
        wide=True,
    ),
    Step(
        "What a defender can do",
        "Certificates of a poisoned model are still valid, just smaller: you would notice only if you knew how large "
        "the radii should be. So a defence has to act before or during training.",
        "Predict and reveal. Then see what each defence costs when nobody attacks.",
        _lesson_effect.defender,
        _lesson_questions.defender,
        wide=True,
    ),
    Step(
        "Limits and ethics",
        "Numbers from demos get quoted. What does this one show, what does it not show, and how should it be used?",
        "Write one sentence that this run supports, with its conditions.",
        _lesson_effect.limits,
        _lesson_questions.limits,
    ),
)
