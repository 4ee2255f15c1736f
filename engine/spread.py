"""What a few victims say of a mean: Student's interval over them, and differences of paired ones.

Three or five victims say little: the interval of three reaches 2.5 of their standard deviations to either side. It
holds what each victim draws anew (weights, minibatches, noise); data, split and poison are the same for all of a run.
"""

from statistics import fmean, stdev
from typing import Any

Summary = dict[str, Any]  # of report.json: mean, sd (None of one value) and seeds, the values themselves
LEVEL = 0.95


def summary(values: list[float]) -> Summary:
    """Mean, sample standard deviation and the values themselves, at least one."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "seeds": values}


def interval(found: Summary | None) -> tuple[float, float] | None:
    """The mean's 95 % interval by Student's t, over the values as independent draws; None of fewer than two."""
    if not found or found["mean"] is None or len(found["seeds"]) < 2:
        return None
    from scipy.special import stdtrit  # a tenth of a second, which the command line need not wait for

    count = len(found["seeds"])
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * found["sd"] / count**0.5
    return found["mean"] - half, found["mean"] + half


def difference(one: Summary | None, other: Summary | None) -> Summary | None:
    """One less the other, victim by victim of the same seed; None where they have not the same victims."""
    if not one or not other or not one["seeds"] or len(one["seeds"]) != len(other["seeds"]):
        return None
    return summary([a - b for a, b in zip(one["seeds"], other["seeds"], strict=True)])


def is_above_zero(found: Summary | None) -> bool:
    """Whether the whole interval is; of one value nobody knows, so no."""
    limits = interval(found)
    return limits is not None and limits[0] > 0


def percent(found: Summary | None) -> str:
    """A share's interval in per cent, "29 to 63"."""
    limits = interval(found)
    return "–" if limits is None else f"{100 * limits[0]:z.0f} to {100 * limits[1]:z.0f}"
