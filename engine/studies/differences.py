"""By how much a study's rows or columns differ, victim by victim of the same seed."""

from typing import Any

from engine import spread
from engine.config import ConfigError
from engine.studies.results import Summary, cell_at, names
from engine.studies.tables import table

FEW = 5  # rows or columns, over which a mean's interval says next to nothing


def minus(found: dict[str, Any], name: str) -> str:
    """By how much each other row (or column) takes more than the row (or column) of this name, as Markdown.

    Victims are paired where only the poison differs: of the same seed, with the same weights to start from.
    Raises: ConfigError, where no row and no column has the name.
    """
    axis = next((axis for axis in ("rows", "columns") if name in names(found, axis)), None)
    if axis is None:
        known = ", ".join([*names(found, "rows"), *names(found, "columns")])
        raise ConfigError(f"--minus must be a row or column of the study ({known}), got {name!r}")
    across = "columns" if axis == "rows" else "rows"
    ours, reference = names(found, axis), names(found, axis).index(name)

    def drop(mine: int, other: int) -> Summary:
        row, column = (mine, other) if axis == "rows" else (other, mine)
        return cell_at(found, row, column)["drop"]

    lines = [["", *(f"{each} − {name}" for each in ours if each != name)]]
    means: dict[int, list[float]] = {k: [] for k in range(len(ours)) if k != reference}
    for other, title in enumerate(names(found, across)):
        line = []
        for k, values in means.items():
            found_here = spread.difference(drop(k, other), drop(reference, other))
            values += [found_here["mean"]] if found_here else []
            line.append(_points(found_here))
        lines.append([title, *line])
    if len(lines) > FEW:
        over = [spread.summary(values) if values else None for values in means.values()]
        lines.append(["mean", *map(_points, over)])
    return (
        "How much more of the class's ACR is taken, in percentage points: mean over pairs of victims of the same seed "
        "(95 % interval over them by Student's t, not corrected for the number of cells); of many lines, the last is "
        f"the mean of those above, taken as independent.\n\n{table(lines)}"
    )


def _points(found: Summary) -> str:
    return "–" if not found else f"{100 * found['mean']:z.0f} ({spread.percent(found)})"
