"""What a few victims say of a mean: Student's interval over them, and differences of paired ones.

Three or five victims say little: the interval of three reaches 2.5 of their standard deviations to either side. It
covers what differs between victims (weights, minibatches, noise), and no more: a run has one split and one poison.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

# As in report.json: mean, sd (None of one value), seeds, which are the values themselves, and victims, the number of
# the victim that each is of, where these are not 0, 1, 2 and so on.
Summary = dict[str, Any]
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
    """One less the other, over the victims that both have, paired by seed; None where they have none in common."""
    ours, others = (_by_victim(found) for found in (one, other))
    pairs = [(ours[k], others[k]) for k in sorted(ours.keys() & others.keys())]
    return summary([a - b for a, b in pairs]) if pairs else None


def together(several: Sequence[Summary]) -> Summary | None:
    """Their mean for each victim that all of them have, with its number; None where there is none."""
    values = [_by_victim(found) for found in several]
    shared = sorted(set.intersection(*map(set, values))) if values else []
    return summary([fmean(each[k] for each in values) for k in shared]) | {"victims": shared} if shared else None


def among(found: Summary, other: Summary) -> Summary:
    """Of those victims alone that the other has, too; one at least."""
    ours = _by_victim(found)
    return summary([ours[k] for k in sorted(ours.keys() & _by_victim(other).keys())])


def _by_victim(found: Summary | None) -> dict[int, float]:
    values = found["seeds"] if found else []
    return dict(zip((found or {}).get("victims", range(len(values))), values, strict=True))


def is_above_zero(found: Summary | None) -> bool:
    """Whether the whole interval is; of one value nobody knows, so no."""
    limits = interval(found)
    return limits is not None and limits[0] > 0


def is_telling(found: Summary | None) -> bool:
    """Whether there are values enough for an interval that says something of a share: three, and 100 points at most."""
    limits = interval(found)
    return limits is not None and found is not None and len(found["seeds"]) > 2 and limits[1] - limits[0] <= 1


def percent(found: Summary | None) -> str:
    """A share's interval in per cent, "29 to 63"."""
    limits = interval(found)
    return "–" if limits is None else f"{100 * limits[0]:z.0f} to {100 * limits[1]:z.0f}"
