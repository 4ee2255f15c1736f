"""The part of the command line that deals with studies and reproductions."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import datasets, paper
from engine.config import ConfigError
from engine.costs import expected_device
from engine.follow import FAILED, OK, add_data_root, follow, values
from engine.presets import WIDTH
from engine.records import RunNotFound, write_atomically
from engine.studies import exhibits, process, results, tables
from engine.studies import kinds as study_kinds
from engine.studies.process import StudyRecord
from engine.studies.study import Study, seconds_of


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    sentences = ((name, kind.sentence) for name, kind in study_kinds.KINDS.items())
    kinds = "; ".join(f"{name}: {sentence[0].lower()}{sentence[1:].rstrip('.')}" for name, sentence in sentences)
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
    reproduce.add_argument("--arms", default=",".join(study_kinds.REPRODUCED), metavar="A1,A2", help="default: all")
    reproduce.add_argument("--seeds", type=int, default=1, help="seeds of the whole protocol (default: 1)")
    reproduce.add_argument("--victims", type=int, help="victims for each arm (default: the setting's own number)")
    reproduce.add_argument("--scale", default="full", help="full: the authors' setting, for a GPU; small: for a CPU")
    reproduce.add_argument("--output", type=Path, metavar="DIR", help="write ID.md and ID.csv there, too")
    for parser in (study, reproduce):
        parser.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", help="for all cells; repeatable"
        )
        add_data_root(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="check, print the cells and an estimate, run nothing"
        )

    listed = command("studies", _studies, "List the studies; or print, cancel, delete or exhibit one.")
    listed.add_argument(
        "id", nargs="?", metavar="ID", help="print this study's table as it is now, or that of one in gallery/studies/"
    )
    one = listed.add_mutually_exclusive_group()
    one.add_argument("--cancel", metavar="ID", help="stop a study and its current run; what is finished stays")
    one.add_argument("--delete", metavar="ID", help="remove a study; its runs stay")
    one.add_argument("--exhibit", metavar="ID", help="copy a finished study and its runs, made small, into gallery/")
    for parser in (study, reproduce, listed):
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_const", dest="form", const="json", help="everything, as JSON")
        form.add_argument("--csv", action="store_const", dest="form", const="csv", help="a row per cell")
        form.add_argument("--markdown", action="store_const", dest="form", const="markdown", help="the default")
    form.add_argument("--minus", metavar="NAME", help="by how much each other row or column takes more than this one")
    work = commands.add_parser("study-work", help="Do the work of a study directory: what `study` and the app start.")
    work.add_argument("directory", type=Path)
    work.set_defaults(command=lambda options: process.work(options.directory))


def _study(options: argparse.Namespace) -> int:
    study = study_kinds.make(
        options.kind, preset=options.preset, overrides=options.set, rows=options.rows, columns=options.columns
    )
    return _do_study(study, options, preset=options.preset)


def _reproduce(options: argparse.Namespace) -> int:
    study = study_kinds.reproduction(
        values("--procedures", options.procedures, str),
        values("--datasets", options.datasets, str),
        None if options.sigmas is None else values("--sigmas", options.sigmas, float),
        arms=values("--arms", options.arms, str),
        scale=options.scale,
        seeds=options.seeds,
        victims=options.victims,
        overrides=options.set,
    )
    return _do_study(study, options, preset=None)


def _do_study(study: Study, options: argparse.Namespace, *, preset: str | None) -> int:
    data_root, cells = options.data_root, study.in_order()
    process.check(study, runs_root=options.runs_root, data_root=data_root)
    if options.dry_run:
        device = expected_device()
        seconds = seconds_of(study, device=device, data_root=data_root)
        planned = [{"cell": study.name_of(cell), "run_id": cell.run_id} for cell in cells]
        estimate = {"seconds": round(sum(seconds.values())), "device": device}
        plan = {"study_id": study.id, "kind": study.kind, "cells": planned, "estimate": estimate}
        print(json.dumps(plan, indent=1, ensure_ascii=False))
        return OK
    for dataset in dict.fromkeys(cell.config.dataset for cell in cells):
        datasets.fetch(dataset, data_root)
    record = process.submit(study, runs_root=options.runs_root, data_root=data_root, preset=preset)
    try:
        follow(record)
    except KeyboardInterrupt:
        print("\ncancelling; finished cells stay, and the same command goes on with the others", file=sys.stderr)
        process.stop_now(record)
    status = record.status()
    print(
        *(f"no result: {event}" for event in status.events), sep="\n", end="\n" * bool(status.events), file=sys.stderr
    )
    found = results.of(record)
    print(_study_text(found, options.form))
    if folder := getattr(options, "output", None):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{record.id}.md", tables.markdown(found) + "\n")
        write_atomically(folder / f"{record.id}.csv", tables.csv_text(found))
    if status.state != "done":
        reason = f": {status.error}" if status.error else ""
        print(f"study {record.id} {status.state}{reason}. Its directory: {record.directory}", file=sys.stderr)
        return FAILED
    return OK


def _study_text(found: dict[str, Any], form: str | None) -> str:
    if form == "json":
        return json.dumps(found)
    return tables.csv_text(found).rstrip() if form == "csv" else tables.markdown(found)


def _studies(options: argparse.Namespace) -> int:
    def chosen(identifier: str) -> StudyRecord:
        return process.find(options.runs_root, identifier)

    if options.minus is not None and options.id is None:
        raise ConfigError("--minus needs the ID of a study")
    if options.cancel is not None:
        process.stop_now(chosen(options.cancel))
    elif options.delete is not None:
        process.delete(chosen(options.delete))
    elif options.exhibit is not None:
        record = chosen(options.exhibit)
        print(exhibits.exhibit(record, results.of(record)))
    elif options.id is not None:
        shipped = [found for found in exhibits.exhibited() if found["id"].startswith(options.id)]
        try:
            found = results.of(chosen(options.id))
        except RunNotFound:
            if len(shipped) != 1:
                raise
            found = shipped[0]
        print(tables.minus(found, options.minus) if options.minus else _study_text(found, options.form))
    else:
        known = sorted(process.all_studies(options.runs_root), key=lambda record: -record.status().submitted)
        rows = [_study_row(record) for record in known]
        if options.form == "json":
            print(json.dumps(rows, indent=1))
        else:
            lines = (
                f"{r['id']}  {r['state']:<10}{r['kind']:<23}{r['preset'] or '':<{WIDTH}}{r['done']}/{r['cells']}"
                for r in rows
            )
            print(*lines, sep="\n", end="\n" * bool(rows))
            if not rows:
                print(f"no studies under {options.runs_root} yet", file=sys.stderr)
            _print_shipped()
    return OK


def _print_shipped() -> None:
    print("with the project come:")
    for identifier, note in exhibits.notes().items():
        print(f"{identifier}  {note.title}\n  {note.finding}")


def _study_row(record: StudyRecord) -> dict[str, Any]:
    try:
        study = record.study
    except RunNotFound:
        return {"id": record.id, "state": "unreadable", "kind": "", "preset": None, "done": 0, "cells": 0}
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
