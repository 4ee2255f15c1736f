"""`python -m benchmarks.baselines`: clean victims by the recipes of published baselines, beside what was published.

Each is an ordinary run in the folder of runs: what is finished is not computed again. On a GPU all are trained side by
side, in this process; on a CPU one after the other.
"""

import argparse
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from benchmarks.measure import Table
from engine import datasets, jobs
from engine.config import Config, ConfigError
from engine.metrics import correct_radius, interval_of_mean
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, Status, default_root, run_id

# (procedure, σ): digit 8's ACR, its standard deviation over five seeds and its accuracy where they are known, of LeNets
# in the logs data/certify/mnist of github.com/jh-jeong/smoothing-consistency (SmoothMix: of jh-jeong/smoothmix): all
# test images, n = 100 000, alpha = 0.001.
PUBLISHED: dict[tuple[str, float], tuple[float, float | None, float | None]] = {
    ("gaussian", 0.25): (0.898, 0.001, 0.990),
    ("gaussian", 0.5): (1.464, 0.008, 0.991),
    ("gaussian", 1.0): (1.318, 0.010, 0.948),
    ("smoothadv", 0.25): (0.930, 0.000, 0.993),
    ("smoothadv", 0.5): (1.625, 0.004, 0.991),
    ("smoothadv", 1.0): (1.366, 0.018, 0.934),
    ("macer", 0.25): (0.910, 0.003, 0.992),
    ("macer", 0.5): (1.495, 0.041, 0.988),
    ("macer", 1.0): (1.069, 0.083, 0.837),
    ("consistency", 0.25): (0.925, None, 0.993),
    ("consistency", 0.5): (1.592, None, 0.992),
    ("consistency", 1.0): (1.386, None, 0.921),
    ("smoothmix", 0.5): (1.605, None, None),
    ("smoothmix", 1.0): (1.340, None, None),
}
OWN = {  # settings of procedures, where they are not their papers'
    ("macer", 1.0): ["procedure.weight=6"],
    ("consistency", 0.25): ["procedure.weight=10"],
    ("smoothmix", 1.0): ["procedure.adversary_steps=8"],
}
# Images, where it is not 256: these scripts take a step on each part of a loader's batch, one for each noise draw.
MINIBATCH = {"smoothadv": 64, "consistency": 128, "smoothmix": 64}
IMAGES = 974  # of digit 8 in MNIST's test set


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines", description=__doc__)
    procedures, sigmas = (sorted({key[part] for key in PUBLISHED}) for part in (0, 1))
    parser.add_argument("--procedures", nargs="+", choices=procedures, default=procedures, help="default: all")
    parser.add_argument("--sigmas", nargs="+", type=float, choices=sigmas, default=sigmas, help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="victims of each (default: 1)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"test images of digit 8 (default: {IMAGES}, all)")
    parser.add_argument("--epochs", type=int, default=90, help="published: 90, the default")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field; repeatable")
    parser.add_argument("--runs", type=Path, default=None, help="folder of runs (default: runs/ or PACD_RUNS)")
    options = parser.parse_args(arguments)
    root = options.runs or default_root()
    sizes = f"victim_seeds={options.seeds}", f"certification.target_images={options.images}"
    changed = (*sizes, f"training.epochs={options.epochs}", *options.set)
    wanted = [key for key in PUBLISHED if key[0] in options.procedures and key[1] in options.sigmas]
    try:
        configs = {key: baseline(*key, changed) for key in wanted}
    except ConfigError as error:
        parser.error(str(error))
    runs = {key: Run(root / run_id(config)) for key, config in configs.items()}
    open_still = [configs[key] for key, run in runs.items() if not run.exists() or run.status().state != "done"]
    (side_by_side if torch.cuda.is_available() else one_by_one)(open_still, root)
    finished = {key: run for key, run in runs.items() if run.status().state == "done"}
    if finished:
        print(table(finished).markdown(), where(list(finished.values())), sep="\n")
    if len(finished) < len(runs):
        sys.exit(1)


def baseline(procedure: str, sigma: float, changed: tuple[str, ...]) -> Config:
    """The published recipe, but for what is changed. Raises: ConfigError."""
    own = [f"procedure={procedure}", f"sigma={sigma}", "certification.other_images=1", "training.precision=fast"]
    own += OWN.get((procedure, sigma), [])
    if procedure in MINIBATCH:
        own.append(f"training.batch_size={MINIBATCH[procedure]}")
    return with_overrides(PRESETS["baseline-ga-mnist"].config, [*own, *changed])


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
        started.append((run, replace(jobs.begin(run), state="running", started=time.time(), phase="starting")))

    def stop(*_: object) -> None:
        for run, _status in started:
            jobs.cancel(run)

    def work(config: Config, run: Run, status: Status) -> None:
        jobs.perform(run, status)
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


def table(runs: dict[tuple[str, float], Run]) -> Table:
    """A row for each run, in their order."""
    rows = []
    for (procedure, sigma), run in runs.items():
        published, spread, accuracy = PUBLISHED[procedure, sigma]
        report, certificates = run.report, run.certificates()
        assert report is not None
        assert certificates is not None
        arm = report["arms"]["clean"]
        acr, target = arm["average_certified_radius"]["target"], run.config.threat.target_class
        of_class = certificates[certificates["label"] == target]
        radii = correct_radius(of_class).groupby(of_class["image"]).mean()
        interval = interval_of_mean(radii, radii * 0 + 1)
        half = (interval.high - interval.low) / 2
        beside = "" if accuracy is None else f" (published {accuracy:.3f})"
        rows.append(
            (
                procedure,
                f"{sigma:.2f}",
                f"{published:.3f}" + ("" if spread is None else f" ± {spread:.3f}"),
                f"{acr['mean']:.3f}" + ("" if acr["sd"] is None else f" ± {acr['sd']:.3f}"),
                f"{(acr['mean'] - published) / spread:+.1f}" if spread else "–",
                "all" if len(radii) == IMAGES else f"{len(radii)} (± {half:.3f})",
                f"{arm['accuracy']['target']['mean']:.3f}{beside}",
                f"{report['seconds']['total']:.0f}",
            )
        )
    columns = (
        *("procedure", "σ", "published ACR of digit 8, mean ± sd", "here, mean ± sd over seeds", "published sds away"),
        *("images (± 95 % over images)", "accuracy of digit 8", "s"),
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
