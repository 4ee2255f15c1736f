"""What lists of runs show: a row for each run directory, kept while the process lives and the directory is the same."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.choices import ARMS
from engine.datasets import class_in_words
from engine.records import Run, all_runs

_STAMPED = ("config.json", "request.json", "status.json", "report.json", "notes.json", "published")


def rows(root: Path) -> list[dict[str, Any]]:
    """One row per run, newest first."""
    return sorted(map(row_of, all_runs(root)), key=lambda row: row["submitted"], reverse=True)


def row_of(run: Run) -> dict[str, Any]:
    """A run's row, made from its directory alone."""
    status = run.status()  # never kept: a run is lost although no file changes
    stamp = tuple(_changed(run.directory / name) for name in _STAMPED)
    return {"id": run.id, "state": status.state, "submitted": status.submitted, **_facts(run, stamp).model_dump()}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # not there, or gone in between
        return 0


class Facts(BaseModel):
    """A row but for id, state and time; None: not so, or not in a run of an older protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: str | None = None
    dataset: str | None = None
    name: str = ""
    note: str = ""
    starred: int = 0
    published: int = 0
    target_class: int | None = None
    target_name: str = ""
    epsilon: float | None = None
    sigma: float | None = None
    procedure: str | None = None
    architecture: str | None = None
    attack: str | None = None
    seed: int | None = None
    victim_seeds: int | None = None
    n: int | None = None
    alpha: float | None = None
    drop_pairs: int = 0
    drop_poisoned: float | None = None
    drop_random_noise: float | None = None
    drop_shuffled_signs: float | None = None
    sd_poisoned: float | None = None
    sd_random_noise: float | None = None
    sd_shuffled_signs: float | None = None
    bytes: int = 0


@lru_cache(maxsize=10_000)
def _facts(run: Run, _stamp: tuple[int, ...]) -> Facts:
    """What was so when one of the stamped files last changed."""
    try:
        return _read(run)
    except Exception:  # a directory may come from anywhere, and must not hide the others
        return Facts(name="(cannot be read)", bytes=run.disk_bytes())


def _read(run: Run) -> Facts:
    config = run.read_json("config.json") or {}
    threat, certification = config.get("threat") or {}, config.get("certification") or {}
    target = threat.get("target_class")
    notes, report = run.notes, run.report or {}
    drops = report.get("relative_drop", {})
    return Facts(
        preset=run.request.get("preset"),
        dataset=config.get("dataset"),
        name=notes["name"],
        note=notes["note"],
        starred=bool(notes["starred"]),
        published=run.published,
        target_class=target,
        target_name=report.get("target_name") or class_in_words(config.get("dataset"), target),
        epsilon=threat.get("epsilon"),
        sigma=config.get("sigma"),
        procedure=_name_in(config.get("procedure")),
        architecture=config.get("architecture"),
        attack=_name_in(config.get("attack")),
        seed=config.get("seed"),
        victim_seeds=config.get("victim_seeds"),
        n=certification.get("n"),
        alpha=certification.get("alpha"),
        drop_pairs=len(drops.get("poisoned", {}).get("seeds", ())),
        **{f"drop_{arm}": drops.get(arm, {}).get("mean") for arm in ARMS[1:]},
        **{f"sd_{arm}": drops.get(arm, {}).get("sd") for arm in ARMS[1:]},
        bytes=run.disk_bytes(),
    )


def _name_in(part: Any) -> str | None:
    """The name of a procedure or attack; None in a run of an older protocol, which lists but cannot be opened."""
    return part.get("name") if isinstance(part, dict) else None
