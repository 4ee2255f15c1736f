"""The run directory: the one thing that app, command line and worker share. No torch here, and no pickle anywhere.

runs/<id>/config.json            canonical JSON; the first 16 hex digits of its SHA-256 are the id
          request.json           the preset's name, where the data is, when it was asked for
          env.json               versions, device, commit, time
          status.json            state, phase, progress, ETA, process, heartbeat, events; replaced atomically
          metrics.jsonl          what live charts read: one line per upper step or epoch
          poison.safetensors     delta [P, C, H, W] float32, indices [P] into the original training set; labels [P]
                                 where the attack changes those
          evolution.safetensors  delta of a few images after some upper steps: steps [S], delta [S, E, C, H, W],
                                 indices [E] into the original training set; and the attack's curves, a number a step
          victims/<arm>-<k>.safetensors   weights of the k-th victim of an arm; its loss and accuracy over epochs
                                 are metadata; before-<k> of one to be fine-tuned
          votes/<arm>-<k>.safetensors     its votes under noise, image by image
          checkpoints/           where long stages stand, while they are unfinished
          certificates.parquet   one row per arm, victim and test image, with the votes (columns: engine/metrics.py)
          report.json, log.txt, notes.json (name, star, note), cancel (present once asked for),
          published (present where nobody may rename or delete the run), .work.lock (held by its process)
runs/poisons/                    poison files that were brought, by their hash (engine/poison_file.py)
gallery/<id>                     small copies of finished runs (exhibit.py): delta as int8 in units of `unit`, victims
                                 float16 or none, no votes
runs/stages/                     the same safetensors files by the hash of all that they depend on (hard links)
runs/studies/<id>/study.json     canonical JSON of a study, with request, status and log as above (engine/studies/)
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load_file, save

from engine import datasets
from engine.choices import ARMS, CLASS_NAME
from engine.config import Config, ConfigError, canonical_json
from engine.status import STATES, Status, process_lives, read_status, why_lost

if TYPE_CHECKING:
    import pandas as pd

GALLERY = Path(__file__).parents[1] / "gallery"  # finished runs that come with the project, without votes
GRID = GALLERY / "grid"  # and those behind Explore's sliders (engine/grid.py) and the cells of studies


class Cancelled(Exception):
    """Somebody asked the run to stop."""


class RunNotFound(ValueError):
    """No run (or study) of this id, or its directory is not one."""


def default_root() -> Path:
    """Where runs are kept: the environment variable PACD_RUNS, or runs/ beside the project."""
    return Path(os.environ.get("PACD_RUNS") or Path(__file__).parents[1] / "runs")


def check_root(root: Path, *, to_write: bool) -> None:
    """Raises ConfigError where runs can neither be nor, if `to_write`, be kept. It leaves nothing behind."""
    try:
        there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError
        if to_write:
            TemporaryDirectory(prefix=".", dir=there).cleanup()
    except OSError:
        raise ConfigError(f"runs are kept in a folder that is there or can be made, got {root}") from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replaces a file as a whole: a reader sees the old content or the new, whatever happens in between."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, metadata: dict[str, str] | None = None, /, **tensors: np.ndarray) -> None:
    """A safetensors file, replaced as a whole."""
    write_atomically(path, save({name: np.asarray(value, order="C") for name, value in tensors.items()}, metadata))


@dataclass(frozen=True)
class Record:
    """A directory that one process works on. Reading never writes; a file not there yet reads as None or empty."""

    directory: Path
    definition: ClassVar[str]  # the file that says what is to be done

    @property
    def id(self) -> str:
        return self.directory.name

    def exists(self) -> bool:
        return (self.directory / self.definition).is_file()

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a file; None where there is none, or something else."""
        path = self.directory / name
        try:
            found = json.loads(path.read_bytes()) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        write_atomically(self.directory / name, json.dumps(value, indent=1, allow_nan=False))

    @property
    def request(self) -> dict[str, Any]:
        return self.read_json("request.json") or {}

    def status(self) -> Status:
        """The recorded status, except that one whose process is gone reads as lost."""
        try:
            raw = self.read_json("status.json") or {}
            status = read_status(raw)
        except ValidationError:  # not there, or of other fields
            status = Status("")
        if status.state not in STATES:
            return Status("lost", error="the run's status cannot be read")
        if not status.active or process_lives(status):
            return status
        if (self.read_json("status.json") or {}) != raw:  # it ended, and said so, while we looked
            return self.status()
        return replace(status, state="lost", error=why_lost(status))

    def write_status(self, status: Status) -> None:
        text = json.dumps(asdict(status), allow_nan=False)
        path = self.directory / "status.json"
        try:
            write_atomically(path, text)
        except OSError:  # a full disk may still have room where the old status stands, unless that is given up first
            with path.open("r+b") as file:
                file.write(text.encode().ljust(path.stat().st_size))

    def log_tail(self) -> str:
        path = self.directory / "log.txt"
        if path.is_symlink() or not path.is_file():  # a link in a stranger's run may lead anywhere
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-200:])


@dataclass(frozen=True)
class Run(Record):
    """A run directory."""

    definition = "config.json"

    @property
    def config(self) -> Config:
        """Raises: RunNotFound, where it cannot be read, as in a run of an older protocol."""
        try:
            return Config.model_validate_json((self.directory / "config.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise RunNotFound(f"run {self.id} has no readable configuration: {error}") from error

    @property
    def readable(self) -> bool:
        """Whether this version knows its settings."""
        with contextlib.suppress(RunNotFound):
            return bool(self.config)
        return False

    @property
    def environment(self) -> dict[str, Any]:
        return self.read_json("env.json") or {}

    def check_images(self, data_root: Path) -> None:
        """Raises: DatasetUnavailable, where its folder of images is gone, or has changed since the run read it."""
        seen = self.environment.get("images", "")  # nothing, of a data set that never changes or an older run
        if seen and datasets.fingerprint(self.config.dataset, data_root) != seen:
            raise datasets.DatasetUnavailable(
                f"the images of {self.config.dataset} have changed since run {self.id} was computed: put them back, "
                "or delete the run, or give the new images a folder of another name"
            )

    @property
    def report(self) -> dict[str, Any] | None:
        """report.json; None, too, where it names a class as no data set can: pages show the name."""
        found = self.read_json("report.json") or {}
        names = found.get("class_names") or [], [found.get("target_name", "class")]
        sound = all(isinstance(name, str) and re.fullmatch(CLASS_NAME, name) for part in names for name in part)
        return found if found and sound else None

    @property
    def notes(self) -> dict[str, Any]:
        """What people wrote about it: name, starred, note."""
        return {"name": "", "starred": False, "note": ""} | (self.read_json("notes.json") or {})

    @property
    def published(self) -> bool:
        """Whether it is read-only: it can be neither renamed nor deleted."""
        return (self.directory / "published").exists()

    @property
    def data_root(self) -> Path:
        """Where it had its data from; an example that came with the project does not say, and has the usual place."""
        return Path(self.request.get("data_root") or datasets.default_root())

    def append_metrics(self, record: dict[str, Any]) -> None:
        """One line more; a reader that comes in between leaves out the last one (`metrics`)."""
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(canonical_json(record) + "\n")

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """Records of one kind (attack or training) in order of writing; a line that a full disk cut off is none."""
        path, records = self.directory / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return [record for record in records if record["kind"] == kind]

    def tensors(self, name: str) -> dict[str, np.ndarray] | None:
        """A safetensors file; a delta that a copy in the gallery holds as int8 comes back as float32 (`small_copy`)."""
        path = self.directory / f"{name}.safetensors"
        tensors = load_file(path) if path.exists() else None
        if tensors is not None and "unit" in tensors:
            tensors["delta"] = tensors["delta"] * tensors.pop("unit")
        return tensors

    def need_report(self) -> dict[str, Any]:
        """report.json. Raises: RunNotFound where there is none yet."""
        report = self.report
        if report is None:
            raise RunNotFound(f"run {self.id} has no report yet: it is {self.status().state}")
        return report

    def certificates(self) -> "pd.DataFrame | None":
        import pandas as pd  # takes longer to import than all the rest

        path = self.directory / "certificates.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def need_certificates(self) -> "pd.DataFrame":
        """certificates.parquet. Raises: RunNotFound where there is none yet."""
        table = self.certificates()
        if table is None:
            raise RunNotFound(f"run {self.id} has no certificates yet: it is {self.status().state}")
        return table

    def victims(self) -> list[tuple[str, int]]:
        """(arm, number) of those whose weights are here, in the order of numbers and arms."""
        names = (path.stem.rpartition("-") for path in (self.directory / "victims").glob("*-*.safetensors"))
        kept = [(arm, int(k)) for arm, _, k in names if arm in ARMS and k.isdigit()]
        return sorted(kept, key=lambda victim: (victim[1], ARMS.index(victim[0])))

    def disk_bytes(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(OSError):  # a live run's temporary files come and go
                    total += os.stat(os.path.join(folder, name)).st_size
        return total


AnyRecord = TypeVar("AnyRecord", bound=Record)


def run_id(config: Config) -> str:
    return short_hash(config.canonical())


def short_hash(text: str) -> str:
    """The id of whatever this text defines: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(root: Path, identifier: str, *, gallery: bool = True) -> Run:
    """The run of this id, or of the one id that begins so, under root or (if so wished) in the gallery.

    Raises: RunNotFound, naming what is wrong.
    """
    folders = (GRID, GALLERY, root) if gallery else (root,)
    return the_one((run for folder in folders for run in all_runs(folder)), identifier, f"run under {root}")


def the_one(known: "Iterable[AnyRecord]", identifier: str, what: str) -> "AnyRecord":
    """The record of this id, or of the one id that begins so; of two with the same id the later one.

    Raises: RunNotFound; `what` says what was looked for and where ("run under runs/").
    """
    kind = what.split()[0]
    if not identifier or not all(character in "0123456789abcdef" for character in identifier):
        raise RunNotFound(f"a {kind} id is up to 16 hexadecimal digits, got {identifier[:40]!r}")
    matches = {record.id: record for record in known if record.id.startswith(identifier)}
    if not matches:
        raise RunNotFound(f"no {what} has id {identifier}")
    if len(matches) > 1:
        first, second, *_ = sorted(matches)
        raise RunNotFound(f"more than one {kind} has an id that begins with {identifier}, such as {first} and {second}")
    return next(iter(matches.values()))


def all_runs(root: Path) -> Iterator[Run]:
    """Every run under root, in no particular order."""
    for directory in root.iterdir() if root.is_dir() else ():
        if len(directory.name) == 16 and (run := Run(directory)).exists():
            yield run
