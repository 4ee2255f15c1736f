"""Reports as plain text and as Markdown, for terminals and for documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.choices import CONTROLS
from engine.config import Config
from engine.records import Run
from engine.report.commands import asked_for, values_of
from engine.report.sentences import drop_of, is_the_papers, of_hundred, several, victims_line, with_spread

if TYPE_CHECKING:
    import pandas as pd

FEW = 20  # test images of a class
_MEANING = (
    "Mean ± standard deviation over victims, paired by seed. Seconds are of runs that took no part from earlier ones."
)
_COLUMNS = ("procedure", "attack.name", "threat.target_class", "threat.epsilon", "sigma", "seed", "victim_seeds")


def summary(report: dict[str, Any], found: "pd.DataFrame | None" = None) -> str:
    """A report in a few lines of plain text; found: numbers.estimates of its target class."""
    config, settings, images = report["config"], report["config"]["certification"], report["certified_images"]
    lines = [
        *([] if report["complete"] else ["PARTIAL RESULT: some victims of this run are missing."]),
        f"run {report['run_id']}  preset {report['preset']}  {report['dataset_note']}",
        f"{report['target_name']}, epsilon {config['threat']['epsilon']} (L∞), "
        f"sigma {config['sigma']}, {config['procedure']['name']} training, "
        f"{several(config['victim_seeds'], 'victim')} per arm, n = {settings['n']}, "
        f"alpha = {settings['alpha']}",
        "",
        f"{'arm':<16}{'ACR target (L2)':>20}{'ACR all':>18}{'accuracy target':>18}{'drop of ACR target':>22}",
    ]

    for arm, values in report["arms"].items():
        acr, accuracy = values["average_certified_radius"], values["accuracy"]
        lines.append(
            f"{arm:<16}{with_spread(acr['target']):>20}{with_spread(acr['all']):>18}"
            f"{with_spread(accuracy['target']):>18}{drop_of(report, arm):>22}"
        )
    lines += ["", *filter(None, [victims_line(report)])]
    if found is not None and (shown := found.dropna(subset=["drop"])).shape[0]:
        told = (f"{arm} {100 * row.drop_low:z.0f} to {of_hundred(row.drop_high)}" for arm, row in shown.iterrows())
        lines.append(f"Over test images, for these very victims, as if each had noise of its own: {', '.join(told)}.")
    lines += [
        f"± is the standard deviation over victims. Radii are capped at {report['radius_cap']:.3f} by n and alpha.",
        f"{images['target']} test images of the target class, {images['all']} of all"
        + (", so few of each other one that ACR all is rough." if settings["other_images"] < FEW else "."),
    ]
    if not is_the_papers(Config.model_validate(config)):
        lines.append("Not the paper's setting.")
    return "\n".join(lines)


def settings(configs: Mapping[str, Config]) -> str:
    """A Markdown table of configurations beside each other: a row for each field, as --set takes it."""
    columns = [values_of(config) for config in configs.values()]
    lines = [["field", *configs]]
    for name in columns[0]:
        told = ["–" if each[name] in (None, "") else _plain(each[name]) for each in columns]
        if set(told) != {"–"}:
            lines.append([name, *told])
    return table(lines)


def table(lines: Iterable[Sequence[Any]]) -> str:
    """Markdown, the first line being the head."""
    cells = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
    head, *rows = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([head, "|---" * len(cells[0]) + "|", *rows])


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def markdown(runs: Sequence[Run]) -> str:
    """A Markdown table of finished runs, a row each, and below it what they ran on.

    Args: runs: whose settings can be read. Unfinished ones are left out.
    """
    finished = [run for run in runs if (run.report or {}).get("complete")]
    columns = ["procedure", "attack", "target", "ε (L∞)", "σ", "seed", "victims", "ACR clean"]
    columns += ["drop poisoned", "random noise", "shuffled signs", "seconds"]
    others = {run.id: _other_settings(run) for run in finished}
    columns += ["and, unlike its preset"] * any(others.values())
    lines: list[list[Any]] = [columns]
    grounds: dict[str, set[str]] = {}
    for run in finished:
        report, environment = run.report or {}, run.environment
        config, arms = report["config"], report["arms"]
        settings = config["certification"]
        row = [
            config["procedure"]["name"],
            config["attack"]["name"],
            report["target_name"],
            config["threat"]["epsilon"],
            config["sigma"],
            config["seed"],
            config["victim_seeds"],
            with_spread(arms["clean"]["average_certified_radius"]["target"]),
            *(drop_of(report, arm) for arm in ("poisoned", *CONTROLS)),
            "–" if report["reused"] else f"{report['seconds']['total']:.0f}",
            *[", ".join(others[run.id])] * any(others.values()),
        ]
        lines.append(row)
        ground = (
            f"{report['dataset_note']}; {report['certified_images']['target']} test images of the target class, "
            f"n = {settings['n']}, alpha = {settings['alpha']}; {environment.get('device_name')}, "
            f"{environment.get('cpus')} CPUs, torch {environment.get('torch')}"
        )
        grounds.setdefault(ground, set()).add(str(environment.get("commit")))
    told = (f"{ground}, commit {', '.join(sorted(commits))}." for ground, commits in sorted(grounds.items()))
    return "\n".join([table(lines), "", f"{_MEANING} {' '.join(told)}"])


def _other_settings(run: Run) -> list[str]:
    """What was set otherwise than in the run's preset and has no column of its own."""
    return [item for item in asked_for(run)[1] if item.partition("=")[0] not in _COLUMNS]
