"""An SQLite index over the run directories, for lists and searches. It can be deleted at any time: it is rebuilt."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import ARMS
from engine.datasets import class_in_words
from engine.records import ACTIVE, Run, all_runs

_TABLE = """CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, stamp TEXT, state TEXT, submitted REAL, preset TEXT, dataset TEXT, name TEXT, starred INTEGER,
    published INTEGER,
    target_class INTEGER, target_name TEXT, epsilon REAL, sigma REAL, procedure TEXT, architecture TEXT, attack TEXT,
    seed INTEGER, victim_seeds INTEGER,
    drop_poisoned REAL, drop_random_noise REAL, drop_shuffled_signs REAL, bytes INTEGER
)"""
_STAMPED = ("status.json", "report.json", "notes.json", "published")


def rows(root: Path) -> list[dict[str, Any]]:
    """One row per run, newest first, after bringing the index up to date with the directories."""
    if not root.is_dir():
        return []
    try:
        return _refresh(root)
    except sqlite3.DatabaseError as error:  # damaged, of an older layout, or the disk is full or not to be written
        if "locked" not in str(error):
            with contextlib.suppress(OSError):
                for path in root.glob("index.sqlite*"):
                    path.unlink(missing_ok=True)
        return _refresh(root, ":memory:")


def _refresh(root: Path, name: str | None = None) -> list[dict[str, Any]]:
    with _database(name or str(root / "index.sqlite")) as database:
        database.execute(_TABLE)
        known = dict(database.execute("SELECT id, stamp FROM runs"))
        present = set()
        for run in all_runs(root):
            present.add(run.id)
            stamp = _stamp(run)
            active = known.get(run.id, "").startswith("active")
            if known.get(run.id) != stamp or active:
                row = row_of(run)
                row["stamp"] = f"active {stamp}" if row["state"] in ACTIVE else stamp
                marks = ", ".join(f":{column}" for column in row)
                database.execute(f"INSERT OR REPLACE INTO runs ({', '.join(row)}) VALUES ({marks})", row)
        for gone in known.keys() - present:
            database.execute("DELETE FROM runs WHERE id = ?", (gone,))
        database.commit()
        return [dict(row) for row in database.execute("SELECT * FROM runs ORDER BY submitted DESC")]


@contextlib.contextmanager
def _database(name: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(name, timeout=10)) as database:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode=WAL")
        yield database


def _stamp(run: Run) -> str:
    """Changes whenever one of the files does that the row is made from."""

    def changed(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:  # not there, or gone in between
            return 0

    return json.dumps([changed(run.directory / name) for name in _STAMPED])


def row_of(run: Run) -> dict[str, Any]:
    """A run's row, made from its directory alone."""
    config = run.read_json("config.json") or {}
    threat = config.get("threat") or {}
    target = threat.get("target_class")
    status, notes, report = run.status(), run.notes, run.report
    drops = (report or {}).get("relative_drop", {})
    return {
        "id": run.id,
        "state": status.state,
        "submitted": status.submitted,
        "preset": run.request.get("preset"),
        "dataset": config.get("dataset"),
        "name": notes["name"],
        "starred": int(bool(notes["starred"])),
        "published": int(run.published),
        "target_class": target,
        "target_name": (report or {}).get("target_name") or class_in_words(config.get("dataset"), target),
        "epsilon": threat.get("epsilon"),
        "sigma": config.get("sigma"),
        "procedure": _name_in(config.get("procedure")),
        "architecture": config.get("architecture"),
        "attack": _name_in(config.get("attack")),
        "seed": config.get("seed"),
        "victim_seeds": config.get("victim_seeds"),
        **{f"drop_{arm}": drops.get(arm, {}).get("mean") for arm in ARMS[1:]},
        "bytes": run.disk_bytes(),
    }


def _name_in(part: Any) -> str | None:
    """The name of a procedure or attack; None in a run of an older protocol, which lists but cannot be opened."""
    return part.get("name") if isinstance(part, dict) else None
