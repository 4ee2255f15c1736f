"""The command line: everything that the app can do, on the same run directories."""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import datasets, grid, index, jobs, paper, poison_file, records, studies, study_kinds, study_tables, tables
from engine.config import FOLDER, Config, ConfigError, parse, with_overrides
from engine.costs import estimate
from engine.presets import PRESETS
from engine.records import Record, Run, RunNotFound
from engine.studies import Study, StudyRecord

OK, FAILED, BAD_INPUT = 0, 1, 2
PROGRESS_EVERY = 5.0  # seconds between lines of progress that nobody sees live


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 if a run failed or was cancelled; 2, with one line, for bad input."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except BrokenPipeError:  # whoever read the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ConfigError, RunNotFound, OSError, ValueError) as error:
        print("error:", *str(error).split(), file=sys.stderr)  # in one line, whatever it was
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="PACD Lab: poison, retrain, certify.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        if name != "presets":
            added.add_argument(
                "--runs-root", type=Path, default=records.default_root(), help="default: runs/ or PACD_RUNS"
            )
        return added

    run = command("run", _run, "Run one experiment; its report goes to standard output, progress to standard error.")
    run.add_argument("--preset", default="quick", metavar="NAME", help=f"one of {', '.join(PRESETS)} (default: quick)")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field, dotted; repeatable")
    run.add_argument("--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)")
    run.add_argument("--json", action="store_true", help="print report.json instead of a summary")
    run.add_argument("--dry-run", action="store_true", help="check, print configuration and estimate, run nothing")

    fetch = commands.add_parser("fetch", help="Put a data set on this machine, from the network if need be.")
    fetch.add_argument("dataset", choices=list(datasets.DATASETS))
    fetch.add_argument("--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)")
    fetch.set_defaults(command=_fetch)

    presets = command("presets", _presets, "List the presets.")
    presets.add_argument("--json", action="store_true", help="with their configurations, as JSON")
    presets.add_argument("--departs", action="store_true", help="and how each differs from the authors' setting")

    runs = command("runs", _runs, "List the runs, newest first; or cancel or delete one.")
    runs.add_argument("--json", action="store_true")
    runs.add_argument("--markdown", action="store_true", help="a table of the results of the finished ones")
    runs.add_argument("--publish", metavar="ID", help="copy a finished run into gallery/, small, for everyone to see")
    runs.add_argument("--read-only", metavar="ID", help="publish a finished run to all who use these runs, as it is")
    runs.add_argument("--withdraw", metavar="ID", help="and take that back")
    runs.add_argument("--cancel", metavar="ID", help="stop a queued or running run; it keeps what it has")
    runs.add_argument("--delete", metavar="ID", help="remove a run and what only it uses")

    report = command("report", _report, "Print the report of a run.")
    report.add_argument("id", help="a run id, or its first digits")
    report.add_argument("--json", action="store_true")
    report.add_argument("--html", type=Path, metavar="FILE", help="write it as one file that works offline instead")
    report.add_argument(
        "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
    )

    certify = command("certify", _certify, "Certify a finished run's victim again; a row for each image, as CSV.")
    certify.add_argument("id", help="a run id, or its first digits")
    certify.add_argument("--arm", default="poisoned", choices=records.ARMS, help="default: poisoned")
    certify.add_argument("--victim", type=int, default=0, metavar="K", help="default: 0")
    certify.add_argument("--all-classes", action="store_true", help="not only the target class")
    certify.add_argument("--n", type=int, default=100_000, help="estimation draws, at most (default: 100000)")
    certify.add_argument("--n0", type=int, default=100, help="selection draws (default: 100)")
    certify.add_argument("--alpha", type=float, default=0.001, help="failure probability (default: 0.001)")
    certify.add_argument("--precision", type=float, help="stop once the radius is this near, relatively, to n draws'")
    certify.add_argument("--radius", type=float, help="stop once it is known whether this L2 radius is certified")
    certify.add_argument("--seed", type=int, default=0)
    certify.add_argument("--data-root", type=Path, default=None, help="folder of data sets (default: data/)")

    poison = command(
        "poison-file", _poison_file, "Check a poison that somebody brings, and keep it for attack from-file."
    )
    poison.add_argument("file", metavar="FILE", help="a .safetensors or .npz file of delta and indices, or a run's id")
    poison.add_argument("--dataset", help="whose training images it changes (default: the run's, else mnist)")
    poison.add_argument(
        "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
    )

    gallery = command("gallery", _gallery, "Compute the runs of Explore and of the lesson; resumes where it stopped.")
    for name, values in (
        ("procedures", grid.BASES),
        ("classes", grid.CLASSES),
        ("sigmas", grid.SIGMAS),
        ("epsilons", grid.EPSILONS),
    ):
        gallery.add_argument(f"--{name}", default=",".join(map(str, values)), metavar="V1,V2", help="default: all")
    gallery.add_argument("--what-ifs", action="store_true", help="only these: one other field than quick's, each")
    gallery.add_argument(
        "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
    )
    gallery.add_argument("--dry-run", action="store_true", help="print what is missing, run nothing")
    gallery.add_argument("--markdown", action="store_true", help="print a table of what is there, run nothing")

    work = commands.add_parser("work", help="Do the work of a run directory: what `run` and the app start.")
    work.add_argument("directory", type=Path)
    work.set_defaults(command=lambda options: jobs.work(options.directory))
    _add_studies(commands, command)
    return parser


def _add_studies(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    kinds = "; ".join(f"{name}: {kind.sentence}" for name, kind in study_kinds.KINDS.items())
    study = command(
        "study", _study, "Run a grid of experiments, one after the other; its table goes to standard output."
    )
    study.add_argument("kind", metavar="KIND", help=kinds)
    study.add_argument("--preset", default="quick", metavar="NAME", help="what every cell starts from (default: quick)")
    study.add_argument("--rows", metavar="FIELD=V1,V2", help="another axis than the kind's own")
    study.add_argument("--columns", metavar="FIELD=V1,V2", help="another axis than the kind's own")

    reproduce = command("reproduce", _reproduce, "Run any part of the paper's table; resumes where it was stopped.")
    reproduce.add_argument("--procedures", default=",".join(paper.PROCEDURES), metavar="P1,P2", help="default: all")
    reproduce.add_argument("--datasets", default=",".join(paper.DATASETS), metavar="D1,D2", help="default: both")
    reproduce.add_argument("--sigmas", metavar="S1,S2", help="default: the paper's grid for each data set")
    reproduce.add_argument("--seeds", type=int, default=1, help="seeds of the whole protocol (default: 1)")
    reproduce.add_argument("--victims", type=int, help="victims for each arm (default: the setting's own number)")
    reproduce.add_argument("--scale", default="full", help="full: the authors' setting, for a GPU; small: for a CPU")
    reproduce.add_argument("--output", type=Path, metavar="DIR", help="write ID.md and ID.csv there, too")
    for parser in (study, reproduce):
        parser.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", help="for all cells; repeatable"
        )
        parser.add_argument(
            "--data-root", type=Path, default=None, help="folder of data sets (default: data/ or PACD_DATA)"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="check, print the cells and an estimate, run nothing"
        )

    listed = command("studies", _studies, "List the studies; or print, cancel, delete or publish one.")
    listed.add_argument(
        "id", nargs="?", metavar="ID", help="print this study's table as it is now, or that of a published one"
    )
    listed.add_argument("--cancel", metavar="ID", help="stop a study and its current run; what is finished stays")
    listed.add_argument("--delete", metavar="ID", help="remove a study; its runs stay")
    listed.add_argument("--publish", metavar="ID", help="copy a finished study's results into gallery/studies/")
    for parser in (study, reproduce, listed):
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_const", dest="form", const="json", help="everything, as JSON")
        form.add_argument("--csv", action="store_const", dest="form", const="csv", help="a row per cell")
        form.add_argument("--markdown", action="store_const", dest="form", const="markdown", help="the default")
    work = commands.add_parser("study-work", help="Do the work of a study directory: what `study` and the app start.")
    work.add_argument("directory", type=Path)
    work.set_defaults(command=lambda options: studies.work(options.directory))


def _run(options: argparse.Namespace) -> int:
    if options.preset not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, got {options.preset!r}")
    config = with_overrides(PRESETS[options.preset].config, options.set)
    data_root = options.data_root or datasets.default_root()
    datasets.check(config, data_root)
    poison_file.check(config, runs_root=options.runs_root, data_root=data_root)
    if options.dry_run:
        print(json.dumps(_dry_run(config), indent=1))
        return OK
    datasets.fetch(config.dataset, data_root)
    run = jobs.submit(config, runs_root=options.runs_root, data_root=data_root, preset=options.preset)
    if (code := _wait_for(run)) == OK:
        _print_report(run, as_json=options.json)
    return code


def _wait_for(run: Run) -> int:
    """Shows a run's progress until it ends; FAILED, with the reason, where it did not come to its end."""
    try:
        _follow(run, lambda: jobs.queue_position(run))
    except KeyboardInterrupt:
        print("\ncancelling; what is finished stays in the run's directory", file=sys.stderr)
        jobs.stop_now(run)
    status = run.status()
    if status.state == "done":
        return OK
    reason = f": {status.error}" if status.error else ""
    print(f"run {run.id} {status.state}{reason}. Its directory: {run.directory}", file=sys.stderr)
    return FAILED


def _fetch(options: argparse.Namespace) -> int:
    root = options.data_root or datasets.default_root()
    datasets.fetch(options.dataset, root)
    print(f"{datasets.DATASETS[options.dataset]}: on this machine ({root})")
    return OK


def _dry_run(config: Config) -> dict:
    expected = estimate(config, device="cpu")
    return {
        "run_id": records.run_id(config),
        "config": config.model_dump(mode="json"),
        "estimate": {"seconds": round(expected.seconds), "memory_bytes": round(expected.memory_bytes), "device": "cpu"},
    }


def _follow(run: Record, queue_position: Callable[[], int] = lambda: 0) -> None:
    """Shows progress on standard error until it ends; off a terminal a line per phase, or every few seconds."""
    live = sys.stderr.isatty()
    shown, at = "", 0.0
    while (status := run.status()).active:
        if status.state == "queued":
            behind = queue_position()
            line = phase = f"queued behind {behind} run(s)" if behind else "starting"
        else:
            eta = "" if status.eta_seconds is None else f", about {_duration(status.eta_seconds)} left"
            line, phase = f"{status.fraction:4.0%} {status.phase}{eta}   {status.detail}", status.phase
        if live:
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]:<100}", end="", file=sys.stderr, flush=True)
        elif phase != shown or time.monotonic() - at >= PROGRESS_EVERY:
            shown, at = phase, time.monotonic()
            print(line, file=sys.stderr, flush=True)
        time.sleep(0.25)
    if live:
        print(file=sys.stderr)


def _print_report(run: Run, *, as_json: bool) -> None:
    report = run.report
    if report is None:
        raise RunNotFound(f"run {run.id} has no report yet: it is {run.status().state}")
    print(json.dumps(report) if as_json else tables.summary(report))


def _presets(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({name: preset.config.model_dump(mode="json") for name, preset in PRESETS.items()}, indent=1))
        return OK
    for preset in PRESETS.values():
        expected = estimate(preset.config, device="cpu")
        print(f"{preset.name:<16}{preset.sentence}\n{'':<16}about {_duration(expected.seconds)} on this machine's CPU")
        if options.departs:
            print(*(f"{'':<16}departs from the authors: {text}" for text in preset.departs), sep="\n")
    return OK


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _runs(options: argparse.Namespace) -> int:
    if options.cancel:
        jobs.stop_now(records.find(options.runs_root, options.cancel, gallery=False))
        return OK
    if options.delete:
        jobs.delete(records.find(options.runs_root, options.delete, gallery=False))
        return OK
    for wanted, change in ((options.read_only, jobs.protect), (options.withdraw, jobs.withdraw)):
        if wanted:
            change(records.find(options.runs_root, wanted, gallery=False))
            return OK
    if options.publish:
        run = records.find(options.runs_root, options.publish)
        print(records.publish(run, records.GALLERY, weights=True).directory)
        return OK
    rows = index.rows(options.runs_root)
    if options.json:
        print(json.dumps(rows, indent=1))
        return OK
    if options.markdown:
        order = sorted(
            rows, key=lambda row: (row["procedure"], row["target_class"], row["epsilon"], row["sigma"], row["seed"])
        )
        print(tables.markdown([Run(options.runs_root / row["id"]) for row in order]))
        return OK
    for row in rows:
        drop = "" if row["drop_poisoned"] is None else f"drop {row['drop_poisoned']:.0%}"
        print(
            f"{row['id']}  {row['state']:<10}{row['preset'] or '':<16}{row['dataset']!s:<8}  "
            f"{row['target_name']}  epsilon {row['epsilon']!s:<6}sigma {row['sigma']!s:<6}"
            f"seed {row['seed']!s:<6}{drop}  {row['name']}"
        )
    return OK


def _certify(options: argparse.Namespace) -> int:
    import pandas as pd

    from engine import metrics
    from engine.more_draws import certify_again

    run = records.find(options.runs_root, options.id)
    names = ("all_classes", "n0", "n", "alpha", "precision", "radius", "seed")
    parts = certify_again(
        run,
        options.arm,
        options.victim,
        data_root=options.data_root or datasets.default_root(),
        **{name: getattr(options, name) for name in names},
    )
    done: list[Any] = []
    for part in parts:
        print(part.to_csv(index=False, header=not done).rstrip(), flush=True)
        done.append(part)
    table = pd.concat(done)
    draws, radius = table["draws"].mean(), metrics.correct_radius(table)
    told = f"ACR {radius.mean():.3f} (L2)"
    if options.radius:
        told = f"{(radius >= options.radius).mean():.1%} correct and certified at {options.radius:g} (L2)"
    print(
        f"{len(table)} images, {options.arm} victim {options.victim}: {told}; {draws:,.0f} draws an image, "
        f"{options.n / draws:.1f} times fewer than {options.n:,}",
        file=sys.stderr,
    )
    return OK


def _gallery(options: argparse.Namespace) -> int:
    def values(name: str, convert: Callable[[str], Any]) -> list[Any]:
        return [convert(part) for part in getattr(options, name).split(",") if part.strip()]

    points = grid.plan(
        values("procedures", str), values("classes", int), values("sigmas", float), values("epsilons", float)
    )
    if unknown := {point.procedure for point in points} - set(grid.BASES):
        raise ConfigError(f"--procedures must be among {', '.join(grid.BASES)}, got {', '.join(sorted(unknown))}")
    wanted = [("quick", [override], config) for override, config in grid.what_ifs().items()]
    if not options.what_ifs:
        wanted = [(point.preset, point.overrides, grid.config_of(point)) for point in points] + wanted
    published = {run.id: run for folder in (records.GALLERY, records.GRID) for run in records.all_runs(folder)}
    if options.markdown:
        there = (published.get(records.run_id(config)) for _, _, config in wanted)
        print(tables.markdown([run for run in there if run is not None]))
        return OK
    missing = [each for each in wanted if records.run_id(each[2]) not in published]
    data_root = options.data_root or datasets.default_root()
    for _, _, config in missing:
        datasets.check(parse(config.model_dump()), data_root)
    print(f"{len(wanted)} runs, {len(missing)} of them missing", file=sys.stderr)
    for preset, overrides, config in missing:
        print(" ".join(["--preset", preset, *(f"--set {override}" for override in overrides)]), flush=True)
        if options.dry_run:
            continue
        datasets.fetch(config.dataset, data_root)
        run = jobs.submit(config, runs_root=options.runs_root, data_root=data_root, preset=preset)
        if (code := _wait_for(run)) != OK:
            return code
        records.publish(run, records.GRID, weights=False)
    return OK


def _report(options: argparse.Namespace) -> int:
    run = records.find(options.runs_root, options.id)
    if options.html:
        from engine import html_report  # figures are slow to import, and only this needs them

        text = html_report.write(run, data_root=options.data_root or datasets.default_root())
        records.write_atomically(options.html, text)
        print(options.html)
        return OK
    _print_report(run, as_json=options.json)
    return OK


def _poison_file(options: argparse.Namespace) -> int:
    path, dataset = Path(options.file), options.dataset
    if path.is_file():
        poison = poison_file.read_path(path)
    elif re.fullmatch("[0-9a-f]{1,16}", options.file):
        run = records.find(options.runs_root, options.file)
        poison, dataset = poison_file.of_run(run), dataset or run.config.dataset
    else:
        raise ConfigError(f"FILE must be a file or a run's id, and there is no file {options.file!r}")
    dataset = dataset or "mnist"
    if dataset not in datasets.BUILT_IN and not dataset.startswith(FOLDER):
        raise ConfigError(f"--dataset must be one of {', '.join(datasets.BUILT_IN)} or folder:NAME, got {dataset!r}")
    data_root = options.data_root or datasets.default_root()
    target_class, epsilon = poison_file.fit(poison, dataset, data_root)
    poison_file.keep(poison, options.runs_root)
    name = datasets.class_in_words(dataset, target_class, datasets.class_names(dataset, data_root))
    print(f"{len(poison.indices)} images of {name}, changed by at most {epsilon:g} (L∞, pixel units of [0, 1])")
    print(f"SHA-256 {poison.sha256}")
    print(
        f"--set dataset={dataset} --set threat.target_class={target_class} --set threat.epsilon={epsilon:g} "
        f"--set attack.name=from-file --set attack.file={poison.sha256}"
    )
    return OK


def _study(options: argparse.Namespace) -> int:
    study = study_kinds.make(
        options.kind, preset=options.preset, overrides=options.set, rows=options.rows, columns=options.columns
    )
    return _do_study(study, options, preset=options.preset)


def _reproduce(options: argparse.Namespace) -> int:
    def parts(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    study = study_kinds.reproduction(
        parts(options.procedures),
        parts(options.datasets),
        None if options.sigmas is None else [float(part) for part in parts(options.sigmas)],
        scale=options.scale,
        seeds=options.seeds,
        victims=options.victims,
        overrides=options.set,
    )
    return _do_study(study, options, preset=None)


def _do_study(study: Study, options: argparse.Namespace, *, preset: str | None) -> int:
    data_root, cells = options.data_root or datasets.default_root(), study.in_order()
    studies.check(study, data_root)
    if options.dry_run:
        seconds = studies.seconds_of(study, device="cpu")
        planned = [{"cell": study.name_of(cell), "run_id": cell.run_id} for cell in cells]
        estimate = {"seconds": round(sum(seconds.values())), "device": "cpu"}
        print(json.dumps({"study_id": study.id, "kind": study.kind, "cells": planned, "estimate": estimate}, indent=1))
        return OK
    for dataset in dict.fromkeys(cell.config.dataset for cell in cells):
        datasets.fetch(dataset, data_root)
    record = studies.submit(study, runs_root=options.runs_root, data_root=data_root, preset=preset)
    try:
        _follow(record)
    except KeyboardInterrupt:
        print("\ncancelling; finished cells stay, and the same command goes on with the others", file=sys.stderr)
        studies.stop_now(record)
    status = record.status()
    print(
        *(f"no result: {event}" for event in status.events), sep="\n", end="\n" * bool(status.events), file=sys.stderr
    )
    found = study_tables.results(record)
    print(_study_text(found, options.form))
    if folder := getattr(options, "output", None):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{record.id}.md").write_text(study_tables.markdown(found) + "\n")
        (folder / f"{record.id}.csv").write_text(study_tables.csv_text(found))
    if status.state != "done":
        reason = f": {status.error}" if status.error else ""
        print(f"study {record.id} {status.state}{reason}. Its directory: {record.directory}", file=sys.stderr)
        return FAILED
    return OK


def _study_text(found: dict[str, Any], form: str | None) -> str:
    if form == "json":
        return json.dumps(found)
    return study_tables.csv_text(found).rstrip() if form == "csv" else study_tables.markdown(found)


def _studies(options: argparse.Namespace) -> int:
    def chosen(identifier: str) -> StudyRecord:
        return studies.find(options.runs_root, identifier)

    if options.cancel:
        studies.stop_now(chosen(options.cancel))
    elif options.delete:
        studies.delete(chosen(options.delete))
    elif options.publish:
        record = chosen(options.publish)
        print(studies.publish(record, study_tables.results(record)))
    elif options.id:
        shipped = [found for found in studies.published() if found["id"].startswith(options.id)]
        found = shipped[0] if len(shipped) == 1 else study_tables.results(chosen(options.id))
        print(_study_text(found, options.form))
    else:
        known = sorted(studies.all_studies(options.runs_root), key=lambda record: -record.status().submitted)
        rows = [_study_row(record) for record in known]
        if options.form == "json":
            print(json.dumps(rows, indent=1))
        else:
            lines = (
                f"{r['id']}  {r['state']:<10}{r['kind']:<23}{r['preset'] or '':<16}{r['done']}/{r['cells']}"
                for r in rows
            )
            print(*lines, sep="\n", end="\n" * bool(rows))
    return OK


def _study_row(record: StudyRecord) -> dict[str, Any]:
    study = record.study
    cells, kind = len(study.cells()), study.kind
    done, preset = cells - len(record.unfinished()), record.request.get("preset")
    return {
        "id": record.id,
        "state": record.status().state,
        "kind": kind,
        "preset": preset,
        "done": done,
        "cells": cells,
    }


if __name__ == "__main__":
    sys.exit(main())
