"""The lesson's sequence: each step one idea, one view, one thing to do, one question."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.records import Run
from pages import _bilevel, _lesson_abx, _lesson_effect, _lesson_questions, _lesson_votes
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
    wide: bool = False  # whether the view needs the page's whole width


def _alive(view: Callable[[Run], None]) -> Callable[[Run, bool], None]:
    """A view that gives no answer away."""
    return lambda run, revealed: view(run)


STEPS = (
    Step(
        "What noise does to a prediction",
        "A trained network (the **victim**) looks at noisy copies of one test image. Noise changes no label and hardly "
        "troubles you. Does it trouble the victim?",
        "Raise σ until the victim gets about half of the copies wrong.",
        _alive(_lesson_votes.noise),
        _lesson_questions.noise,
        r"A noisy copy is $x + \sigma z$, with a standard normal number in $z$ for every pixel. The victim is $f$; its "
        r"answer is $f(x + \sigma z)$.",
    ),
    Step(
        "Let them vote",
        "Single answers are fickle, a vote is not. The **smoothed classifier** gives the answer that most noisy "
        "copies get. We cannot ask all of them, so we draw some and count.",
        "Let 10, then 100, then 1000 copies vote: what still moves, and what settles?",
        _alive(_lesson_votes.voting),
        _lesson_questions.voting,
        r"$g(x) = \arg\max_c\, P[f(x + \sigma z) = c]$. Of $n$ draws, $k$ votes for class $c$ estimate that "
        r"probability by "
        r"$k/n$, with a standard error of at most $1/(2\sqrt n)$.",
    ),
    Step(
        "From votes to a radius",
        "From the votes follows a **bound**: the true share of this class is at least p_lower, and this sentence is "
        "wrong with probability α at most. From the bound follows a **radius**: change the image by less than R (L2) "
        "in any way you like, and the answer stays. That is a certificate.",
        "Move n and α. Which of them makes the radius larger, and what does it cost?",
        _lesson_votes.radius,
        _lesson_questions.bound,
        r"Clopper–Pearson: $p_{\text{lower}} = \mathrm{Beta}^{-1}(\alpha; k, n-k+1)$. Cohen et al. (2019): "
        r"$R = \sigma\,\Phi^{-1}(p_{\text{lower}})$ if $p_{\text{lower}} > 1/2$, else abstain. $\Phi^{-1}$ is the "
        r"quantile function of the normal distribution: below how many standard deviations a given share of it lies.",
    ),
    Step(
        "What training with noise buys",
        "A certificate is only as large as the vote is clear, and the vote is clear if the network has met noise "
        "before. So one trains with noise. The **average certified radius (ACR)** sums it up; wrong answers count as "
        "0.",
        "Predict, reveal, then move r: at which radii do the two differ most?",
        _lesson_effect.training,
        _lesson_questions.training,
        r"Gaussian augmentation minimises the mean of $\ell(f(x + \sigma z), y)$ over training images and fresh noise. "
        r"$\mathrm{ACR} = \frac1N \sum_i R_i \cdot [g(x_i) = y_i]$.",
    ),
    Step(
        "One level: a victim trains",
        "A problem so small that you can watch all of it: points in the plane instead of images, a line instead of a "
        "network. Training moves the line downhill, step by step. The discs are certificates: so far may a point move.",
        "Take single steps, then let it play. When do the discs stop growing?",
        lambda run, revealed: _bilevel.one_level(),
        _lesson_questions.one_level,
        r"Training (the lower level): $w^* = \arg\min_w g(w)$, with $g$ the mean loss over all training points, each "
        r"seen "
        r"under Gaussian noise.",
        wide=True,
    ),
    Step(
        "Two levels: an attacker above",
        "Now somebody moves training points, within a budget, and wants the discs to shrink. The victim trains anew "
        "after "
        "each move, so the attacker asks: **how would the trained line move, if I moved this point?**",
        "Play it part by part and follow the numbers 1 to 4. Then move a point by hand: can you do better?",
        lambda run, revealed: _bilevel.two_levels(),
        _lesson_questions.two_levels,
        r"$\min_x f(w^*(x))$ with $w^*(x) = \arg\min_w g(w, x)$. The hypergradient: $\frac{df}{dx} = f_x - g_{xw}\,p$ "
        r"with "
        r"$g_{ww}\,p = f_w$, a linear system.",
        wide=True,
    ),
    Step(
        "Now real images",
        "The attacker changes training images of one class so that victims **trained from scratch** on them get "
        "small radii for it. No label changes, and no pixel changes by more than ε.",
        "Look for the changes. Then say how much they cost.",
        _lesson_effect.images,
        _lesson_questions.images,
        r"$\min_{\|\delta\|_\infty \le \varepsilon} R(\theta^*(\delta))$ with $\theta^*(\delta)$ what training makes "
        r"of "
        r"$x + \delta$. Relative drop: $1 - \mathrm{ACR}_{\text{poisoned}} / \mathrm{ACR}_{\text{clean}}$.",
    ),
    Step(
        "Can you tell?",
        "“Imperceptible” is a claim about people, so it is tested on people. In an **ABX test** X is the same as A "
        "or as B, and you say which.",
        "Answer ten trials, then read what they prove.",
        _lesson_abx.can_you_tell,
        _lesson_questions.can_you_tell,
        r"Guessing: $P[\text{hits} \ge h] = \sum_{j \ge h} \binom{m}{j} 2^{-m}$ of $m$ trials. The interval of the "
        r"hit rate "
        "is Clopper–Pearson's, as for votes: the same mathematics judges you and the victim.",
    ),
    Step(
        "Does it carry over?",
        "The attacker tries poison on networks of its own (**surrogates**). Victims may train in another way. If "
        "poison works on them too, it **transfers**.",
        "Predict, reveal, then look for a column in which every poison is weak.",
        _lesson_effect.transfer,
        _lesson_questions.transfer,
    ),
    Step(
        "What a defender can do",
        "Certificates came out smaller, and a defender wants them back. What helps has to be done before or during "
        "training.",
        "Find the defence that leaves the smallest drop. What did it cost without any attack?",
        _lesson_effect.defender,
        _lesson_questions.defender,
    ),
    Step(
        "Limits and ethics",
        "A number from a demonstration travels far. What does it say, what not, and what should be done with it?",
        "Write one sentence that this run supports, and name its conditions.",
        _lesson_effect.limits,
        _lesson_questions.limits,
    ),
)
