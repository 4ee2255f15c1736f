"""Studies that come with the project: their results in gallery/studies/, their runs in gallery/grid/.

gallery/studies/notes.json, written by hand from docs/reproduction.md, has each one's group, title and what it found,
in the order in which a reader should meet them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import ConfigError
from engine.exhibit import small_copy
from engine.records import GALLERY, GRID, Run, write_atomically
from engine.studies.process import StudyRecord


def exhibit(record: StudyRecord, results: dict[str, Any], gallery: Path = GALLERY) -> Path:
    """Writes a finished study's results (results.of) where all can see them, and small copies of its runs.

    Raises: ConfigError, if cells are missing, or a run is there already with numbers of another machine.
    """
    if record.unfinished():
        raise ConfigError(f"study {record.id} is not finished: {len(record.unfinished())} cell(s) have no result")
    new = []
    for run in map(record.run, record.study.cells()):
        shown = next((kept for place in (gallery, gallery / GRID.name) if (kept := Run(place / run.id)).exists()), None)
        if shown is None:
            new.append(run)
        elif shown.need_report()["arms"] != run.need_report()["arms"]:
            raise ConfigError(
                f"run {run.id} is in {gallery.name}/ already, with other numbers: put that one in the place of "
                f"{run.directory}, so that the study and its run say the same"
            )
    for run in new:
        small_copy(run, gallery / GRID.name, weights=False)
    path = gallery / "studies" / f"{record.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=1, allow_nan=False))
    return path


@dataclass(frozen=True)
class Note:
    group: str
    title: str
    finding: str


def notes(gallery: Path = GALLERY) -> dict[str, Note]:
    """By the study's id."""
    path = gallery / "studies" / "notes.json"
    return {name: Note(**note) for name, note in json.loads(path.read_bytes()).items()} if path.is_file() else {}


def exhibited(gallery: Path = GALLERY) -> list[dict[str, Any]]:
    """The results that come with the project, in the order of their notes; those without one come last."""
    found = [json.loads(path.read_bytes()) for path in sorted((gallery / "studies").glob(f"{'?' * 16}.json"))]
    order = list(notes(gallery))
    return sorted(found, key=lambda each: order.index(each["id"]) if each["id"] in order else len(order))
