"""A study's results as Markdown and CSV, and by how much its rows or columns differ."""

import csv
import io
from collections.abc import Callable
from typing import Any

from engine import paper, spread
from engine.config import ConfigError
from engine.report.sentences import percent, with_spread
from engine.report.tables import table
from engine.studies.results import (
    Summary,
    at_home,
    beyond_control,
    by_row,
    cell_at,
    cell_name,
    finished,
    has_the_papers_settings,
    names,
    victims,
)

COLUMNS = (  # of the CSV, a row per cell
    *("study", "kind", "row", "column", "run", "state", "complete", "dataset", "procedure", "architecture", "sigma"),
    *("attack", "attack_procedure", "surrogate", "attack_sigma", "epsilon", "target_class", "seed", "victims"),
    *("drop_mean", "drop_sd", "drop_low", "drop_high", "drop_seeds", "control_drop_mean", "control_drop_sd"),
    *("control_drop_seeds", "beyond_control_mean", "beyond_control_low", "beyond_control_high"),
    *("acr_clean_mean", "acr_clean_sd"),
    *("acr_poisoned_mean", "acr_poisoned_sd", "acr_control_mean", "acr_control_sd", "accuracy_clean_mean"),
    *("accuracy_poisoned_mean", "accuracy_control_mean", "radius_cap", "images", "n0", "n", "alpha", "precision"),
    *("protocol", "upper_steps"),
    *("linear_solver", "l2_mean", "psnr_mean", "ssim_mean"),
    *("attack_seconds", "seconds", "device", "device_name", "torch", "commit"),
)

FEW = 5  # rows or columns, over which a mean's interval says next to nothing


def csv_text(found: dict[str, Any]) -> str:
    """A row per cell with COLUMNS; a number that is not there (yet) is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for cell in found["cells"]:
        row = {name: value for name, value in cell.items() if not isinstance(value, dict)}
        for name, value in cell.items():
            if isinstance(value, dict) and "mean" in value:
                seeds = " ".join(map(str, value["seeds"]))
                row |= {f"{name}_mean": value["mean"], f"{name}_sd": value["sd"], f"{name}_seeds": seeds}
        for name, value in (("drop", cell["drop"]), ("beyond_control", beyond_control(cell))):
            low, high = spread.interval(value) or (None, None)
            row |= {f"{name}_low": low, f"{name}_high": high}
        row |= {
            "beyond_control_mean": (beyond_control(cell) or {}).get("mean"),
            "study": found["id"],
            "kind": found["study"]["kind"],
            "row": names(found, "rows")[cell["row"]],
            "column": names(found, "columns")[cell["column"]],
            "victims": victims(cell),
            **(cell["perturbation"] or {}),
        }
        writer.writerow(row)
    return buffer.getvalue()


def markdown(found: dict[str, Any]) -> str:
    """The grid, every cell's numbers, and what they are; a study of the whole paper has a table of its own."""
    kind, done, cells = found["study"]["kind"], *finished(found)
    title = f"**{kind}**, study `{found['id']}`" + (f", preset {found['preset']}" if found["preset"] else "")
    if done < cells:
        title += f". **PARTIAL RESULT: {done} of {cells} cells**"
    if kind.startswith("reproduce"):
        parts = [_paper_table(found)]
    else:
        parts = [_grid(found), *([table(rivals(found))] if kind == "rivals" else []), _cells(found)]
    return "\n\n".join([title, *parts, grounds(found)])


def _grid(found: dict[str, Any]) -> str:
    rows, columns = names(found, "rows"), names(found, "columns")
    labels = [found["study"][axis]["label"] for axis in ("rows", "columns")]
    lines = [[f"{labels[0]} ↓" + (f" · {labels[1]} →" if labels[1] else ""), *columns]]
    for r, name in enumerate(rows):
        lines.append([name, *(_grid_cell(cell_at(found, r, c)) for c in range(len(columns)))])
    return (
        "Relative drop of the target class's ACR, mean ± standard deviation over paired victims; in brackets the "
        f"control, random noise of the same ε on the same images.\n\n{table(lines)}"
    )


def _grid_cell(cell: dict[str, Any]) -> str:
    if not cell["drop"]:
        return cell["state"]
    partial = "" if cell["complete"] else ", partial"
    return f"{percent(cell['drop'])} ({percent(cell['control_drop'])}{partial})"


def _cells(found: dict[str, Any]) -> str:
    head = ["cell", "victims", "drop", "random noise", "beyond it", "ACR clean", "ACR poisoned", "L2", "PSNR", "SSIM"]
    lines = [[*head, "attack s", "run s", "run"]]
    for cell in found["cells"]:
        lines.append(
            [
                cell_name(found, cell) + ("" if cell["complete"] else f" ({cell['state']})"),
                str(victims(cell)),
                percent(cell["drop"]),
                percent(cell["control_drop"]),
                spread.percent(beyond_control(cell)),
                with_spread(cell["acr_clean"]),
                with_spread(cell["acr_poisoned"]),
                *visibility(cell),
                "reused" if cell["complete"] and cell["attack_seconds"] is None else _seconds(cell["attack_seconds"]),
                _seconds(cell["seconds"]),
                f"`{cell['run']}`",
            ]
        )
    return table(lines)


def visibility(cell: dict[str, Any]) -> tuple[str, str, str]:
    """L2 (pixel units), PSNR (decibels) and SSIM of the poison, means over its images."""
    found, forms = cell["perturbation"] or {}, {"l2_mean": ".2f", "psnr_mean": ".1f", "ssim_mean": ".3f"}
    texts = ["–" if found.get(name) is None else f"{found[name]:{form}}" for name, form in forms.items()]
    return texts[0], texts[1], texts[2]


def rivals(found: dict[str, Any], told: Callable[[dict[str, Any], str], list[str]] = names) -> list[list[str]]:
    """The head, and a line per attack: its drop at home, the control's, its transfer, size and seconds.

    Args:
        told: what rows and columns are called: `results.names`, or in plain words `results.titles`.
    """
    columns = told(found, "columns")
    home, others = columns.pop(at_home(found)), ", ".join(columns)
    transfer = [f"{'mean ' * (len(columns) > 1)}drop, {others}"] if others else []
    lines = [["attack", f"drop, {home}".rstrip(", "), "random noise", *transfer, "L2", "PSNR", "SSIM", "attack s"]]
    for name, row in zip(told(found, "rows"), by_row(found), strict=True):
        moved = [percent(row["transfer"])] if transfer else []
        lines.append(
            [
                name,
                percent(row["drop"]),
                percent(row["control_drop"]),
                *moved,
                *visibility(row["cell"]),
                _seconds(row["attack_seconds"]),
            ]
        )
    return lines


def _paper_table(found: dict[str, Any]) -> str:
    """A line per setting and seed; where a setting has several seeds, one more with the spread over them."""
    lines = [
        [
            *("procedure", "data set", "σ", "seed", "victims", "drop", "random noise", "beyond it"),
            *(f"{what} {arm}" for what in ("ACR", "accuracy") for arm in ("clean", "poisoned", "random noise")),
            *("seconds", "device"),
        ]
    ]
    measures = [f"{what}_{arm}" for what in ("acr", "accuracy") for arm in ("clean", "poisoned", "control")]
    for r, _ in enumerate(names(found, "rows")):
        cells = [cell for cell in found["cells"] if cell["row"] == r]
        for cell in cells:
            state = "" if cell["complete"] else f" ({cell['state']})"
            shares = [percent(cell["drop"]), percent(cell["control_drop"]), spread.percent(beyond_control(cell))]
            told = [f"{cell['seed']}{state}", str(victims(cell)), *shares, *(with_spread(cell[m]) for m in measures)]
            lines.append([*_setting(cell), *told, _seconds(_total([cell])), _devices([cell])])
        if len(cells) > 1:
            over = {name: _over([cell[name] for cell in cells]) for name in ("drop", "control_drop", *measures)}
            more = _over([beyond_control(cell) for cell in cells])
            shares = [percent(over["drop"]), percent(over["control_drop"]), spread.percent(more)]
            several = sum(victims(cell) > 0 for cell in cells)
            told = [
                f"all ({several})",
                str(sum(map(victims, cells))),
                *shares,
                *(with_spread(over[m]) for m in measures),
            ]
            lines.append([*_setting(cells[0]), *told, _seconds(_total(cells)), _devices(cells)])
    small = "Small scale, not" if found["study"]["kind"].endswith("small") else "Not"
    scale = "The authors' setting. " if has_the_papers_settings(found) else f"**{small} the authors' setting.** "
    return (
        f"{scale}± in a line of one seed: standard deviation over its victims; in a line of all seeds ± and the "
        "interval are over the seeds' means. Seconds are of runs that took no part from others. The paper's own table "
        "of ACR could not be had; its published claim is that poisoning takes more than "
        f"{100 * paper.CLAIM:.0f} % of the target class's ACR.\n\n{table(lines)}"
    )


def _setting(cell: dict[str, Any]) -> list[str]:
    return [cell["procedure"], cell["dataset"], f"{cell['sigma']:g}"]


def _over(summaries: list[Summary]) -> Summary | None:
    """Mean and standard deviation over the seeds' means."""
    means = [value["mean"] for value in summaries if value and value["mean"] is not None]
    return spread.summary(means) if means else None


def _total(cells: list[dict[str, Any]]) -> float | None:
    """Seconds of these runs; None where there are none yet, or one took a part from other runs."""
    known = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    return sum(known) if known and not any(cell.get("reused") for cell in cells) else None  # of older copies unknown


def _devices(cells: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({cell["device_name"] for cell in cells if cell["device_name"]})) or "–"


def grounds(found: dict[str, Any]) -> str:
    """What the numbers rest on, in a few sentences."""
    done = [cell for cell in found["cells"] if cell["acr_clean"]]
    if not done:
        return "No cell has a result yet."

    clean = ", or clean ones alone" if any(cell["attack"] == "none" for cell in done) else ""

    def all_of(name: str) -> str:
        return ", ".join(
            sorted({f"{cell[name]:g}" if isinstance(cell[name], float) else str(cell[name]) for cell in done})
        )

    return (
        f"Victims are pairs of the same seed{clean}. Beyond random noise: how many points more the poison "
        "takes, 95 % interval over these pairs (Student's t), not corrected for the number of cells; each cell has one "
        "poison and one split. Seconds are of each run, without what it reused of others. "
        f"Data: {all_of('dataset')}; target class "
        f"{all_of('target_class')}; ε = {all_of('epsilon')} (L∞) and radii (L2) in pixel units of [0, 1]; "
        f"{all_of('images')} test images of the class; {all_of('n')} estimation draws; seed {all_of('seed')}. "
        f"{all_of('device_name')}, torch {all_of('torch')}, commit {all_of('commit')}. Drops may be compared where "
        "draws and α are the same (with fewer draws the cap hides a part of them), ACR only where σ is, too."
    )


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


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
