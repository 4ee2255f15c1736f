"""Results of stages by the hash of all that they depend on, so that a what-if computes only what it changes.

A stage's file is a hard link to the file of the run that computed it, and runs that reuse it link to it in turn:
sharing costs no space, a run directory stays whole on its own, and a stage that no run links to any more can go.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.config import canonical_json


class StageCache:
    """Files under <runs root>/stages, named by key."""

    def __init__(self, runs_root: Path) -> None:
        self.folder = runs_root / "stages"

    @staticmethod
    def key(stage: str, depends_on: Mapping[str, Any]) -> str:
        return hashlib.sha256(f"{stage} {canonical_json(depends_on)}".encode()).hexdigest()

    def fetch(self, key: str, destination: Path) -> bool:
        """Puts the stage's result at destination; False where there is none, or none that can be read."""
        path = self._path(key)
        if not _link(path, destination):
            return False
        try:
            with safe_open(destination, framework="numpy"):
                return True
        except SafetensorError:  # cut off by a power failure, say
            path.unlink(missing_ok=True)
            destination.unlink()
            return False

    def share(self, key: str, source: Path) -> None:
        """Offers a finished file of a run to other runs. Without hard links nothing is shared, and nothing breaks."""
        _link(source, self._path(key))

    def prune(self) -> None:
        """Removes what no run links to: call it after a run was deleted."""
        for path in self.folder.glob("*.safetensors"):
            if path.stat().st_nlink == 1:
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _link(source: Path, destination: Path) -> bool:
    """Hard-links atomically; True if destination has the content afterwards."""
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.{time.monotonic_ns()}")
    destination.parent.mkdir(exist_ok=True)
    try:
        os.link(source, temporary)
        temporary.replace(destination)
    except OSError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
