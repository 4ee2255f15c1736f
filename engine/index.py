"""What lists of runs show: a row for each run directory, kept while the process lives and the directory is the same."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.choices import ARMS
from engine.datasets import class_in_words
from engine.records import Run, all_runs

_STAMPED = ("status.json", "report.json", "notes.json", "published")


def rows(root: Path) -> list[dict[str, Any]]:
    """One row per run, newest first."""
    return sorted(map(row_of, all_runs(root)), key=lambda row: row["submitted"], reverse=True)


def row_of(run: Run) -> dict[str, Any]:
    """A run's row, made from its directory alone."""
    status = run.status()  # never kept: a run is lost although no file changes
    stamp = tuple(_changed(run.directory / name) for name in _STAMPED)
    return {"id": run.id, "state": status.state, "submitted": status.submitted, **_facts(run, stamp)}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # not there, or gone in between
        return 0


@lru_cache(maxsize=10_000)
def _facts(run: Run, _stamp: tuple[int, ...]) -> dict[str, Any]:
    """What was so when one of the stamped files last changed."""
    config = run.read_json("config.json") or {}
    threat, certification = config.get("threat") or {}, config.get("certification") or {}
    target = threat.get("target_class")
    notes, report = run.notes, run.report or {}
    drops = report.get("relative_drop", {})
    return {
        "preset": run.request.get("preset"),
        "dataset": config.get("dataset"),
        "name": notes["name"],
        "starred": int(bool(notes["starred"])),
        "published": int(run.published),
        "target_class": target,
        "target_name": report.get("target_name") or class_in_words(config.get("dataset"), target),
        "epsilon": threat.get("epsilon"),
        "sigma": config.get("sigma"),
        "procedure": _name_in(config.get("procedure")),
        "architecture": config.get("architecture"),
        "attack": _name_in(config.get("attack")),
        "seed": config.get("seed"),
        "victim_seeds": config.get("victim_seeds"),
        "n": certification.get("n"),
        "alpha": certification.get("alpha"),
        "drop_pairs": len(drops.get("poisoned", {}).get("seeds", ())),
        **{f"drop_{arm}": drops.get(arm, {}).get("mean") for arm in ARMS[1:]},
        "bytes": run.disk_bytes(),
    }


def _name_in(part: Any) -> str | None:
    """The name of a procedure or attack; None in a run of an older protocol, which lists but cannot be opened."""
    return part.get("name") if isinstance(part, dict) else None
