"""Whole runs, each a process of the engine's own: how long they take and how much memory, beside what was predicted."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.measure import Table, spread
from engine import datasets, jobs, poison_file
from engine.config import Config
from engine.costs import estimate
from engine.overrides import with_overrides
from engine.presets import PRESETS
from engine.records import Run, run_id

# Shortened: two steps of each kind reach the largest buffers, and nothing here changes how large those are.
SHORT = (
    *("attack.upper_steps=2", "attack.restart_every=2", "attack.warmup_steps=0", "attack.lower_steps=1"),
    *("attack.linear_steps=2", "training.epochs=1", "victim_seeds=1"),
    *("certification.target_images=2", "certification.other_images=1", "certification.n=1000"),
)
LOOK_EVERY = 0.2  # seconds from one look at memory to the next, which takes a while
SETTLED = 10.0  # seconds of victims' training after which a peak that did not grow will not
MEASURED = (
    *("smoke", "quick", "quick-smoothadv", "quick-macer", "class"),
    *("paper-ga-mnist", "paper-smoothadv-mnist", "paper-macer-mnist"),
    *("paper-ga-cifar10", "paper-smoothadv-cifar10", "paper-macer-cifar10"),
)
# as quick as it can be while most of a what-if is still there
WHAT_IF = ("attack.upper_steps=12", "training.epochs=2", "certification.target_images=20")


class Followed(NamedTuple):
    seconds: float
    peak: int  # bytes, of all its processes; 0 if memory was not asked for


def follow(config: Config, root: Path, *, memory: bool = False) -> Followed:
    """Submits a run and waits for its end; if memory is asked for, only until its peak has SETTLED after the attack.

    Raises: RuntimeError if it fails.
    """
    started = grown = time.perf_counter()
    peak, run = 0, jobs.submit(config, runs_root=root, data_root=datasets.default_root())
    while (status := jobs.awaited(run)).active:
        now, before = time.perf_counter(), peak
        peak = max(peak, _held(status.pid)) if status.pid and memory else peak
        if peak > 1.01 * before or status.phase != "victims and certificates":
            grown = now
        if memory and now - grown > SETTLED:
            jobs.stop_now(run)
        time.sleep(LOOK_EVERY if memory else 0.05)
    if status.state not in ("done", "cancelled"):
        raise RuntimeError(f"run {run.id} is {status.state}: {status.error}")
    return Followed(time.perf_counter() - started, peak)


def quick(rounds: int) -> Table:
    """The quick preset from an empty directory to its report, then with another epsilon, then from its poison."""
    config = PRESETS["quick"].config
    found: dict[str, list[dict[str, float]]] = {}

    def timed(what: str, *settings: str) -> Run:
        each = with_overrides(config, list(settings))
        seconds, run = follow(each, root).seconds, Run(root / run_id(each))
        found.setdefault(what, []).append({"command": seconds, **run.need_report()["seconds"]})
        return run

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            first = timed("quick, from nothing")
            timed("then another ε", "threat.epsilon=0.05")
            start = poison_file.starting_from(first, root)
            timed("then another ε, from the first run's poison", "threat.epsilon=0.15", *start)
            timed(
                "a third ε, from there too, random noise the only control",
                "threat.epsilon=0.07",
                'controls=["random_noise"]',
                *start,
            )
    rows = [
        (what, *(spread([one[part] for one in each]) for part in ("command", "total", "poison", "train", "certify")))
        for what, each in found.items()
    ]
    columns = ("run", "s, median (range)", "by its own clock", "attack", "training, all workers", "votes, all workers")
    predicted = estimate(config, device="cpu").seconds
    title = f"Whole runs, the first predicted to take {predicted:.0f} s"
    return Table(title, columns, rows, [{"run": what, "seconds": each} for what, each in found.items()])


def grid() -> Table:
    """A shortened quick run, then what-ifs that change only epsilon, and one that changes the seed."""
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as root:
        for what, change in (
            ("the first run", "threat.epsilon=0.1"),
            ("another ε", "threat.epsilon=0.05"),
            ("a third ε", "threat.epsilon=0.2"),
            ("the first again", "threat.epsilon=0.1"),
            ("another seed", "seed=1"),
        ):
            config = with_overrides(PRESETS["quick"].config, [*WHAT_IF, change])
            seconds = follow(config, Path(root)).seconds
            rows.append((what, change, f"{seconds:.1f}"))
            raw.append({"what": what, "change": change, "seconds": seconds})
    return Table("A grid of ε: what is reused", ("run", "setting", "s"), rows, raw)


def memory() -> Table:
    """Peak memory of shortened runs of the presets whose data set is here, beside what `engine.costs` predicts."""
    rows, raw = [], []
    for preset in MEASURED:
        config = with_overrides(PRESETS[preset].config, list(SHORT))
        predicted = estimate(config, device="cpu").memory_bytes
        if not datasets.available(config.dataset, datasets.default_root()):
            rows.append((preset, f"{predicted / 1e9:.2f}", f"{config.dataset} is not on this machine", ""))
            continue
        with tempfile.TemporaryDirectory() as root:
            peak = follow(config, Path(root), memory=True).peak
        rows.append((preset, f"{predicted / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{predicted / peak:.2f}"))
        raw.append({"preset": preset, "predicted": predicted, "measured": peak})
    return Table("Memory", ("preset", "predicted, GB", "measured, GB", "predicted / measured"), rows, raw)


def _held(pid: int) -> int:
    """Bytes that a process and those it forked hold now, what they share counted once; elsewhere than on Linux its own.

    0 if it has ended.
    """
    try:
        process = psutil.Process(pid)
        if not Path("/proc/self/smaps_rollup").exists():
            return process.memory_info().rss
        together = [process, *process.children()]
        return sum(_proportional(each.pid) for each in together)
    except (psutil.NoSuchProcess, OSError):
        return 0


def _proportional(pid: int) -> int:
    """Bytes of a process's resident set, pages of several processes in equal shares."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Pss:")[2].split()[0]) * 1024
