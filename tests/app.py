"""What tests of pages share: a page in Streamlit's own harness, what it says, and the example run."""

import shutil
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

from engine import records
from engine.config import Config
from engine.records import GALLERY, Run

PROJECT = Path(__file__).parents[1]
EXAMPLE = next(run.id for run in records.all_runs(GALLERY) if run.config.dataset == "digits")  # needs no file


def opened(file: str, **query: str) -> AppTest:
    test = AppTest.from_file(str(PROJECT / file), default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def words(test: AppTest) -> str:
    kinds = ("title", "header", "subheader", "markdown", "caption", "error", "warning", "info", "success", "code")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(test, kind))


def own_copy(root: Path, *, config: Config | None = None, state: str = "done") -> Run:
    """A run of the user's own with the example's files, and maybe another configuration."""
    identifier = records.run_id(config) if config else EXAMPLE
    run = Run(Path(shutil.copytree(GALLERY / EXAMPLE, root / identifier)))
    if config:
        (run.directory / "config.json").write_text(config.canonical())
    run.write_json("status.json", (run.read_json("status.json") or {}) | {"state": state})
    return run


def button(test: AppTest, label: str) -> Any:
    return next(found for found in test.button if found.label == label)
