"""The command line, on the same run directories as the app."""

import argparse
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from engine import datasets, grid, index, jobs, poison_file, records, worker
from engine.choices import ARMS
from engine.config import ConfigError, dataset_name
from engine.costs import estimate, expected_device
from engine.exhibit import small_copy
from engine.follow import BAD_INPUT, OK, add_data_root, foretold, telling, values, wait_for
from engine.overrides import parse, with_overrides
from engine.presets import PRESETS, WIDTH, find_preset, kept_at_another_sigma
from engine.records import Run, RunNotFound
from engine.report import citations, tables
from engine.report.sentences import duration, of_pairs
from engine.studies import commands as study_commands

WRITERS = ("run", "study", "reproduce", "gallery", "poison-file")  # commands that keep something under the runs' root
NICENESS = 10  # of a worker: whoever clicks in the app comes first


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 if a run failed or was cancelled; 2, with one line, for bad input."""
    for stream in (sys.stdout, sys.stderr):  # σ and ± need not be in the terminal's alphabet
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        if "runs_root" in options:
            records.check_root(options.runs_root, to_write=options.writes)
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
        added.set_defaults(command=function, writes=name in WRITERS)
        if name != "presets":
            added.add_argument(
                "--runs-root", type=Path, default=records.default_root(), help="default: runs/ or PACD_RUNS"
            )
        return added

    run = command("run", _run, "Run one experiment; its report goes to standard output, progress to standard error.")
    base = run.add_mutually_exclusive_group()
    base.add_argument("--preset", default="quick", metavar="NAME", help=f"one of {', '.join(PRESETS)} (default: quick)")
    base.add_argument(
        "--start-from",
        metavar="ID",
        help="the settings of a finished run of PACD, and its poison as the start of the attack, of fewer upper steps",
    )
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field, dotted; repeatable")
    add_data_root(run)
    run.add_argument("--json", action="store_true", help="print report.json instead of a summary")
    run.add_argument("--dry-run", action="store_true", help="check, print configuration and estimate, run nothing")

    fetch = commands.add_parser("fetch", help="Put a data set on this machine, from the network if need be.")
    fetch.add_argument("dataset", choices=list(datasets.BUILT_IN))
    add_data_root(fetch)
    fetch.set_defaults(command=_fetch)

    presets = command("presets", _presets, "List the presets.")
    presets.add_argument("--json", action="store_true", help="with their configurations, as JSON")
    presets.add_argument(
        "--markdown",
        action="store_true",
        help="every setting of the authors' six beside each other, and of the others, as tables",
    )
    presets.add_argument("--departs", action="store_true", help="and how each differs from the authors' setting")

    runs = command("runs", _runs, "List the runs, newest first; or cancel or delete one.")
    one = runs.add_mutually_exclusive_group()
    one.add_argument("--json", action="store_true")
    one.add_argument("--markdown", action="store_true", help="a table of the results of the finished ones")
    one.add_argument("--exhibit", metavar="ID", help="copy a finished run into gallery/, small, for everyone to see")
    one.add_argument("--publish", metavar="ID", help="make a finished run read-only for all who use these runs")
    one.add_argument("--withdraw", metavar="ID", help="and take that back")
    one.add_argument("--cancel", metavar="ID", help="stop a queued or running run; it keeps what it has")
    one.add_argument("--delete", metavar="ID", help="remove a run and what only it uses")

    report = command("report", _report, "Print the report of a run.")
    report.add_argument("id", help="a run id, or its first digits")
    report.add_argument("--n", type=int, help="as if only so many of its estimation draws had been made")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument(
        "--csv", action="store_true", help="its certificates, with votes: a row per arm, victim and image"
    )
    form.add_argument("--cite", action="store_true", help="print whose work the run rests on, as BibTeX, instead")
    form.add_argument("--html", type=Path, metavar="FILE", help="write it as one file that works offline instead")
    add_data_root(report)

    certify = command("certify", _certify, "Certify a finished run's victim again; a row for each image, as CSV.")
    certify.add_argument("id", help="a run id, or its first digits")
    certify.add_argument("--arm", default="poisoned", choices=ARMS, help="default: poisoned")
    certify.add_argument("--victim", type=int, default=0, metavar="K", help="default: 0")
    certify.add_argument(
        "--image", action="append", type=int, dest="images", metavar="NUMBER", help="only this test image; repeatable"
    )
    certify.add_argument("--all-classes", action="store_true", help="not only the target class")
    certify.add_argument("--n", type=int, default=100_000, help="estimation draws, at most (default: 100000)")
    certify.add_argument("--n0", type=int, default=100, help="selection draws (default: 100)")
    certify.add_argument("--alpha", type=float, default=0.001, help="failure probability (default: 0.001)")
    certify.add_argument(
        "--precision",
        type=float,
        help="stop once the radius is very likely within this share of what all n draws would give",
    )
    certify.add_argument("--radius", type=float, help="stop once it is known whether this L2 radius is certified")
    certify.add_argument("--seed", type=int, default=0)
    add_data_root(certify)

    poison = command("poison-file", _poison_file, "Check a poison that somebody brings, and keep it for attacks.")
    poison.add_argument(
        "file",
        metavar="FILE",
        help="a .safetensors or .npz file of delta, float32 [P, C, H, W], and indices, int64 [P], which number images "
        "of the original training set; or a run's id",
    )
    poison.add_argument("--dataset", help="whose training images it changes (default: the run's, else mnist)")
    add_data_root(poison)

    gallery = command("gallery", _gallery, "Compute the runs of Explore and of the lesson; resumes where it stopped.")
    for name, every in (
        ("procedures", grid.BASES),
        ("classes", grid.DIGITS),
        ("sigmas", grid.SIGMAS),
        ("epsilons", grid.EPSILONS),
    ):
        gallery.add_argument(f"--{name}", default=",".join(map(str, every)), metavar="V1,V2", help="default: all")
    gallery.add_argument("--what-ifs", action="store_true", help="only the what-ifs: quick with one field changed")
    add_data_root(gallery)
    gallery.add_argument("--dry-run", action="store_true", help="print what is missing, run nothing")
    gallery.add_argument("--markdown", action="store_true", help="print a table of what is there, run nothing")

    work = commands.add_parser("work", help="Do the work of a run directory: what `run` and the app start.")
    work.add_argument("directory", type=Path)
    work.set_defaults(command=_work)
    study_commands.add(commands, command)
    return parser


def _work(options: argparse.Namespace) -> int:
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    return worker.work(options.directory)


def _run(options: argparse.Namespace) -> int:
    preset, base, start, parent = options.preset, find_preset(options.preset).config, [], None
    if options.start_from:
        parent = records.find(options.runs_root, options.start_from)
        start, base = poison_file.starting_from(parent, options.runs_root), parent.config
        preset = known if (known := parent.request.get("preset")) in PRESETS else preset
    config = with_overrides(base, [*start, *options.set])
    data_root = options.data_root
    jobs.check(config, runs_root=options.runs_root, data_root=data_root)
    if said := kept_at_another_sigma(preset, config):
        print(f"note: {said}", file=sys.stderr)
    if options.dry_run:
        print(json.dumps(foretold(config, data_root=data_root), indent=1))
        return OK
    datasets.fetch(config.dataset, data_root)
    run = jobs.submit(
        config,
        runs_root=options.runs_root,
        data_root=data_root,
        preset=preset,
        forked_from=parent.id if parent else None,
    )
    if (code := wait_for(run)) == OK:
        _print_report(run, form="json" if options.json else "text")
    return code


def _fetch(options: argparse.Namespace) -> int:
    root = options.data_root
    datasets.fetch(options.dataset, root)
    print(f"{datasets.describe(options.dataset)}: on this machine ({root})")
    return OK


def _print_report(run: Run, *, form: str, n: int | None = None) -> None:
    from engine.report.numbers import build_report, certificates_csv, estimates, with_draws  # pandas is slow to import

    report, table, config = run.need_report(), run.need_certificates(), run.config
    if n is not None:
        table, config = with_draws(table, config, n)
        table = table.drop(columns="estimation_votes")  # which are of all draws
        report |= build_report(table, config, class_names=report["class_names"])
    if form == "csv":
        print(certificates_csv(table, run).rstrip())
    elif form == "json":
        print(json.dumps(report))
    else:
        print(tables.summary(report, estimates(table, "target", config)))


def _presets(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({name: preset.config.model_dump(mode="json") for name, preset in PRESETS.items()}, indent=1))
        return OK
    if options.markdown:
        of_the_paper = {name for name in PRESETS if name.startswith("paper-")}
        tell = [of_the_paper, PRESETS.keys() - of_the_paper]
        print(*(tables.settings({n: p.config for n, p in PRESETS.items() if n in names}) for names in tell), sep="\n\n")
        return OK
    indent = " " * WIDTH
    device = expected_device()
    for preset in PRESETS.values():
        expected = duration(estimate(preset.config, device=device).seconds)
        print(f"{preset.name:<{WIDTH}}{preset.sentence}\n{indent}about {expected} on this machine's {device.upper()}")
        if options.departs:
            print(*(f"{indent}departs from the authors: {text}" for text in preset.departs), sep="\n")
    return OK


def _runs(options: argparse.Namespace) -> int:
    if options.cancel is not None:
        run = records.find(options.runs_root, options.cancel, gallery=False)
        if not jobs.can_end(run.status()):
            print(f"run {run.id} is {run.status().state}: nothing to cancel")
        jobs.stop_now(run)
        return OK
    if options.delete is not None:
        jobs.delete(records.find(options.runs_root, options.delete, gallery=False))
        return OK
    if options.publish is not None:
        run = records.find(options.runs_root, options.publish, gallery=False)
        jobs.publish(run)
        print(f"run {run.id} is published, read-only")
        return OK
    if options.withdraw is not None:
        run = records.find(options.runs_root, options.withdraw, gallery=False)
        print(f"run {run.id} is {'withdrawn' if run.published else 'not published: nothing to withdraw'}")
        jobs.withdraw(run)
        return OK
    if options.exhibit is not None:
        run = records.find(options.runs_root, options.exhibit)
        if run.status().state != "done":
            raise RunNotFound(f"run {run.id} is {run.status().state}, and only finished ones can be copied")
        print(small_copy(run, records.GALLERY, weights=True).directory)
        return OK
    rows = index.rows(options.runs_root)
    if options.json:
        print(json.dumps(rows, indent=1))
        return OK
    if options.markdown:
        ours = [row for row in rows if Run(options.runs_root / row["id"]).readable]
        order = sorted(
            ours, key=lambda row: (row["procedure"], row["target_class"], row["epsilon"], row["sigma"], row["seed"])
        )
        print(tables.markdown([Run(options.runs_root / row["id"]) for row in order]))
        return OK
    if not rows:
        examples = ", ".join(sorted(run.id for run in records.all_runs(records.GALLERY)))
        print(f"no runs under {options.runs_root} yet; with the project come {examples}", file=sys.stderr)
    for row in rows:
        drop = "" if row["drop_poisoned"] is None else f"drop {row['drop_poisoned']:.0%}"
        drop += of_pairs(row["drop_pairs"], row["victim_seeds"] or 0) if drop else ""
        print(
            f"{row['id']}  {row['state']:<10}{row['preset'] or '':<{WIDTH}}{row['dataset']!s:<8}  "
            f"{row['target_name']}  epsilon {row['epsilon']!s:<6}sigma {row['sigma']!s:<6}"
            f"seed {row['seed']!s:<6}{drop}  {row['name']}"
        )
    return OK


def _certify(options: argparse.Namespace) -> int:
    import numpy as np
    import pandas as pd

    from engine import metrics
    from engine.experiment.more_draws import certify_again

    run = records.find(options.runs_root, options.id)
    names = ("images", "all_classes", "n0", "n", "alpha", "precision", "radius", "seed")
    parts = certify_again(
        run,
        options.arm,
        options.victim,
        data_root=options.data_root,
        progress=telling("certified"),
        **{name: getattr(options, name) for name in names},
    )
    unanswered = [] if options.radius is None else ["prediction", "radius"]  # of images that stopped at a question
    done: list[Any] = []
    for part in parts:
        print(part.drop(columns=unanswered).to_csv(index=False, header=not done).rstrip(), flush=True)
        done.append(part)
    table = pd.concat(done)
    draws, told = table["draws"].mean(), f"ACR {metrics.average_certified_radius(table):.3f} (L2)"
    if options.radius is not None:
        share = metrics.certified_accuracy(table, np.array([options.radius]))[0]
        told = f"{share:.1%} correct and certified at {options.radius:g} (L2)"
    print(
        f"{len(table)} images, {options.arm} victim {options.victim}: {told}; {draws:,.0f} draws an image, "
        f"{options.n / draws:.1f} times fewer than {options.n:,}",
        file=sys.stderr,
    )
    return OK


def _gallery(options: argparse.Namespace) -> int:
    points = grid.plan(
        values("--procedures", options.procedures, str),
        values("--classes", options.classes, int),
        values("--sigmas", options.sigmas, float),
        values("--epsilons", options.epsilons, float),
    )
    if unknown := {point.procedure for point in points} - set(grid.BASES):
        raise ConfigError(f"--procedures must be among {', '.join(grid.BASES)}, got {', '.join(sorted(unknown))}")
    wanted = [("quick", [override], config) for override, config in grid.what_ifs().items()]
    if not options.what_ifs:
        wanted = [(point.preset, point.overrides, grid.config_of(point)) for point in points] + wanted
    exhibited = {run.id: run for folder in (records.GALLERY, records.GRID) for run in records.all_runs(folder)}
    if options.markdown:
        there = (exhibited.get(records.run_id(config)) for _, _, config in wanted)
        print(tables.markdown([run for run in there if run is not None]))
        return OK
    missing = [each for each in wanted if records.run_id(each[2]) not in exhibited]
    data_root = options.data_root
    for _, _, config in missing:
        datasets.check(parse(config.model_dump()), data_root)
    print(f"{len(wanted)} runs, {len(missing)} of them missing", file=sys.stderr)
    for preset, overrides, config in missing:
        print(" ".join(["--preset", preset, *(f"--set {override}" for override in overrides)]), flush=True)
        if options.dry_run:
            continue
        datasets.fetch(config.dataset, data_root)
        run = jobs.submit(config, runs_root=options.runs_root, data_root=data_root, preset=preset)
        if (code := wait_for(run)) != OK:
            return code
        small_copy(run, records.GRID, weights=False)
    return OK


def _report(options: argparse.Namespace) -> int:
    run = records.find(options.runs_root, options.id)
    if options.n is not None and (options.html or options.cite):
        raise ConfigError(f"--{'html' if options.html else 'cite'} knows no draws: give --n without it")
    if options.html:
        from engine import html_report  # figures are slow to import, and only this needs them

        html_report.save(run, options.html, data_root=options.data_root)
        print(options.html)
        return OK
    if options.cite:
        print(citations.of_run(run), end="")
        return OK
    _print_report(run, form="csv" if options.csv else "json" if options.json else "text", n=options.n)
    return OK


def _poison_file(options: argparse.Namespace) -> int:
    path, dataset = Path(options.file), options.dataset
    if path.is_file():
        poison = poison_file.read_path(path)
    elif re.fullmatch("[0-9a-f]{1,16}", options.file):
        run = records.find(options.runs_root, options.file)
        poison, dataset = poison_file.of_run(run), dataset or run.config.dataset
    else:
        found = f"{options.file!r} is no regular file" if path.exists() else f"there is no file {options.file!r}"
        raise ConfigError(f"FILE must be a file or a run's id, and {found}")
    dataset = dataset_name(dataset or "mnist")
    data_root = options.data_root
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


if __name__ == "__main__":
    sys.exit(main())
