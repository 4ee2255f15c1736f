"""PACD Lab from Python and in notebooks, on the same runs as the app and the command line.

    import engine.api as pacd

    run = pacd.run("quick", epsilon=0.2, target_class=3)
    run.drop, run.acr("poisoned"), run.certificates
    run.figures.certified_accuracy()

A run is a process of its own, as from the app: the same configuration has the same id and gives the same bytes.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from engine import datasets, html_report, index, jobs, records
from engine.config import Config, ConfigError, dataset_name
from engine.follow import follow
from engine.overrides import field_names, with_overrides
from engine.presets import find_preset
from engine.records import Run
from engine.report import commands, sentences

if TYPE_CHECKING:
    from torch import nn

_POLL = 0.2  # seconds


class RunFailed(RuntimeError):
    """The run did not come to its end; the message says why, and where its log is."""


@dataclass(frozen=True)
class Figures:
    """The run's main figures, each a method of its name: acr_by_arm, certified_accuracy, radius_histogram …"""

    run: Run

    def __dir__(self) -> list[str]:
        return list(html_report.CAPTIONS)

    def __getattr__(self, name: str) -> Callable[[], Any]:
        if name not in html_report.CAPTIONS:
            raise AttributeError(f"there is no figure {name}; the figures are {', '.join(html_report.CAPTIONS)}")

        def figure() -> Any:
            found = html_report.figures_of(self.run)
            if name not in found:
                raise ValueError(f"run {self.run.id} has nothing to show in {name}")
            return found[name]

        return figure


@dataclass(frozen=True)
class Result:
    """A finished run (or one that stopped early, as far as it came). Radii: L2; ε: L∞; pixel units of [0, 1]."""

    run: Run

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def config(self) -> Config:
        return self.run.config

    @cached_property
    def report(self) -> dict[str, Any]:
        """report.json. Raises: RunNotFound, where the run has none yet."""
        return self.run.need_report()

    @cached_property
    def certificates(self) -> pd.DataFrame:
        """A row per arm, victim and test image, with its votes. Raises: RunNotFound, where there are none yet."""
        return self.run.need_certificates()

    @cached_property
    def poison(self) -> dict[str, np.ndarray] | None:
        """delta [P, C, H, W] float32 and indices [P] into the original training set; None where nothing changed."""
        return self.run.tensors("poison")

    def acr(self, arm: str = "poisoned", scope: str = "target") -> float:
        """Average certified radius (L2), mean over the arm's victims; scope: target (class) or all."""
        arms = self.report["arms"]
        if arm not in arms:
            raise ValueError(f"arm must be one of {', '.join(arms)}, got {arm!r}")
        if scope not in (scopes := arms[arm]["average_certified_radius"]):
            raise ValueError(f"scope must be one of {', '.join(scopes)}, got {scope!r}")
        return scopes[scope]["mean"]

    @property
    def drop(self) -> float | None:
        """Relative drop of the target class's ACR, poisoned against clean, mean over victim seeds."""
        return (self.report["relative_drop"].get("poisoned") or {}).get("mean")

    @property
    def figures(self) -> Figures:
        return Figures(self.run)

    @property
    def command(self) -> str:
        """The command line that runs the same."""
        return commands.command(*commands.asked_for(self.run))

    def victim(self, arm: str, k: int = 0) -> "nn.Module":
        """The arm's k-th victim, in evaluation mode on the CPU.

        Raises: victims.VictimUnavailable; datasets.DatasetUnavailable where its folder of images is gone.
        """
        from engine.experiment import victims

        return victims.load(self.run, arm, k, shape=datasets.shape(self.config.dataset, self.run.data_root))

    def to_html(self, path: str | Path) -> Path:
        """Writes the whole report as one file that works offline. Raises: ConfigError, unless its folder is there."""
        html_report.save(self.run, Path(path), data_root=self.run.data_root)
        return Path(path)

    def __repr__(self) -> str:
        return f"<run {self.id}: {self.run.status().state}, {sentences.settings_line(self.run)}>"

    def _repr_html_(self) -> str:
        if (report := self.run.report) is None:
            return escape(repr(self))
        return (
            f"<p>{html_report.marked(sentences.headline(report))}</p><small>{escape(sentences.numbers_line(report))}"
            f"</small>{html_report.numbers(report)}<small>{escape(sentences.limits_line(self.run))}</small>"
        )


def run(
    preset: str = "quick",
    *,
    progress: bool = False,
    runs_root: str | Path | None = None,
    data_root: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Runs a preset with other settings to its end, or finds its result where it was run before.

    Args:
        settings: any field of the configuration, by its dotted name (in **{}) or the last part of it where only one
            field is called so: epsilon, target_class, seed, n; attack and procedure stand for their names.
    Raises: ConfigError, naming the field; datasets.DatasetUnavailable; RunFailed.
    """
    start = find_preset(preset).config
    typed = [f"{_field(name)}={json.dumps(value, default=_plain)}" for name, value in settings.items()]
    config = with_overrides(start, typed)
    runs_root, data_root = _runs_root(runs_root, to_write=True), _data_root(data_root)
    jobs.check(config, runs_root=runs_root, data_root=data_root)
    datasets.fetch(config.dataset, data_root)
    started = jobs.submit(config, runs_root=runs_root, data_root=data_root, preset=preset)
    _wait(started, progress=progress)
    return Result(started)


def open(identifier: str, *, runs_root: str | Path | None = None) -> Result:
    """The run of this id, or of the one id that begins so, the project's examples included.

    Raises: RunNotFound; ConfigError, where runs_root is no folder.
    """
    return Result(records.find(_runs_root(runs_root), str(identifier)))


def runs(*, runs_root: str | Path | None = None) -> pd.DataFrame:
    """One's own runs, newest first: a row each with settings, state and drops. Raises: as open."""
    columns = list(index.row_of(Run(Path("no run"))))  # where there are none yet, too
    return pd.DataFrame(index.rows(_runs_root(runs_root)), columns=columns)


def images(dataset: str, *, train: bool, data_root: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, C, H, W] in [0, 1], labels [N]) of a data set.

    Raises: ConfigError, of a name that no data set can have; datasets.DatasetUnavailable.
    """
    return datasets.read(dataset_name(dataset), _data_root(data_root), train=train)


def certify(
    model: "nn.Module",
    x: np.ndarray,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> pd.DataFrame:
    """Certificates of any classifier's smoothed version, on the CPU: a row for each image, by Cohen et al.'s CERTIFY.

    Args:
        model: images [N, C, H, W] → logits [N, K], in evaluation mode.
        x: images [N, C, H, W] in [0, 1], N at least 1.
        sigma: noise level, standard deviation in pixel units.
        n0, n: selection and estimation draws.
        alpha: each radius is too large with probability at most alpha, for its one image.
    Returns: columns prediction (−1: abstains), radius (L2, pixel units), selected_class, n_top, n, p_lower.
    Raises: ValueError, where model, images or numbers are not as said, or n draws could only abstain.
    """
    from engine import certification, metrics
    from engine.experiment import victims

    if getattr(model, "training", False):
        raise ValueError("the model is in training mode, and its answers would change: call model.eval() first")
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 4 or not len(x) or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("images must be [N, C, H, W] in [0, 1], N at least 1")
    certification.check(sigma=sigma, n0=n0, n=n, alpha=alpha)
    found = victims.votes(model, x, sigma=sigma, n0=n0, n=n, seed=seed)
    table = metrics.certificates(found.selection.numpy(), found.estimation.numpy(), sigma=sigma, alpha=alpha)
    return table[["prediction", "radius", "selected_class", "n_top", "n", "p_lower"]]


def _runs_root(given: str | Path | None, *, to_write: bool = False) -> Path:
    """Raises: ConfigError."""
    root = Path(given) if given is not None else records.default_root()
    records.check_root(root, to_write=to_write)
    return root


def _data_root(given: str | Path | None) -> Path:
    return Path(given) if given is not None else datasets.default_root()


def _field(name: str) -> str:
    """A field's dotted name. Raises: ConfigError."""
    known = field_names()
    if name in known:
        return name
    found = [each for each in known if each.rpartition(".")[2] == name or each == f"{name}.name"]
    if len(found) != 1:
        why = f"is one of {', '.join(found)}: say which" if found else f"is none of {', '.join(known)}"
        raise ConfigError(f"the field {name!r} {why}")
    return found[0]


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own. Raises: ConfigError, of what no field takes."""
    if isinstance(value, np.floating):
        return float(str(value))  # the shortest decimal: float32's 0.1 is 0.1, as the user wrote it
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError(f"a setting is a number, a text, or a list of them, got {value!r}")


def _wait(run: Run, *, progress: bool) -> None:
    """Until the run's process has ended; an interrupt stops it. Raises: RunFailed."""
    try:
        if progress:
            follow(run)
        while (status := jobs.awaited(run)).active:
            time.sleep(_POLL)
    except KeyboardInterrupt:
        jobs.stop_now(run)
        raise
    if status.state != "done":
        raise RunFailed(
            f"run {run.id} {status.state}: {status.error or 'no reason given'} (log: {run.directory}/log.txt)"
        )
