"""What commands have in common: their options, progress on standard error while they wait, how it ended."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine import datasets, jobs
from engine.config import Config, ConfigError
from engine.costs import estimate, expected_device
from engine.records import Record, Run, run_id
from engine.report.sentences import time_left

OK, FAILED, BAD_INPUT = 0, 1, 2
Value = TypeVar("Value", str, int, float)
PROGRESS_EVERY = 5.0  # seconds between lines of progress that nobody sees live


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        type=Path,
        default=datasets.default_root(),
        help="folder of data sets (default: data/ or PACD_DATA)",
    )


def values(option: str, text: str, kind: type[Value]) -> list[Value]:
    """What an option lists, separated by commas. Raises: ConfigError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return [kind(part) for part in parts]
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} must be {numbers} separated by commas, got {text!r}") from None


def foretold(config: Config, *, data_root: Path) -> dict:
    """What --dry-run prints: the run's id and configuration, and what it will take."""
    device, dataset = expected_device(), config.dataset
    shape, classes = datasets.shape(dataset, data_root), len(datasets.class_names(dataset, data_root))
    expected = estimate(config, device=device, shape=shape, classes=classes)
    return {
        "run_id": run_id(config),
        "config": config.model_dump(mode="json"),
        "estimate": {
            "seconds": round(expected.seconds),
            "memory_bytes": round(expected.memory_bytes),
            "device": device,
        },
    }


def wait_for(run: Run) -> int:
    """Shows a run's progress until it ends; FAILED, with the reason, where it did not come to its end."""
    try:
        follow(run)
    except KeyboardInterrupt:
        print("\ncancelling; what is done so far stays, and the same command goes on from there", file=sys.stderr)
        jobs.stop_now(run)
    status = run.status()
    if status.state == "done":
        return OK
    reason = f": {status.error}" if status.error else ""
    print(f"run {run.id} {status.state}{reason}. Its directory: {run.directory}", file=sys.stderr)
    return FAILED


def telling(what: str) -> Callable[[float], None]:
    """A function that tells the share done and the time left on standard error, every few seconds."""
    started = told = time.monotonic()

    def tell(share: float) -> None:
        nonlocal told
        now = time.monotonic()
        if share > 0 and now - told >= PROGRESS_EVERY:
            told = now
            left = time_left((now - started) * (1 - share) / share)
            print(f"{share:4.0%} {what}{left}", file=sys.stderr, flush=True)

    return tell


def follow(run: Record) -> None:
    """Shows progress on standard error until it ends; off a terminal a line per phase, or every few seconds."""
    live = sys.stderr.isatty()
    shown, at = "", 0.0
    while (status := jobs.awaited(run)).active:
        if status.state == "queued":
            behind = jobs.queue_position(run)
            line = phase = f"queued behind {behind} run(s)" if behind else "starting"
        else:
            left = time_left(status.eta_seconds)
            line, phase = f"{status.fraction:4.0%} {status.phase}{left}   {status.detail}", status.phase
        if live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        elif phase != shown or time.monotonic() - at >= PROGRESS_EVERY:
            shown, at = phase, time.monotonic()
            print(line, file=sys.stderr, flush=True)
        time.sleep(0.25)
    if live:
        print(file=sys.stderr)
