"""`python -m benchmarks.baselines`: clean victims by the recipes of published baselines, beside what was published.

Each is an ordinary run in the folder of runs: what is finished is not computed again. On a GPU all are trained side by
side, in this process; on a CPU one after the other.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from benchmarks.measure import Table
from engine import datasets, jobs, worker
from engine.config import Config, ConfigError
from engine.metrics import correct_radius, interval_of_mean
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import GALLERY, Run, default_root, run_id
from engine.status import Status

Key = tuple[str, str, float]  # data set, procedure, σ
# The target class's ACR, its standard deviation over five seeds and its accuracy where they are known: all test images,
# n = 100 000, alpha = 0.001. Of LeNets on MNIST and of ResNet-20s on CIFAR-10, in the logs data/certify of
# github.com/jh-jeong/smoothing-consistency (SmoothMix: of jh-jeong/smoothmix).
PUBLISHED: dict[Key, tuple[float, float | None, float | None]] = {
    ("mnist", "gaussian", 0.25): (0.898, 0.001, 0.990),
    ("mnist", "gaussian", 0.5): (1.464, 0.008, 0.991),
    ("mnist", "gaussian", 1.0): (1.318, 0.010, 0.948),
    ("mnist", "smoothadv", 0.25): (0.930, 0.000, 0.993),
    ("mnist", "smoothadv", 0.5): (1.625, 0.004, 0.991),
    ("mnist", "smoothadv", 1.0): (1.366, 0.018, 0.934),
    ("mnist", "macer", 0.25): (0.910, 0.003, 0.992),
    ("mnist", "macer", 0.5): (1.495, 0.041, 0.988),
    ("mnist", "macer", 1.0): (1.069, 0.083, 0.837),
    ("mnist", "consistency", 0.25): (0.925, None, 0.993),
    ("mnist", "consistency", 0.5): (1.592, None, 0.992),
    ("mnist", "consistency", 1.0): (1.386, None, 0.921),
    ("mnist", "smoothmix", 0.25): (0.928, None, None),
    ("mnist", "smoothmix", 0.5): (1.605, None, None),
    ("mnist", "smoothmix", 1.0): (1.340, None, None),
    ("cifar10", "gaussian", 0.5): (0.766, None, 0.833),
    ("cifar10", "smoothadv", 0.5): (1.084, None, 0.852),
    ("cifar10", "macer", 0.5): (0.977, None, 0.824),
    ("cifar10", "consistency", 0.5): (1.057, None, 0.777),
}
PUBLISHED_N = 100_000  # with fewer draws the cap hides a part of the radii
RECIPES = {  # beside the preset baseline-ga-mnist
    "mnist": (),
    "cifar10": (
        *("dataset=cifar10", "architecture=resnet20", "data.train_size=49950", "training.augmentation=crop-flip"),
        *("training.epochs=150", "training.learning_rate=0.1"),
    ),
}
# Settings of procedures, where they are not their defaults. Minibatches are of 256 images; those of SmoothAdv,
# Consistency and SmoothMix are smaller, since their scripts take a step on each part of one, a part a noise draw.
OWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("mnist", "smoothadv"): ("training.batch_size=64",),
    ("mnist", "consistency"): ("training.batch_size=128",),
    ("mnist", "smoothmix"): ("training.batch_size=64",),
    ("cifar10", "smoothadv"): ("procedure.draws=8", "procedure.warmup=0.067", "training.batch_size=32"),
    ("cifar10", "macer"): (  # its rate falls after thirds of the training; Zhai et al.'s after 200 and 400 epochs
        *("procedure.weight=4", "training.epochs=440", "training.learning_rate=0.01", "training.weight_decay=5e-4"),
        *("procedure.warmup=0", "training.batch_size=64"),
    ),
    ("cifar10", "consistency"): ("procedure.weight=10", "training.batch_size=128"),
}
OWN_AT: dict[Key, tuple[str, ...]] = {
    ("mnist", "macer", 1.0): ("procedure.weight=6",),
    ("mnist", "consistency", 0.25): ("procedure.weight=10",),
    ("mnist", "smoothmix", 0.25): ("procedure.adversary_steps=2",),
    ("mnist", "smoothmix", 1.0): ("procedure.adversary_steps=8",),
}
IMAGES, TARGET = {"mnist": 974, "cifar10": 1000}, {"mnist": "digit 8", "cifar10": "ships"}  # in the test set


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    procedures, sigmas = (sorted({key[part] for key in PUBLISHED}) for part in (1, 2))
    parser.add_argument("--dataset", choices=list(RECIPES), default="mnist", help="default: mnist")
    parser.add_argument("--procedures", nargs="+", choices=procedures, default=procedures, help="default: all")
    parser.add_argument("--sigmas", nargs="+", type=float, choices=sigmas, default=sigmas, help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="victims of each (default: 1)")
    parser.add_argument("--images", type=int, help="test images of digit 8, or ships (default: all)")
    parser.add_argument("--epochs", type=int, help="default: as published, 90 on MNIST")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field; repeatable")
    parser.add_argument("--runs", type=Path, default=None, help="folder of runs (default: runs/ or PACD_RUNS)")
    options = parser.parse_args(arguments)
    root = options.runs or default_root()
    images = IMAGES[options.dataset] if options.images is None else options.images
    changed = [f"victim_seeds={options.seeds}", f"certification.target_images={images}"]
    changed += [] if options.epochs is None else [f"training.epochs={options.epochs}"]
    changed += options.set
    wanted = [
        key
        for key in PUBLISHED
        if key[0] == options.dataset and key[1] in options.procedures and key[2] in options.sigmas
    ]
    if not wanted:
        parser.error(f"nothing is published for these; known: {', '.join(map(str, PUBLISHED))}")
    try:
        configs = {key: baseline(*key, changed) for key in wanted}
    except ConfigError as error:
        parser.error(str(error))
    runs = {key: Run(root / run_id(config)) for key, config in configs.items()}
    open_still = [configs[key] for key, run in runs.items() if not run.exists() or run.status().state != "done"]
    if open_still and root.resolve().is_relative_to(GALLERY.resolve()):
        parser.error(f"{root} comes with the project and has no such runs: name another folder, to compute them there")
    (side_by_side if torch.cuda.is_available() else one_by_one)(open_still, root)
    finished = {key: run for key, run in runs.items() if run.status().state == "done"}
    if finished:
        print(table(finished).markdown(), where(list(finished.values())), sep="\n")
    if len(finished) < len(runs):
        sys.exit(1)


def baseline(dataset: str, procedure: str, sigma: float, changed: Sequence[str] = ()) -> Config:
    """The published recipe, but for what is changed. Raises: ConfigError."""
    common = f"procedure={procedure}", f"sigma={sigma}", "certification.other_images=1", "training.precision=fast"
    own = *OWN.get((dataset, procedure), ()), *OWN_AT.get((dataset, procedure, sigma), ())
    return with_overrides(PRESETS["baseline-ga-mnist"].config, [*common, *RECIPES[dataset], *own, *changed])


def one_by_one(configs: list[Config], root: Path) -> None:
    for config in configs:
        run = jobs.submit(config, runs_root=root, data_root=datasets.default_root(), preset="baseline-ga-mnist")
        told(run.id, config)
        while jobs.awaited(run).active:
            time.sleep(0.2)
        told(run.id, config, run.status().state)


def side_by_side(configs: list[Config], root: Path) -> None:
    """A GPU is hardly busy with one small victim, and a process of the engine's own works on one run."""
    os.environ.update(jobs.WORKER_ENVIRONMENT)  # before the GPU's libraries look at it
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    started = []
    for config in configs:
        run = Run(root / run_id(config))
        request = {"preset": "baseline-ga-mnist", "data_root": str(datasets.default_root())}
        jobs.lay_out(run, config.canonical(), request=request)
        started.append((run, replace(worker.begin(run), state="running", started=time.time(), phase="starting")))

    def stop(*_: object) -> None:
        for run, _status in started:
            jobs.cancel(run)

    def work(config: Config, run: Run, status: Status) -> None:
        worker.perform(run, status)
        told(run.id, config, run.status().state)

    try:
        for which in before:
            signal.signal(which, stop)
        with FileLock(root / ".device.lock"), ThreadPoolExecutor(max(1, len(started))) as threads:
            for each in [threads.submit(work, config, *one) for config, one in zip(configs, started, strict=True)]:
                each.result()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def told(identifier: str, config: Config, state: str = "begins") -> None:
    print(f"{identifier}: {config.procedure.name}, σ = {config.sigma}: {state}", file=sys.stderr, flush=True)


def table(runs: dict[Key, Run]) -> Table:
    """A row for each run, in their order."""
    rows = []
    for (dataset, procedure, sigma), run in runs.items():
        published, spread, accuracy = PUBLISHED[dataset, procedure, sigma]
        report, certificates = run.need_report(), run.need_certificates()
        arm = report["arms"]["clean"]
        acr, target = arm["average_certified_radius"]["target"], run.config.threat.target_class
        of_class = certificates[certificates["label"] == target]
        radii = correct_radius(of_class).groupby(of_class["image"]).mean()
        interval = interval_of_mean(radii, radii * 0 + 1)
        half = (interval.high - interval.low) / 2
        away = (acr["mean"] - published) / spread if spread and run.config.certification.n == PUBLISHED_N else None
        beside = "" if accuracy is None else f" (published {accuracy:.3f})"
        rows.append(
            (
                procedure,
                f"{sigma:.2f}",
                f"{published:.3f}" + ("" if spread is None else f" ± {spread:.3f}"),
                f"{acr['mean']:.3f}" + ("" if acr["sd"] is None else f" ± {acr['sd']:.3f}"),
                "–" if away is None else f"{away:+.1f}",
                "all" if len(radii) == IMAGES[dataset] else f"{len(radii)} (± {half:.3f})",
                f"{arm['accuracy']['target']['mean']:.3f}{beside}",
                f"{report['seconds']['total']:.0f}",
            )
        )
    what = TARGET[next(iter(runs))[0]]
    columns = (
        *("procedure", "σ", f"published ACR of {what}, mean ± sd", "here, mean ± sd over seeds", "published sds away"),
        *("images (± 95 % over images)", f"accuracy of {what}", "s"),
    )
    return Table("Clean victims", columns, rows, [])


def where(runs: list[Run]) -> str:
    """What their numbers depend on beside what the table says."""
    lines = set()
    for run in runs:
        config, facts = run.config, run.environment
        lines.add(
            f"{config.training.epochs} epochs, {config.victim_seeds} victims each, n = {config.certification.n}; "
            f"{facts['device_name']}, torch {facts['torch']}, commit {facts['commit']}"
        )
    return "\n".join(sorted(lines))


if __name__ == "__main__":
    main()
